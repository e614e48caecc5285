"""From profiles that are made up and known to advice and commands."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from eagle3_sglang.costs import StepCosts
from eagle3_vllm.schedule import Profile, Watched

from eagle3_serving.cli.main import main
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.serve.server import ServerCommand
from eagle3_serving.serve.shape import Shape
from eagle3_serving.tune import sglang, vllm
from eagle3_serving.tune.advice import NO_DRAFT, Advice, shell_line
from eagle3_serving.tune.child import run_child
from eagle3_serving.tune.options import TuneOptions
from eagle3_serving.tune.traffic import OURS, traffic_prompts

TOKENS = 61
# one token more a step always comes; alone it is free, at 8 it costs all it gains and more
PROFILE = Profile(
    (1.0, 0.0),
    {1: {0: 1.0, 1: 1.0, 2: 1.5}, 8: {0: 2.0, 1: 5.0, 2: 8.0}},
    {"idle_drafter": {"1": 1.0, "8": 0.8}},
    {"plain": (2.0, 0.5), "drafting": (4.0, 1.0)},
    (Watched(2, (1,) * 30),),
)


def test_vllm_alone_is_told_to_use_it_and_a_full_batch_to_leave_it() -> None:
    alone, full = (vllm.advise(PROFILE, load, TOKENS, least=1) for load in (1, 8))
    assert alone.plain_tokens_per_second == pytest.approx(61 / (3 + 60))
    assert alone.tokens_per_second == pytest.approx(61 / (6 + 30))
    assert alone.pays and alone.setting == "1 draft token" and alone.accepted_length == 2.0
    # drafting nothing, the drafter still costs: a plain server is the better one
    assert full.speedup == pytest.approx((2 + 8 + 60 * 2.0) / (4 + 16 + 60 * 2.5))
    assert not full.pays and full.setting == "no draft"
    assert "2000.0 ms plain, 5000.0 ms with 1 draft token for 2.00 tokens" in full.why


def test_a_gain_without_a_draft_is_noise() -> None:
    drafting = Advice(16, 100.0, 109.0, "1 draft token", 1.4, "")
    assert drafting.pays and not replace(drafting, setting=NO_DRAFT).pays


def test_what_a_server_adds_to_a_step_counts_for_both_sides() -> None:
    measured = 61 / (3 + 60 + 61)  # a second more a token
    told = vllm.advise(PROFILE, 1, TOKENS, least=1, measured=measured)
    assert told.plain_tokens_per_second == pytest.approx(61 / (3 + 60 * 2))
    assert told.tokens_per_second == pytest.approx(61 / (6 + 30 * 2))


def test_a_server_faster_than_the_profile_changes_no_ratio() -> None:
    assert vllm.advise(PROFILE, 1, TOKENS, 1, measured=100.0).speedup == vllm.advise(PROFILE, 1, TOKENS, 1).speedup


def test_a_profile_with_all_of_it_reads_as_it_was_written(tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "p.json")
    assert Profile.read(tmp_path / "p.json") == PROFILE


NOTHING, SMALL, LARGE = Shape(0, 4, 1), Shape(1, 4, 3), Shape(3, 4, 6)
METRICS = """# TYPE eagle3:verified_requests counter
eagle3:verified_requests_total{steps="0",tokens="1",top_k="4"} 10.0
eagle3:verified_requests_total{steps="1",tokens="3",top_k="4"} 40.0
eagle3:accepted_tokens_total{steps="1",tokens="3",top_k="4"} 20.0
eagle3:accepted_tokens_total{steps="3",tokens="6",top_k="4"} 30.0
eagle3:verified_requests_total{steps="3",tokens="6",top_k="4"} 30.0
eagle3:accepted_length 1.5
sglang:num_requests_total{model="m"} 7.0
"""


def costs() -> StepCosts:
    made = StepCosts((NOTHING, SMALL, LARGE))
    for batch, seconds in {1: (1.0, 1.2, 1.25), 8: (2.0, 3.2, 6.0)}.items():
        for shape, each in zip(made.shapes, seconds, strict=True):
            made.add(batch, shape, each)
    return made


def test_acceptance_by_tree_is_read_from_the_servers_counters() -> None:
    assert sglang.read_gains(METRICS) == {NOTHING: 0.0, SMALL: 0.5, LARGE: 1.0}
    assert sglang.read_gains("") == {}


def test_sglang_takes_the_tree_that_the_plugin_would() -> None:
    gains = sglang.read_gains(METRICS)
    assert sglang.choose(costs(), gains, 1) == LARGE
    assert sglang.choose(costs(), gains, 8) == NOTHING
    assert sglang.choose(costs(), {SMALL: 0.3, LARGE: 0.29}, 1) == SMALL  # ahead by more than the margin
    assert sglang.choose(costs(), {SMALL: 0.22, LARGE: 0.0}, 1) == NOTHING  # by less


def test_sglang_is_advised_by_load() -> None:
    gains = sglang.read_gains(METRICS)
    seen = {1: sglang.Observed([61 / 70], [10.0], [1.0]), 8: sglang.Observed([8 * 61 / 120], [20.0], [1.0])}
    alone, full = (sglang.advise(costs(), gains, seen, load, TOKENS, 1) for load in (1, 8))
    assert alone.tokens_per_second == pytest.approx(61 / (10 + 30 * 1.25))
    assert alone.pays and alone.setting == "tree 3,4,6"
    assert full.tokens_per_second == pytest.approx(8 * 61 / (20 + 60 * 2.0))
    assert not full.pays and full.setting == "no draft"
    assert "2000.0 ms with no draft, 3200.0 ms with the tree 1,4,3 for 1.50 tokens" in full.why


def test_a_server_that_wrote_no_profile_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="the server wrote no profile"):
        sglang.read_costs(tmp_path / "none.json")


def test_a_command_is_as_a_person_types_it() -> None:
    argv = ["/x/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "m", "--port", "{port}"]
    said = shell_line(ServerCommand("x", argv, {"EAGLE3_PROFILE": "a b"}), "vllm")
    assert said == "EAGLE3_PROFILE='a b' vllm serve m --port 8000"
    argv = ["/x/python", "-m", "sglang.launch_server", "--model-path", "m", "--port", "{port}"]
    assert shell_line(ServerCommand("x", argv), "sglang") == "python -m sglang.launch_server --model-path m --port 8000"


def test_traffic_takes_the_families_in_turn(tmp_path: Path) -> None:
    lines = [{"id": f"{f}{n}", "family": f, "turns": [f"{f}{n}"]} for f in "ab" for n in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert traffic_prompts([tmp_path / "t.jsonl"], 4) == ["a0", "b0", "a1", "b1"]
    assert traffic_prompts([], 3) == list(OURS[:3])


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_options_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    whole = TuneOptions("vllm", model(tmp_path / "t"), model(tmp_path / "d"), tmp_path / "p.json")
    for changed, message in (
        ({"tokens": 1}, "--tokens is 1"),
        ({"concurrency": (0,)}, "--concurrency"),
        ({"drafter": tmp_path}, "drafter directory"),
        ({"engine": "x"}, "--engine x"),
    ):
        with pytest.raises(InputError, match=message):
            replace(whole, **changed)  # type: ignore[arg-type]


def test_unreadable_traffic_is_wrong_usage_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, drafter, out = model(tmp_path / "t"), model(tmp_path / "d"), tmp_path / "p.json"
    argv = ["tune", "--engine", "vllm", "--target", target, "--drafter", drafter, "--out", out, "--traffic", out]
    assert main(list(map(str, argv))) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not out.exists()


def test_a_measurement_that_fails_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckError, match="exit code 3"):
        run_child(["sh", "-c", "echo no engine >&2; exit 3"])
    assert "no engine" in capfd.readouterr().err
