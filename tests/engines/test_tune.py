"""`eagle3 tune` on the real engines, as small as it can be, over a target that steps in milliseconds: the profile it writes, and
what it says."""

from pathlib import Path

import pytest
from eagle3_sglang.settings import DEFAULT_TREES, read_trees
from eagle3_vllm.schedule import Profile

from benchmarks.small_pair import save_spelling_pair
from eagle3_serving.cli.main import main
from eagle3_serving.errors import InputError
from eagle3_serving.serve.sglang import sglang_python
from eagle3_serving.tune.sglang import read_costs
from eagle3_serving.tune.traffic import write_prompts
from tests.json_contract import contract

TOKENS = 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_spelling_pair(tmp_path_factory.mktemp("pair"))


def tune(
    engine: str, target: Path, drafter: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> dict[str, object]:
    write_prompts(folder / "traffic.jsonl", ["Name three colours.", "Write a Python loop that prints 1 to 9."])
    argv = ["tune", "--engine", engine, "--target", target, "--drafter", drafter, "--out", folder / "p.json"]
    argv += ["--traffic", folder / "traffic.jsonl", "--concurrency", "1,2", "--tokens", TOKENS, "--limit", "2"]
    assert main([*map(str, argv), "--repeats", "1", "--json"]) == 0
    said: dict[str, object] = contract("tune", capfd.readouterr().out)
    loads = said["loads"]
    assert isinstance(loads, list) and [one["concurrency"] for one in loads] == [1, 2]
    assert all(0.1 < one["speedup"] < 10 and one["plain_tokens_per_second"] > 0 for one in loads)
    return said


@pytest.mark.engine
def test_vllm(pair: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vllm")
    said = tune("vllm", *pair, tmp_path, capfd)
    profile = Profile.read(tmp_path / "p.json")
    assert set(profile.step_seconds) == {1, 2} and all(
        set(row) == {0, 1, 2, 3, 4} for row in profile.step_seconds.values()
    )
    assert len(profile.watched) == 2
    # every token of both answers: the prefill's, and each step's own beside the drafts it accepted
    assert all(1 + sum(1 + n for n in one.accepted) == TOKENS for one in profile.watched)
    commands = said["commands"]
    assert isinstance(commands, dict) and f"EAGLE3_PROFILE={tmp_path / 'p.json'}" in commands["on"]
    assert "vllm serve" in commands["off"] and "speculative" not in commands["off"]


@pytest.mark.engine
def test_sglang(pair: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        sglang_python()
    except InputError as error:
        pytest.skip(str(error))
    said = tune("sglang", *pair, tmp_path, capfd)
    costs, about = read_costs(tmp_path / "p.json")
    assert set(costs.shapes) == set(read_trees(DEFAULT_TREES))
    assert all(costs.measured(load) == set(costs.shapes) for load in (1, 2))
    assert about["target"] == str(pair[0])
    commands = said["commands"]
    assert isinstance(commands, dict) and "python -m sglang.launch_server" in commands["on"]
