"""What a GPU would launch in a decode step of stock vLLM, counted on a machine without one.

    PYTHONPATH=tests/engines/mrv2_on_cpu python tests/engines/launches_in_vllm.py TARGET DRAFTER '{"nodes": 6, "requests": [1, 8]}'

Model Runner V2 runs under Triton's interpreter. The runner's device is "cpu:0", so that a tensor that is made there is told
from one of the host's ("cpu"); what is computed from such tensors lies there too. Every operation on them that is not a
view is one kernel, a copy from or to the host is one copy, a Triton kernel is one, and a CUDA graph is one: the target's
pass where vLLM would replay a full graph, and whatever the plugin runs through `eagle3_vllm.graphs`. A value that the host
reads (`item`, `tolist`, `bool`, an index by a mask) is a read: on a GPU the host waits for the device there.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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
# metadata alone: no kernel, whatever the schema says of aliases
VIEWS = {"detach", "_unsafe_view", "lift_fresh", "set_", "empty", "empty_like", "new_empty", "empty_strided", "resize_"}
READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_unique2"}
VIEWS |= {"new_empty_strided", "is_pinned", "_reshape_alias", "alias"}


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
        if (device == THERE and name != "_to_copy") or (ours and not to_host) or (device == THERE):
            for x in made:
                self.put(x)
        if ours and func._schema.is_mutable and name != "copy_":
            for x in given:  # a kernel's output that its caller made, nobody said where
                self.put(x)
        if self.inside:
            return out
        if name in READS and ours or name in ("index", "index_put", "index_put_") and self._masks(args, ours):
            self.reads[name] += 1
        elif name in ("copy_", "_to_copy"):
            ends = (self.lies_there(args[0]), self.lies_there(args[1])) if name == "copy_" else (bool(ours), not to_host)
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
        try:
            yield
        finally:
            self.inside -= 1

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
            if not device.inside and device.lies_there(self):
                device.reads[name] += 1
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

        def full(*args: Any, **kwargs: Any) -> Any:
            with device.graph("target"):
                return forward(*args, **kwargs)

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
        engine, told = llm.llm_engine, {}
        # in one process vLLM schedules synchronously; what asynchronous scheduling asks of a step is told so
        engine.vllm_config.scheduler_config.async_scheduling = True
        for requests in job["requests"]:
            params = SamplingParams(
                temperature=job.get("temperature", 0), max_tokens=64, ignore_eos=True, detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
            for i in range(requests):
                engine.add_request(f"{requests}-{i}", {"prompt_token_ids": [1 + i % 7, 5, 9, 3 + i % 5]}, params)
            for step in range(5):
                device.clear()
                engine.step()
            told[str(requests)] = {
                name: {"total": sum(counts.values()), "each": dict(counts)}
                for name, counts in (("launches", device.launches), ("copies", device.copies), ("reads", device.reads))
            }
            engine.abort_request([f"{requests}-{i}" for i in range(requests)])
            while engine.has_unfinished_requests():
                engine.step()
            engine.step()
    return told


if __name__ == "__main__":
    print("\n" + json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
