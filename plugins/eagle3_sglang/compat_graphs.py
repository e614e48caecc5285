"""The private names of SGLang's CUDA graphs and of what they are planned into; it imports nothing of SGLang."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from eagle3_sglang.reserve import Reserve

_PLAN = "init_cuda_graph_state"  # where an attention backend makes the buffers that its graphs are planned into


def attention_backends(state: Any) -> list[Any]:
    """Those of a state; of a draft of several steps each step's."""
    found = [state.target_attn_backend, state.draft_extend_attn_backend, state.draft_attn_backend]
    found += getattr(state.draft_attn_backend, "attn_backends", [])
    return [backend for backend in found if backend is not None]


def graph_buffers(state: Any) -> list[Tensor]:
    """What a state's graphs are planned into, as far as it can be told by name; each once."""
    found: list[Tensor] = []
    for backend in attention_backends(state):
        for name, value in vars(backend).items():
            if name.startswith("cuda_graph_"):
                found += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Tensor)]
            elif name.endswith("verify_mask") and isinstance(buffer := getattr(value, "buffer", None), Tensor):
                found.append(buffer)
    # a step's slice of another's buffer is none of its own
    return list({one.untyped_storage().data_ptr(): one for one in sorted(found, key=lambda one: one.nbytes)}.values())


@contextmanager
def sharing(state: Any, runner: Any, reserve: Reserve) -> Iterator[None]:
    """Inside, attention backends of the classes of `state` plan their graphs into the reserve, and those that the target's
    `runner` makes have one workspace."""
    inside = [False]
    classes = {cls for backend in attention_backends(state) for cls in type(backend).__mro__ if _PLAN in vars(cls)}
    before = {cls: vars(cls)[_PLAN] for cls in classes}

    def planned(plan: Callable[..., Any]) -> Callable[..., Any]:
        def into_the_reserve(*args: Any, **kwargs: Any) -> Any:
            if inside[0]:
                return plan(*args, **kwargs)
            inside[0] = True
            try:
                with reserve.allocating():
                    return plan(*args, **kwargs)
            finally:
                inside[0] = False

        return into_the_reserve

    for cls, plan in before.items():
        setattr(cls, _PLAN, planned(plan))
    # SGLang asks for a new workspace a state; states step one at a time, as do the phases that share one anyway
    make = runner._get_attention_backend
    runner._get_attention_backend = lambda init_new_workspace=False: make()
    try:
        with reserve.state():
            yield
    finally:
        del runner._get_attention_backend
        for cls, plan in before.items():
            setattr(cls, _PLAN, plan)


def captured_sizes(state: Any) -> list[int]:
    """Batch sizes that CUDA graphs were captured at; [] where none were."""
    return sorted(getattr(state.target_graph_runner, "capture_bs", None) or [])


def replays(state: Any) -> list[dict[int, Callable[[], Any]]]:
    """What replays each of a state's graphs, by batch size; [] where that cannot be done."""
    # a step that drafts nothing lets nothing catch up
    catching_up = state.cuda_graph_runner_for_draft_extend if state.speculative_num_steps else None
    found: list[dict[int, Callable[[], Any]]] = []
    for runner in (state.cuda_graph_runner, state.target_graph_runner, catching_up):
        if runner is None:
            continue
        if type(runner.backend).__name__ != "FullCudaGraphBackend":
            return []
        found.append({key.size: partial(runner.backend.replay, key, None) for key in runner.backend._graphs})
    return found
