"""What a first H100 broke in the kit, as far as a CPU can show it."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import child, correctness
from benchmarks.gpu.graphs import GraphedTarget
from benchmarks.gpu.prepare import TOOLS
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.shapes import TINY, random_target
from benchmarks.gpu.timing import first_line

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch, nodes", [(1, 6), (5, 17), (16, 60)])
def test_no_two_drafted_nodes_tie(batch: int, nodes: int) -> None:
    # CUDA's topk may break a tie otherwise than the CPU's, and neither is wrong
    scores_BC = correctness.tree_work(CPU, 0, batch, nodes)["expanded"].scores_BC
    for scores_C in scores_BC:
        assert len(scores_C.unique()) == len(scores_C)


def test_the_marked_tests_are_not_the_kit_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "3 passed in 1s\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert correctness.marked_tests(Settings(device="cpu", tiny=True))["ok"]
    files = [Path(part) for part in commands[0] if part.endswith(".py")]
    assert files
    assert not [path for path in files if {"engines", "gpu"} & set(path.relative_to(correctness.ROOT / "tests").parts)]


def test_dropped_graphs_leave_at_once_and_take_their_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    target = GraphedTarget(random_target(TINY, CPU, torch.float32))
    pool = target.new_pool(1, 4)
    plan = correctness.plan_rows(0, [0], [1], CPU)
    target.forward(torch.tensor([1]), torch.tensor([0]), pool, plan)
    (one,) = target.passes.values()
    gone = weakref.ref(one)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "another pool")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    target.memory = "the first pool"
    del one
    gc.disable()
    try:
        target.drop()
        assert gone() is None and target.memory == "another pool"
    finally:
        gc.enable()


def test_an_error_without_a_common_kind_is_one_line() -> None:
    class PTXASError(Exception):  # as Triton's are
        pass

    assert first_line(PTXASError("ptxas failed\nthe rest")) == "PTXASError: ptxas failed"
    assert first_line(KeyError()) == "KeyError: no word"


def test_no_step_asks_cudnn_for_attention(tmp_path: Path) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    Settings(device="cpu", tiny=True).save(tmp_path / "settings.json")
    try:
        assert child.main(["probe", "--out", str(tmp_path)]) == 0
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_the_engines_steps_need_neither_openai_nor_blake3(tmp_path: Path) -> None:
    # an engine's own folder brings what the engine needs; the steps themselves run beside it
    code = """if True:
        import sys
        sys.modules.update(openai=None, blake3=None)
        from pathlib import Path
        from benchmarks.gpu import sglang_step, vllm_step
        from benchmarks.gpu.live.pairs import pairs
        from benchmarks.gpu.settings import Settings
        settings = Settings(device="cpu", tiny=True)
        made = pairs(settings, Path(sys.argv[1]))
        for step in (vllm_step, sglang_step):
            print(len([step.contenders(pair, settings) for pair in made]))
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=correctness.ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "2"], done.stderr


def test_what_a_bare_machine_lacks_travels() -> None:
    assert any(wheel.startswith("blake3==") for wheel in TOOLS)
