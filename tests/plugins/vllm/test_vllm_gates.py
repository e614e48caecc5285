"""Gates of single requests in vLLM's scheduler, stood in for: who is drafted, with how many rows, and what is counted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from eagle3_vllm.compat import CUDAGraphMode, SamplingParams, VLLMValidationError
from eagle3_vllm.gates import Gating, check, plain_steps, uniform_graphs
from eagle3_vllm.metrics import FOLDER, TreeCollector, read_closed
from eagle3_vllm.settings import Settings, parse_trees

from eagle3_serving.serve.gates import LOOK, PATIENCE, TRIES, Gates

WIDTH = 4


class Requests:
    """A scheduler's, by name; drafts are placeholders, as where scheduling does not wait for them."""

    num_spec_tokens = WIDTH

    def __init__(self, **asked: dict[str, Any] | None) -> None:
        self.requests = {name: self.request(fields) for name, fields in asked.items()}
        self.known: set[str] = set()

    def request(self, fields: dict[str, Any] | None) -> Any:
        params = SamplingParams(temperature=0, extra_args=fields)
        return SimpleNamespace(
            sampling_params=params,
            use_structured_output=False,
            num_tokens=10,
            is_prefill_chunk=False,
            spec_token_ids=[-1] * WIDTH,
        )

    def step(self, gating: Gating) -> int:
        for request in self.requests.values():
            request.spec_token_ids = [-1] * WIDTH
        output = SimpleNamespace(
            num_scheduled_tokens=dict.fromkeys(self.requests, 1),
            num_spec_tokens_to_schedule=WIDTH,
            scheduled_new_reqs=[SimpleNamespace(req_id=name) for name in self.requests if name not in self.known],
            finished_req_ids=self.known - set(self.requests),
        )
        self.known = set(self.requests)
        gating.scheduled(output)
        return int(output.num_spec_tokens_to_schedule)

    def drafts(self) -> dict[str, int]:
        return {name: len(request.spec_token_ids) for name, request in self.requests.items()}


MIXED: dict[str, dict[str, Any] | None] = {"off": {"eagle3": "off"}, "few": {"eagle3_draft_tokens": 2}, "on": None}


def test_each_has_its_own_number_of_drafts() -> None:
    batch = Requests(**MIXED)
    gating = Gating(batch, Gates(), uniform=False)
    assert batch.step(gating) == WIDTH
    assert batch.drafts() == {"off": 0, "few": 2, "on": WIDTH}
    assert gating.tally.closed == {"request own": 1}


def test_in_a_graph_of_one_width_a_closed_one_keeps_its_rows_among_open_ones() -> None:
    batch = Requests(**MIXED)
    gating = Gating(batch, Gates(), uniform=True)
    assert batch.step(gating) == WIDTH
    assert set(batch.drafts().values()) == {WIDTH}
    assert gating.tally.closed == {"request kept": 1}


@pytest.mark.parametrize("uniform", [False, True])
def test_where_all_are_closed_no_draft_is_asked_for(uniform: bool) -> None:
    batch = Requests(a={"eagle3": "off"}, b={"eagle3": 0})
    assert batch.step(Gating(batch, Gates(), uniform)) == 0
    assert batch.drafts() == {"a": 0, "b": 0}


def test_ranks_of_data_parallelism_draft_together() -> None:
    batch = Requests(a={"eagle3": "off"})
    assert batch.step(Gating(batch, Gates(), uniform=False, alone=False)) == WIDTH
    assert batch.drafts() == {"a": 0}


def test_drafts_that_arrive_after_the_step_are_cut_too() -> None:
    batch = Requests(**MIXED)
    gating = Gating(batch, Gates(), uniform=False)
    batch.step(gating)
    for request in batch.requests.values():
        request.spec_token_ids = [7] * WIDTH
    del batch.requests["on"]  # ended meanwhile
    gating.trim()
    assert batch.drafts() == {"off": 0, "few": 2}


def test_a_prompt_that_is_not_whole_is_not_asked() -> None:
    batch = Requests(a={"eagle3": "off"}, b={"eagle3": "off"})
    batch.requests["a"].is_prefill_chunk = True
    gating = Gating(batch, Gates(), uniform=False)
    assert batch.step(gating) == 0
    assert gating.tally.closed == {"request own": 1}
    batch.requests["b"].is_prefill_chunk = True
    assert batch.step(gating) == WIDTH


def test_who_gains_nothing_is_let_go() -> None:
    batch = Requests(a=None, b=None)
    gating = Gating(batch, Gates(accepted=0.1), uniform=False)
    for _ in range(TRIES):
        assert batch.step(gating) == WIDTH
        gating.verified("a", 0)
        gating.verified("b", 1)
        gating.verified("gone", 0)
    assert batch.step(gating) == WIDTH
    assert batch.drafts() == {"a": 0, "b": WIDTH} and gating.tally.closed == {"accepted own": 1}


def test_who_gains_again_is_drafted_on() -> None:
    batch = Requests(a=None, b=None)
    gating = Gating(batch, Gates(accepted=0.1), uniform=False)
    drafted = []
    for _ in range(TRIES + PATIENCE + LOOK + 2):
        batch.step(gating)
        drafted.append(batch.drafts()["a"])
        if drafted[-1]:
            gating.verified("a", 0 if len(drafted) <= TRIES else WIDTH)
    assert drafted == [WIDTH] * TRIES + [0] * PATIENCE + [WIDTH] * (LOOK + 2)


@pytest.mark.parametrize("grown", [1, 2, WIDTH + 1])
def test_the_bound_of_context_holds_from_the_step_that_reaches_it(grown: int) -> None:
    batch = Requests(a=None, b=None)
    gating = Gating(batch, Gates(context=50), uniform=False)
    for _ in range(60):
        batch.step(gating)
        assert batch.drafts() == {"a": 0 if batch.requests["a"].num_tokens >= 50 else WIDTH, "b": WIDTH}
        batch.requests["a"].num_tokens += grown


def test_a_step_looks_at_no_request_that_is_drafted_as_all_are() -> None:
    """Sixty-four in flight, with each kind of gate: nothing is looked up once they are known."""

    class Counted(dict[str, Any]):
        asked = 0

        def get(self, name: str, default: Any = None) -> Any:
            self.asked += 1
            return super().get(name, default)

        def __getitem__(self, name: str) -> Any:
            self.asked += 1
            return super().__getitem__(name)

    batch = Requests(**{str(n): None for n in range(64)})
    batch.requests = Counted(batch.requests)
    gating = Gating(batch, Gates(context=100_000, accepted=0.1), uniform=False)
    batch.step(gating)
    assert batch.requests.asked == 64
    for _ in range(100):
        batch.step(gating)
    assert batch.requests.asked == 64
    for name in list(batch.requests):
        del batch.requests[name]
    batch.requests["0"] = batch.request({"eagle3": "off"})  # another of a name that was there
    batch.known.clear()
    assert batch.step(gating) == 0


def test_a_request_that_ended_is_forgotten() -> None:
    batch = Requests(off={"eagle3": "off"}, on=None)
    gating = Gating(batch, Gates(), uniform=False)
    batch.step(gating)
    del batch.requests["off"]
    batch.step(gating)
    batch.requests["off"] = batch.request(None)
    assert batch.step(gating) == WIDTH and batch.drafts() == {"off": WIDTH, "on": WIDTH}


def test_what_cannot_be_meant_is_an_error_of_the_request() -> None:
    with pytest.raises(VLLMValidationError, match="^eagle3 is 'maybe': on or off$"):  # HTTP 400; a ValueError is 500
        check(SamplingParams(extra_args={"eagle3": "maybe"}))
    check(SamplingParams(extra_args={"theirs": "maybe"}))


@pytest.mark.parametrize(
    ("mode", "budget", "uniform"),
    [
        (CUDAGraphMode.NONE, None, False),
        (CUDAGraphMode.PIECEWISE, None, False),
        (CUDAGraphMode.FULL_AND_PIECEWISE, None, True),
        (CUDAGraphMode.FULL_DECODE_ONLY, None, True),
        (CUDAGraphMode.FULL, None, False),
        (CUDAGraphMode.FULL_AND_PIECEWISE, 48, False),
    ],
)
def test_which_graphs_have_one_width(mode: Any, budget: int | None, uniform: bool) -> None:
    config = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_mode=mode))
    assert uniform_graphs(config, Settings(batch_nodes=budget)) is uniform


def test_a_plain_step_is_as_well_served_where_there_is_a_graph_of_it_or_none_at_all() -> None:
    none, drafts, both = (SimpleNamespace(dynamic_sd_lookup=lookup) for lookup in (None, [0, 3, 3], [0, 3, 0]))
    assert plain_steps(none, Settings(), uniform=False)
    assert not plain_steps(none, Settings(), uniform=True) and not plain_steps(drafts, Settings(), uniform=True)
    assert plain_steps(both, Settings(), uniform=True)
    assert plain_steps(none, Settings(trees=parse_trees("0;3,1,4")), uniform=True)


def test_the_endpoint_shows_what_was_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    batch = Requests(**MIXED)
    gating = Gating(batch, Gates(), uniform=False)
    batch.step(gating)
    batch.step(gating)
    gating.tally.write()
    assert read_closed(tmp_path) == {"request own": 2}
    [family] = [family for family in TreeCollector(tmp_path).collect() if family.name == "vllm:eagle3_gated_steps"]
    [sample] = family.samples
    assert (sample.labels, sample.value) == ({"reason": "request", "rows": "own"}, 2)
