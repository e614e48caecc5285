"""Our worker's steps on a pretended device, under what SGLang's overlap schedule does: the host queues a step and goes on, and
the last step's acceptance arrives while the device is at this one.

SGLang's part of a step is stood in for: its worker's class, the runtime states, the draft's pass.
"""

import importlib
import os
import tempfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from drafting_on import HIDDEN, Drafting, Inputs
from eagle3_sglang import compat
from eagle3_sglang.settings import DEFAULT_TREES_ON_GPU, read_trees
from pretend_device import NAME, Crossings, Event
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from eagle3_serving.serve.shape import Shape

SHAPES = read_trees(DEFAULT_TREES_ON_GPU)
SIZES = [1, 2, 4, 8, 16, 32, 64]
DRAFTER = Path(__file__).resolve().parents[3] / "checkpoints" / "smollm2-135m-instruct"
OF_GRAPHS = 0.8  # of a step's time on the device


def milliseconds(shape: Shape, batch: int) -> float:
    """What a step takes on the device: rows cost nothing until they are many."""
    return (6.0 + 0.5 * shape.steps) * max(1.0, batch * shape.tokens / 300)


class Key(int):
    """Of a graph: the batch size it was captured at."""

    @property
    def size(self) -> int:
        return int(self)


class FullCudaGraphBackend:
    """As SGLang's: graphs by key, here what they take."""

    def __init__(self, shape: Shape, share: float) -> None:
        self._graphs = {Key(size): OF_GRAPHS * share * milliseconds(shape, size) for size in SIZES}

    def replay(self, key: Key, batch: None) -> None:
        Event.queue(self._graphs[key])


def state_of(shape: Shape) -> Any:
    """Its draft, its verification, its catching up."""
    shares = (0.2, 0.6, 0.2) if shape.drafts else (None, 1.0, None)
    draft, target, extend = (
        None if share is None else SimpleNamespace(backend=FullCudaGraphBackend(shape, share), capture_bs=SIZES)
        for share in shares
    )
    return SimpleNamespace(
        speculative_num_steps=shape.steps,
        speculative_num_draft_tokens=shape.tokens,
        cuda_graph_runner=draft,
        target_graph_runner=target,
        cuda_graph_runner_for_draft_extend=extend,
        target_attn_backend=None,
        draft_attn_backend=None,
        draft_extend_attn_backend=None,
    )


class SglangsWorker:
    """What our worker calls of SGLang's, and is called by."""

    def __init__(self, server_args: Any) -> None:
        largest, self.batch = SHAPES[-1], server_args.batch
        self.device, self.topk = NAME, largest.top_k
        self.speculative_num_steps, self.speculative_num_draft_tokens = largest.steps, largest.tokens
        self._draft_worker = Drafting(largest, SHAPES, Inputs.drawn(self.batch, largest, 0), NAME).worker
        self.req_to_token_pool = SimpleNamespace(req_to_token=None)
        self.served: Counter[Shape] = Counter()
        self.passes = 0  # of the draft over what it missed

    def init_cuda_graphs(self) -> None:
        inputs = {shape: Inputs.drawn(self.batch, shape, 0) for shape in SHAPES if shape.drafts}
        self.drafting = {shape: Drafting(shape, SHAPES, drawn, NAME) for shape, drawn in inputs.items()}
        self._draft_worker.draft_runner = SimpleNamespace(forward=self._took_in)

    def _took_in(self, forward_batch: Any) -> None:
        self.passes += 1

    def apply_runtime_state(self, state: Any) -> None:
        self.speculative_num_steps = state.speculative_num_steps
        self.speculative_num_draft_tokens = state.speculative_num_draft_tokens

    def _stub_skipped_draft_extend(self, batch: Any, output: Any) -> None:
        """Zeros in SGLang."""

    def forward_batch_generation(self, batch: Any) -> Any:
        size = len(batch.reqs)
        self.activate_step_by_batch(size)  # type: ignore[attr-defined]
        shape = Shape(self.speculative_num_steps, self.topk, self.speculative_num_draft_tokens)
        if shape.drafts and not self.served[shape]:  # once: its operations are the same at every step
            self.drafting[shape].worker.expected_SB = self._draft_worker.expected_SB
            self.drafting[shape].draft()
        Event.queue(milliseconds(shape, size))
        self.served[shape] += 1
        rows = size * shape.tokens
        output = SimpleNamespace(
            logits_output=SimpleNamespace(hidden_states=torch.zeros(rows, 3 * HIDDEN, device=NAME)),
            next_token_ids=torch.zeros(rows, dtype=torch.long, device=NAME),
        )
        if not shape.drafts and os.environ["SGLANG_SPEC_SKIP_ZERO_STEP_DRAFT_EXTEND"] == "1":
            self._stub_skipped_draft_extend(batch, output)
        return output


def _locations(**given: Any) -> torch.Tensor:
    return torch.zeros(given["batch_size"] * given["draft_token_num"], dtype=torch.long, device=NAME)


for name, value in {
    "EAGLEWorkerV2": SglangsWorker,
    "shapes_of": lambda worker, settings: SHAPES,
    "current_state": lambda worker: state_of(SHAPES[-1]),
    "build_state": lambda worker, shape, reserve: state_of(shape),
    "free_bytes": lambda worker: None,
    "attention_of_server": lambda worker: (["triton"], 1, False),
    "whole_features": lambda worker, patches: "",
    "all_ranks_agree": bool,
    "ranks": lambda: 1,
    "broadcast_choice": lambda shape, shapes: shape,
    "reports_metrics": lambda server_args: False,
    "max_requests": lambda worker: 64,
    "about": lambda worker, server_args: {"device": "pretended"},
    "_draft_parallel": lambda worker: nullcontext(),
    "speculative_moe_backend_context": nullcontext,
    "speculative_moe_a2a_backend_context": nullcontext,
    "prepare_for_draft_extend": lambda *args, **kwargs: None,
    "assign_extend_cache_locs_uniform_func": _locations,
}.items():
    setattr(compat, name, value)
ours = importlib.import_module("eagle3_sglang.worker")


class Waiting(ours.TreeWorker):  # type: ignore[misc, name-defined]
    """Fault: a step waits for the one before, to know how long it took."""

    def _measure(self, size: int, after_a_gap: bool) -> None:
        super()._measure(size, after_a_gap)
        self._clock._mark.synchronize()


class Uploading(ours.TreeWorker):  # type: ignore[misc, name-defined]
    """Fault: a copy to the device that the host waits for."""

    def activate_step_by_batch(self, batch_size: int) -> None:
        super().activate_step_by_batch(batch_size)
        torch.arange(batch_size).to(NAME)


def request(place: int) -> SimpleNamespace:
    params = SimpleNamespace(temperature=1.0, top_k=1, custom_params=None)
    return SimpleNamespace(rid=str(place), sampling_params=params, grammar=None, seqlen=9)


def serve(batch: int, steps: int, choice: str, worker_class: type = ours.TreeWorker) -> dict[str, Any]:
    """Steps of a steady batch; the device is one step behind. What made the host wait, and what the costs came to."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"EAGLE3_CHOICE": choice, "EAGLE3_PROFILE": f"{folder}/profile.json"}
        arguments = SimpleNamespace(batch=batch, speculative_draft_model_path=DRAFTER)
        worker = worker_class(arguments)
        worker.init_cuda_graphs()
        replayed = {shape: worker.costs.seconds(batch, shape) for shape in SHAPES}
        requests = SimpleNamespace(
            forward_mode=ForwardMode.DECODE,
            is_extend_in_batch=False,
            after_idle_gap=False,
            reqs=[request(place) for place in range(batch)],
            sampling_info=None,
            seq_lens=torch.full((batch,), 9, device=NAME),
            seq_lens_cpu=None,
            req_pool_indices=torch.arange(batch, device=NAME),
            device=NAME,
        )
        Crossings.reads = Crossings.uploads = Crossings.waits = 0
        for step in range(steps):
            before = Event.queued
            worker.forward_batch_generation(requests)
            Event.done = before
            if step:
                worker.on_verify_complete_cpu([1] * batch, batch)
        measured = {shape: worker.costs.seconds(batch, shape) for shape in SHAPES if worker.served[shape] > 4}
    return {
        "reads": Crossings.reads,
        "waits": Crossings.waits,
        "passes": worker.passes,
        "served": len([shape for shape in worker.served if worker.served[shape]]),
        "replayed": [replayed[shape] * 1e3 / milliseconds(shape, batch) for shape in SHAPES],
        "measured": [seconds * 1e3 / milliseconds(shape, batch) for shape, seconds in measured.items()],
    }
