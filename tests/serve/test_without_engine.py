"""Installed beside an engine that is not there: what reads entry points, and the commands, end with a line at most."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eagle3_serving.cli.main import main
from eagle3_serving.errors import InputError
from eagle3_serving.serve.sglang import sglang_python

ROOT = Path(__file__).resolve().parents[2]
# what pip and the engines do with an entry point: load it, call it
CALL = (
    "import importlib.util as u; from importlib.metadata import entry_points as e; assert u.find_spec({engine!r}) is None;"
    "[point] = e(group={group!r}, name='eagle3'); point.load()()"
)


def run(python: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EAGLE3_")}
    path = os.pathsep.join((str(ROOT), str(ROOT / "plugins")))
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, check=False, env={**clean, "PYTHONPATH": path}
    )


def python_without(engine: str) -> str:
    """SGLang's and vLLM's environments exclude each other."""
    if engine == "sglang":
        pytest.importorskip("vllm")
        return sys.executable
    try:
        return str(sglang_python())
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("engine, group", [("vllm", "vllm.general_plugins"), ("sglang", "sglang.srt.plugins")])
def test_the_entry_point_says_one_line(engine: str, group: str) -> None:
    done = run(python_without(engine), "-c", CALL.format(engine=engine, group=group))
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("eagle3: ") and f"No module named '{engine}'" in line


@pytest.mark.parametrize("engine, called", [("vllm", "vLLM"), ("sglang", "SGLang")])
def test_serve_says_what_to_install(
    engine: str,
    called: str,
    tmp_path: Path,
    target_dir: Path,
    drafter_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("EAGLE3_SGLANG_PYTHON", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))  # no environment beside this one
    pair = ("--target", str(target_dir), "--drafter", str(drafter_dir))
    assert main(["serve", "--engine", engine, *pair]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{called} is not installed: pip install 'eagle3-serving[{engine}]'" in line
