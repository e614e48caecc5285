"""What building the trees' states takes is told and bounded, and one reserve of memory serves them all."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from eagle3_sglang import compat_graphs
from eagle3_sglang.reserve import LEAST_BYTES, Reserve
from eagle3_sglang.states import GIB, Limits, build_states

from eagle3_serving.serve.shape import Shape

NOTHING, CHAIN, SMALL, LARGE = SHAPES = (Shape(0, 4, 1), Shape(3, 4, 4), Shape(3, 4, 6), Shape(5, 4, 12))
AMPLE = Limits(8.0, 180.0)


class Device:
    """Memory that a state of so many tokens takes as many half GiB of."""

    def __init__(self, gib: float) -> None:
        self.free = int(gib * GIB)
        self.built: list[Shape] = []

    def build(self, shape: Shape) -> str:
        if self.free < shape.tokens * GIB // 2:
            raise Exception("Capture cuda graph failed: CUDA out of memory. Tried to allocate")
        self.free -= shape.tokens * GIB // 2
        self.built.append(shape)
        return f"state of {shape}"


def test_all_are_built_the_smallest_first_and_told() -> None:
    device = Device(80)
    built = build_states(reversed(SHAPES), device.build, lambda: device.free, Limits(100.0, 180.0))
    assert device.built == list(SHAPES) and list(built.states) == list(SHAPES)
    assert built.gib == pytest.approx(sum(shape.tokens for shape in SHAPES) / 2)
    assert "4 states built in" in built.line() and "11.50 GiB" in built.line()


@pytest.mark.parametrize(
    ("free", "limits", "why"),
    [
        (80, Limits(4.0, 180.0), "EAGLE3_GRAPH_GB=4 would be passed"),
        (7, Limits(100.0, 180.0), "GiB of memory are free"),
        (9.6, Limits(100.0, 180.0), "the memory does not hold it"),
        (80, Limits(100.0, 0.0), "EAGLE3_GRAPH_SECONDS=0 would be passed"),
    ],
)
def test_what_passes_a_bound_is_left_out_and_the_rest_is_served(free: float, limits: Limits, why: str) -> None:
    device = Device(free)
    built = build_states(SHAPES, device.build, lambda: device.free, limits)
    assert NOTHING in built.states and LARGE in built.left_out
    assert f"{LARGE} is left out: " in built.line() and why in built.line()
    assert set(built.states) | set(built.left_out) == set(SHAPES)


def test_without_the_state_that_drafts_nothing_nothing_is_served() -> None:
    device = Device(0)
    with pytest.raises(Exception, match="out of memory"):
        build_states(SHAPES, device.build, lambda: device.free, AMPLE)


def test_another_error_of_a_capture_is_not_taken_for_lack_of_memory() -> None:
    def build(shape: Shape) -> str:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        build_states((SMALL,), build, lambda: None, AMPLE)


def test_ranks_agree_on_what_is_served() -> None:
    asked: list[bool] = []

    def agree(yes: bool) -> bool:
        asked.append(yes)
        return yes and len(asked) != 5  # another rank has no room for the third

    built = build_states(SHAPES, lambda shape: shape, lambda: None, AMPLE, agree)
    assert set(built.left_out) == {SMALL} and len(asked) == 7


# ---- the reserve

SHAPE = (3, LEAST_BYTES // 4)


def planned(reserve: Reserve, make: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    with reserve.state(), reserve.allocating():
        return make()


def test_states_lie_in_the_same_memory_and_one_states_tensors_do_not() -> None:
    reserve = Reserve()
    made = [planned(reserve, lambda: [torch.zeros(SHAPE), torch.full(SHAPE, 7), torch.ones(8)]) for _ in range(3)]
    places = [[tensor.data_ptr() for tensor in state] for state in made]
    assert places[1][:2] == places[2][:2] == places[0][:2] and places[0][0] != places[0][1]
    assert reserve.saved == 2 * (made[0][0].nbytes + made[0][1].nbytes)
    # what is small may hold what is written once: it is each state's own
    assert len({state[2] for state in places}) == 3
    # made as if alone, whatever stood there
    made[0][0].fill_(5)
    again = planned(reserve, lambda: [torch.zeros(SHAPE, dtype=torch.int32), torch.full(SHAPE, fill_value=9)])
    assert again[0].dtype == torch.int32 and int(again[0].abs().max()) == 0
    assert again[1].dtype == torch.int64 and bool((again[1] == 9).all())


def test_a_smaller_state_fits_into_what_a_larger_one_left() -> None:
    seed = torch.zeros(4 * LEAST_BYTES, dtype=torch.uint8)
    reserve = Reserve([seed, torch.zeros(8)])
    [mask] = planned(reserve, lambda: [torch.zeros(2 * LEAST_BYTES, dtype=torch.bool)])
    assert mask.data_ptr() == seed.data_ptr() and reserve.saved == 2 * LEAST_BYTES
    [larger] = planned(reserve, lambda: [torch.zeros(8 * LEAST_BYTES, dtype=torch.bool)])
    assert larger.data_ptr() != seed.data_ptr() and larger.numel() == 8 * LEAST_BYTES


def test_outside_of_a_plan_tensors_are_their_own() -> None:
    reserve = Reserve([torch.zeros(SHAPE)])
    with reserve.state():
        torch.zeros(SHAPE)
    assert reserve.saved == 0


# ---- SGLang's attention backends, stood in for


class Backend:
    """As SGLang's: what its graphs are planned into is made in one method."""

    def __init__(self, workspace: bool = False) -> None:
        self.workspace = workspace
        self.req_to_token = torch.zeros(SHAPE)  # not its own: never shared
        self._verify_mask: object = None

    def init_cuda_graph_state(self, width: int, kv_indices_buf: torch.Tensor | None = None) -> None:
        self.cuda_graph_kv_indices = torch.zeros(width, dtype=torch.int64) if kv_indices_buf is None else kv_indices_buf
        self._verify_mask = SimpleNamespace(buffer=torch.zeros(width, dtype=torch.bool))
        self.cuda_graph_small = torch.zeros(16)


class MultiStepBackend:
    def __init__(self, steps: int) -> None:
        self.attn_backends = [Backend() for _ in range(steps - 1)]

    def init_cuda_graph_state(self, width: int) -> None:
        self.cuda_graph_kv_indices = torch.zeros((len(self.attn_backends), width), dtype=torch.int64)
        for place, backend in enumerate(self.attn_backends):
            backend.init_cuda_graph_state(width, self.cuda_graph_kv_indices[place])


class Runner:
    def _get_attention_backend(self, init_new_workspace: bool = False) -> Backend:
        return Backend(init_new_workspace)


def state_of(runner: Runner, steps: int, width: int) -> SimpleNamespace:
    state = SimpleNamespace(
        target_attn_backend=runner._get_attention_backend(init_new_workspace=True),
        draft_attn_backend=MultiStepBackend(steps),
        draft_extend_attn_backend=Backend(),
    )
    for backend in (state.draft_attn_backend, state.draft_extend_attn_backend, state.target_attn_backend):
        backend.init_cuda_graph_state(width)
    return state


def test_a_states_backends_plan_into_what_the_largest_states_have() -> None:
    runner, plan = Runner(), Backend.init_cuda_graph_state
    given = state_of(runner, 5, LEAST_BYTES)
    seeds = compat_graphs.graph_buffers(given)
    assert not {given.target_attn_backend.req_to_token.data_ptr()} & {seed.data_ptr() for seed in seeds}
    reserve = Reserve(seeds)
    with compat_graphs.sharing(given, runner, reserve):
        smaller = state_of(runner, 3, LEAST_BYTES // 2)
    assert not smaller.target_attn_backend.workspace and given.target_attn_backend.workspace
    theirs = {
        one.untyped_storage().data_ptr() for one in compat_graphs.graph_buffers(smaller) if one.nbytes >= LEAST_BYTES
    }
    assert len(theirs) >= 3 and theirs <= {seed.untyped_storage().data_ptr() for seed in seeds}
    assert (
        smaller.target_attn_backend.cuda_graph_small.data_ptr() != given.target_attn_backend.cuda_graph_small.data_ptr()
    )
    # within one state nothing lies on another's place
    spans = sorted(
        (one.data_ptr(), one.data_ptr() + one.nbytes)
        for one in compat_graphs.graph_buffers(smaller)
        if one.nbytes >= LEAST_BYTES
    )
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    # and afterwards SGLang's classes are as they were
    assert Backend.init_cuda_graph_state is plan and "_get_attention_backend" not in vars(runner)
    assert state_of(runner, 3, 64).target_attn_backend.workspace


def test_graphs_that_cannot_be_replayed_are_not_known() -> None:
    class BreakableCudaGraphBackend:
        """Its segments need the batch that the eager parts between them read."""

    state = SimpleNamespace(
        speculative_num_steps=1,
        cuda_graph_runner=None,
        target_graph_runner=SimpleNamespace(backend=BreakableCudaGraphBackend(), capture_bs=[4, 1]),
        cuda_graph_runner_for_draft_extend=None,
    )
    assert compat_graphs.replays(state) == [] and compat_graphs.captured_sizes(state) == [1, 4]
    state.target_graph_runner = None
    assert compat_graphs.captured_sizes(state) == []
