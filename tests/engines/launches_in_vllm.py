"""What a GPU would launch in a decode step of stock vLLM, counted on a machine without one.

    PYTHONPATH=tests/engines/mrv2_on_cpu python tests/engines/launches_in_vllm.py TARGET DRAFTER '{"nodes": 6, "requests": [1, 8]}'

Model Runner V2 runs under Triton's interpreter. The runner's device is "cpu:0", so that a tensor that is made there is told
from one of the host's ("cpu"); what is computed from such tensors lies there too. Every operation on them that is not a
view is one kernel, a copy from or to the host is one copy, a Triton kernel is one, and a CUDA graph is one: the target's
pass where vLLM would replay a full graph, and whatever the plugin runs through `eagle3_vllm.graphs`. A value that the host
reads (`item`, `tolist`, `bool`, an index by a mask) is a read: on a GPU the host waits for the device there.

What stands in a graph of the plugin's is held to a graph's rules: no read, nothing copied from the host, and at every replay
the same operations of the same shapes on the same storages. Attention is left out: on a CPU it is other code.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_NO_USAGE_STATS": "1",
}

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

THERE = torch.device("cpu:0")
STEPS, DECODING = 7, 4  # steps of a batch, and how many of the last are looked at
OURS = ("verified rows and draft", "draft")  # the plugin's graphs
# metadata alone: no kernel, whatever the schema says of aliases
VIEWS = {"detach", "_unsafe_view", "lift_fresh", "set_", "empty", "empty_like", "new_empty", "empty_strided", "resize_"}
READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_unique2"}
VIEWS |= {"new_empty_strided", "is_pinned", "_reshape_alias", "alias"}


@dataclass
class Replay:
    """What one run of a graph's function did."""

    name: str
    trace: list[str] = field(default_factory=list)  # operations and the shapes of what they made
    given: set[int] = field(default_factory=set)  # storages that were there before
    made: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def takes(self, tensors: Any) -> None:
        self.given |= {x.untyped_storage()._cdata for x in tensors if isinstance(x, Tensor)} - self.made

    def makes(self, name: str, tensors: list[Tensor]) -> None:
        self.trace.append(f"{name} {[tuple(x.shape) for x in tensors]}")
        self.made |= {x.untyped_storage()._cdata for x in tensors} - self.given


class Device(TorchDispatchMode):
    """Which storages lie on the pretended device, and what is done to them."""

    def __init__(self) -> None:
        super().__init__()
        self.there: set[int] = set()
        self.kept: list[Any] = []  # a storage's address must not come back as another's
        self.inside = 0  # graphs
        self.launches: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.replay: Replay | None = None  # the graph that runs
        self.replays: list[Replay] = []

    def lies_there(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.untyped_storage()._cdata in self.there

    def put(self, x: Any) -> None:
        if isinstance(x, Tensor):
            self.there.add(x.untyped_storage()._cdata)
            self.kept.append(x.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = [x for x in given if self.lies_there(x)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        device = kwargs.get("device")
        to_host = name == "_to_copy" and device is not None and device.index is None
        if device == THERE or (ours and not to_host and name != "copy_"):
            for x in made:
                self.put(x)
        if ours and func._schema.is_mutable and name != "copy_":
            for x in given:  # a kernel's output that its caller made, nobody said where
                self.put(x)
        waits = (name in READS and ours) or (name in ("index", "index_put", "index_put_") and self._masks(args, ours))
        if self.replay is not None:
            uploads = name in ("copy_", "_to_copy") and not self.lies_there(args[-1]) and args[-1].dim() > 0
            if waits or uploads or name == "lift_fresh":
                self.replay.faults.append(f"{name} {'reads' if waits else 'copies from the host'}")
            self.replay.takes(given)
            self.replay.makes(name, made)
        if self.inside:
            return out
        if waits:
            self.reads[name] += 1
        elif name in ("copy_", "_to_copy"):
            ends = (
                (self.lies_there(args[0]), self.lies_there(args[1])) if name == "copy_" else (bool(ours), not to_host)
            )
            if all(ends):
                self.launches[name] += 1
            elif any(ends):
                self.copies[name] += 1
        elif ours or device == THERE:
            aliased = all(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
            if name not in VIEWS and not (aliased and func._schema.returns):
                self.launches[name] += 1
        return out

    def _masks(self, args: Any, ours: list[Tensor]) -> bool:
        return bool(ours) and any(
            isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1])
        )

    @contextmanager
    def graph(self, name: str) -> Iterator[None]:
        """One launch, whatever is inside."""
        self.launches[f"graph: {name}"] += not self.inside
        self.inside += 1
        ours = self.replay is None and name in OURS
        if ours:
            self.replay = Replay(name)
        try:
            yield
        finally:
            self.inside -= 1
            if ours:
                self.replays.append(self.replay)
                self.replay = None

    @contextmanager
    def unseen(self, *taken: Any) -> Iterator[list[Tensor]]:
        """Other code than a GPU's; what it makes is put into the list."""
        held, self.replay, made = self.replay, None, []
        self.inside += 1
        try:
            yield made
        finally:
            self.inside -= 1
            self.replay = held
            if held is not None:
                held.takes(taken)
                held.makes("attention", made)

    def clear(self) -> None:
        for counts in (self.launches, self.copies, self.reads):
            counts.clear()


def watch_triton(device: Device) -> None:
    """A kernel under the interpreter is one launch; what the interpreter does with tensors is not ours."""
    from triton.runtime.interpreter import GridExecutor

    run = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not device.inside:
            device.launches[f"triton: {self.fn.__name__}"] += 1
        device.inside += 1
        if device.replay is not None:
            device.replay.takes(args)
            device.replay.makes(self.fn.__name__, [])
        try:
            with torch.utils._python_dispatch._disable_current_modes():
                return run(self, *args, **kwargs)
        finally:
            device.inside -= 1

    GridExecutor.__call__ = launch


def watch_reads(device: Device) -> None:
    """The ways to the host that no dispatcher sees."""

    def told(name: str, method: Any) -> Any:
        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if device.lies_there(self):
                device.reads[name] += not device.inside
                if device.replay is not None:
                    device.replay.faults.append(f"{name} reads")
            return method(self, *args, **kwargs)

        return read

    for name in ("tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "item"):
        setattr(Tensor, name, told(name, getattr(Tensor, name)))
    # what is made "where x lies" lies there too
    lies = Tensor.device.__get__  # type: ignore[attr-defined]
    Tensor.device = property(lambda x: THERE if device.lies_there(x) else lies(x))  # type: ignore[assignment, method-assign]


def watch_async_copies(device: Device) -> None:
    """vLLM's copies to the host that nobody waits for."""
    from vllm.v1.worker.gpu import async_utils, model_runner  # noqa: F401 (all that copies is imported)

    def copied(x: Tensor) -> Any:
        device.copies["async_copy_to_np"] += not device.inside
        with torch.utils._python_dispatch._disable_current_modes():
            return x.as_subclass(Tensor).clone().detach().__array__()

    kept = async_utils.async_copy_to_np
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.v1.worker.gpu") and vars(module).get("async_copy_to_np") is kept:
            module.async_copy_to_np = copied  # type: ignore[attr-defined]


def watch_graphs(device: Device) -> None:
    """The target's pass is one graph where vLLM captures full graphs of trees; else its attention stays outside."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    load = GPUModelRunner.load_model

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        load(self, *args, **kwargs)
        model, state = self.model, self.model_state
        whole = state.get_additional_cg_support()[0].value >= 2  # UNIFORM_BATCH
        forward = model.forward

        kept: dict[Any, Tensor] = {}

        def full(*args: Any, **kwargs: Any) -> Any:
            # as vLLM's graphs: what comes out stands in the same places each time
            with device.graph("target"):
                last, others = forward(*args, **kwargs)
                places = [kept.setdefault((i, x.shape), torch.empty_like(x)) for i, x in enumerate((last, *others))]
                return places[0].copy_(last), [place.copy_(x) for place, x in zip(places[1:], others, strict=True)]

        def cut(*args: Any, **kwargs: Any) -> Any:
            # piecewise: between two attentions a graph, the attentions themselves outside
            with device.graph("piece"):
                return forward(*args, **kwargs)

        model.forward = full if whole else cut
        if not whole:
            for layer in self.compilation_config.static_forward_context.values():
                if not hasattr(layer, "impl"):
                    continue
                _outside(device, layer.impl)

    GPUModelRunner.load_model = load_model
    try:
        from eagle3_vllm import graphs
    except ImportError:
        return
    graphs.observers.append(device.graph)


def watch_attention(device: Device) -> None:
    """On a CPU it takes what the host knows of lengths, and shapes follow texts."""
    from eagle3_vllm.attention import cpu
    from vllm.model_executor.layers.attention import Attention

    attend, gather, forward = cpu.CpuPrefix.attend, cpu.CpuPrefix.__init__, Attention.forward

    def over_pages(self: Any, *args: Any) -> Tensor:
        with device.unseen(*args) as made:
            made.append(attend(self, *args))
        return made[0]

    def gathered(self: Any, layer: Any, table: Tensor, prefix: Tensor, *more: Any) -> None:
        with device.unseen(layer.kv_cache, table, prefix):
            gather(self, layer, table, prefix, *more)

    def whole_layer(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        if device.replay is None:
            return forward(self, *args, **kwargs)
        with device.unseen(*args, self.kv_cache) as made:
            made.append(forward(self, *args, **kwargs))
        return made[0]

    cpu.CpuPrefix.attend, cpu.CpuPrefix.__init__, Attention.forward = over_pages, gathered, whole_layer


FAULTS = ("read", "upload", "shape", "buffer")


class Plant:
    """What the rules forbid, in the midst of a draft: `fault` says which, "" none."""

    def __init__(self) -> None:
        from eagle3_vllm.drafting import TreeDrafter
        from eagle3_vllm.speculator import TreeSpeculator

        self.fault, self.times = "", 0
        draw, propose = TreeDrafter.draw, TreeSpeculator.propose

        def planted(drafter: Any, shape: Any, start: Any, tokens: Tensor) -> None:
            slots = start.slots_B
            self.times += 1
            if self.fault == "read":
                slots.max().item()
            elif self.fault == "upload":
                slots = slots + torch.tensor([0], device=slots.device)
            elif self.fault == "shape":
                slots.new_zeros(1 + self.times)
            draw(drafter, shape, start._replace(slots_B=slots), tokens)

        def proposing(speculator: Any, *args: Any, **kwargs: Any) -> Any:
            if self.fault == "buffer":
                absorbed = speculator.absorbed
                speculator.absorbed = replace(absorbed, slots_B=absorbed.slots_B.clone())
            return propose(speculator, *args, **kwargs)

        TreeDrafter.draw, TreeSpeculator.propose = planted, proposing


def broken_rules(device: Device) -> list[str]:
    """Of all replays since the last look; those of one name are of one batch size."""
    found: list[str] = []
    replays, device.replays = device.replays, []
    for name in OURS:
        same = [replay for replay in replays if replay.name == name][1:]  # the first one makes what is made once
        found += [f"{name}: {fault}" for replay in same for fault in replay.faults]
        for before, after in pairwise(same):
            if before.trace != after.trace:
                found.append(f"{name}: other operations or shapes at another replay")
            if before.given != after.given:
                found.append(f"{name}: other storages at another replay")
    return sorted(set(found))


def pretend_place() -> None:
    from vllm.v1.worker.cpu.model_runner import CPUModelRunner

    made = CPUModelRunner.__init__

    def init(self: Any, vllm_config: Any, device: torch.device) -> None:
        made(self, vllm_config, THERE)

    CPUModelRunner.__init__ = init


def _outside(device: Device, impl: Any) -> None:
    attend = impl.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        held, device.inside = device.inside, 0
        try:
            return attend(*args, **kwargs)
        finally:
            device.inside = held
            device.launches["graph: piece"] += 1

    impl.forward = forward


def main(target: str, drafter: str, job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    device = Device()
    watch_triton(device)
    watch_reads(device)
    watch_graphs(device)
    watch_async_copies(device)
    plant = None
    if job["nodes"]:
        watch_attention(device)
        plant = Plant()
    pretend_place()
    from torch_kernels import stand_in

    stand_in()
    speculative = {"method": "eagle3", "model": drafter, "num_speculative_tokens": job["nodes"]}
    with device:
        llm = LLM(
            target, dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=max(job["requests"]),
            max_num_batched_tokens=2048, enable_prefix_caching=False, skip_tokenizer_init=True, disable_log_stats=True,
            speculative_config=speculative if job["nodes"] else None,
        )  # fmt: skip
        engine = llm.llm_engine
        # in one process vLLM schedules synchronously; what asynchronous scheduling asks of a step is told so
        engine.vllm_config.scheduler_config.async_scheduling = True

        def decoded(requests: int, temperature: float) -> dict[str, Any]:
            params = SamplingParams(
                temperature=temperature, max_tokens=64, ignore_eos=True, detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
            for i in range(requests):
                engine.add_request(f"{requests}-{i}", {"prompt_token_ids": [1 + i % 7, 5, 9, 3 + i % 5]}, params)
            for step in range(STEPS):
                if step == STEPS - DECODING:
                    device.replays.clear()
                device.clear()
                engine.step()
            counts = {"launches": device.launches, "copies": device.copies, "reads": device.reads}
            told: dict[str, Any] = {name: dict(each) for name, each in counts.items()}
            told["broken"] = broken_rules(device)
            engine.abort_request([f"{requests}-{i}" for i in range(requests)])
            while engine.has_unfinished_requests():
                engine.step()
            engine.step()
            return told

        said: dict[str, Any] = {str(requests): decoded(requests, 0.0) for requests in job["requests"]}
        said["sampled"] = decoded(2, 0.8)
        for fault in FAULTS if plant is not None and job.get("plant") else ():
            plant.fault = fault
            said[fault] = decoded(2, 0.0)
    return said


if __name__ == "__main__":
    print("\n" + json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
