import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from eagle3_serving.errors import InputError
from eagle3_serving.eval.counters import SpecCounters
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.report import print_report
from eagle3_serving.eval.rounds import Round, summarise
from eagle3_serving.eval.vllm import run_vllm, server_of
from eagle3_serving.serve.vllm import vllm_environment

OPTIONS = EvalOptions("vllm", Path("target"), Path("drafter"), (Path("p.jsonl"),), k=2, repeats=3)


def a_round(plain_s: float, spec_s: float, counters: SpecCounters, identical: bool = True) -> Round:
    return Round(100, plain_s, 100, spec_s, identical, counters)


ROUNDS = {
    "chat": [a_round(s, 5.0, SpecCounters(50, 100, 50, (40, 10))) for s in (10.0, 8.0, 12.5)],
    "code": [a_round(10.0, 2.5, SpecCounters(25, 50, 75, (25, 50)))] * 3,
}


def test_the_json_contract() -> None:
    value = json.loads(json.dumps(summarise(OPTIONS, {"chat": 4, "code": 4}, ROUNDS).to_json()))
    figures = {
        "identical",
        "accepted_length",
        "speedup",
        "tokens_per_second",
        "plain_tokens_per_second",
        "acceptance_by_position",
    }
    assert figures | {"engine", "mode", "batch", "dtype", "temperature", "families"} <= set(value)
    assert figures <= set(value["families"]["chat"])
    chat = value["families"]["chat"]
    assert chat["plain_tokens_per_second"] == 10.0
    assert chat["plain_tokens_per_second_range"] == [8.0, 12.5]
    assert chat["speedup"] == 2.0
    assert chat["accepted_length"] == 2.0
    assert chat["acceptance_by_position"] == [0.8, 0.2]
    assert value["speedup"] == pytest.approx(20.0 / 7.5, abs=1e-3)
    assert value["accepted_length"] == pytest.approx((125 + 75) / 75, abs=1e-3)
    assert value["prompts"] == 8


def test_identity_is_only_claimed_where_it_can_be() -> None:
    rounds = {"chat": [a_round(1.0, 1.0, SpecCounters(), identical=False)]}
    assert summarise(OPTIONS, {"chat": 1}, rounds).overall.identical is False
    embedded = replace(OPTIONS, engine="embedded", temperature=0.7)  # where the noise is known: both sides draw by it
    assert summarise(embedded, {"chat": 1}, rounds).overall.identical is False
    drawn = replace(embedded, proposals="drawn")
    for other in (replace(OPTIONS, dtype="bf16"), replace(OPTIONS, temperature=0.7), drawn):
        assert summarise(other, {"chat": 1}, rounds).overall.identical is None


def test_a_round_sees_a_differing_token() -> None:
    current = Round()
    current.add([(1, 2)], 0.2, [(1, 2)], 0.1)
    assert current.identical
    current.add([(1, 2)], 0.2, [(1, 3)], 0.1)
    assert not current.identical
    assert (current.plain_tokens, current.tokens) == (4, 4)


def test_accepted_length_is_told_by_stretch_of_text() -> None:
    short, long = (a_round(1.0, 1.0, SpecCounters(3, 9, 3, (2, 1))) for _ in range(2))
    short.context.place(506, (3, 1, 0))  # passes behind 506, 510 and 512 tokens
    long.context.place(600, (0, 2))
    long.context.place(4095, (1, 4))
    report = summarise(replace(OPTIONS, engine="embedded", mode="tree"), {"a": 1}, {"a": [short, long]})
    assert report.overall.accepted_length_by_text == {0: 3.0, 512: 1 + 2 / 3, 2048: 2.0, 4096: 5.0}
    assert report.to_json()["accepted_length_by_text"] == {"0": 3.0, "512": 1.667, "2048": 2.0, "4096": 5.0}
    text = io.StringIO()
    print_report(report, Console(file=text, width=40))
    assert "by tokens of context  0-512: 3.00  512-1K: 1.67  2K-4K: 2.00  4K-8K: 5.00" in text.getvalue()


def test_nothing_drafted_is_one_token_a_pass() -> None:
    assert SpecCounters().accepted_length == 1.0


def test_the_table_shows_every_family() -> None:
    text = io.StringIO()
    print_report(summarise(OPTIONS, {"chat": 4, "code": 4}, ROUNDS), Console(file=text, width=120))
    assert all(word in text.getvalue() for word in ("chat", "code", "all", "2.00x", "yes"))


@pytest.mark.parametrize(("mode", "why"), [("plain", "nothing to compare"), ("auto", "--profile")])
def test_a_mode_that_vllm_has_not_is_refused_before_anything_starts(mode: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        run_vllm(replace(OPTIONS, mode=mode))


def test_a_tree_on_vllm_is_asked_for_by_nodes_depth_and_children() -> None:
    server = server_of(replace(OPTIONS, mode="tree", nodes=24, depth=6, top_k=4))
    environment = vllm_environment(server)
    assert (server.k, environment["EAGLE3_TREE_DEPTH"], environment["EAGLE3_TREE_TOP_K"]) == (24, "6", "4")
    assert vllm_environment(server_of(OPTIONS))["EAGLE3_MODE"] == "chain"


@pytest.mark.parametrize("name", ["k", "batch", "max_tokens", "repeats", "limit"])
def test_an_option_below_one_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is 0"):
        EvalOptions("vllm", Path(), Path(), (), **{name: 0})  # type: ignore[arg-type]
