import importlib.util
import sys
from pathlib import Path

import pytest

from eagle3_serving.errors import InputError
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.sglang import shape_of
from eagle3_serving.serve import sglang
from eagle3_serving.serve.sglang import SglangOptions, sglang_command, sglang_environment, sglang_python
from eagle3_serving.serve.shape import Shape


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sglang, "sglang_python", lambda: Path("python-of-sglang"))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_plain_server_does_not_speculate(model: Path) -> None:
    argv = list(sglang_command(SglangOptions(model, dtype="bf16")).argv)
    assert argv[:3] == ["python-of-sglang", "-m", "sglang.launch_server"]
    assert not [word for word in argv if "speculative" in word]
    assert argv[argv.index("--dtype") + 1] == "bfloat16"


def test_a_tree_reaches_sglang_and_none_is_left_to_the_server(model: Path) -> None:
    argv = list(sglang_command(SglangOptions(model, model, Shape(3, 2, 6))).argv)
    for flag, value in (("num-steps", "3"), ("eagle-topk", "2"), ("num-draft-tokens", "6")):
        assert argv[argv.index(f"--speculative-{flag}") + 1] == value
    assert argv[argv.index("--speculative-algorithm") + 1] == "EAGLE3"
    assert "--speculative-num-steps" not in sglang_command(SglangOptions(model, model)).argv


def test_the_environment_says_who_serves(model: Path, tmp_path: Path) -> None:
    assert sglang_environment(SglangOptions(model))["EAGLE3_SERVING"] == "on"
    options = SglangOptions(model, plugin=False, trees="0;1,4,3", choice="cycle", profile=tmp_path / "p.json")
    environment = sglang_environment(options)
    assert environment["EAGLE3_SERVING"] == "off"
    assert environment["EAGLE3_TREES"] == "0;1,4,3" and environment["EAGLE3_CHOICE"] == "cycle"
    assert environment["EAGLE3_PROFILE"] == str(tmp_path / "p.json")


def test_several_gpus_and_another_host_reach_the_engine(model: Path) -> None:
    made = sglang_command(SglangOptions(model, host="0.0.0.0", tensor_parallel=2))
    argv = list(made.argv)
    assert argv[argv.index("--tensor-parallel-size") + 1] == "2"
    assert argv[argv.index("--host") + 1] == made.host == "0.0.0.0"
    assert "--tensor-parallel-size" not in sglang_command(SglangOptions(model)).argv


def test_cpu_settings_stay_on_the_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang, "on_cpu", lambda: False)
    command = sglang_command(SglangOptions(model))
    assert "cpu" not in command.argv and not [name for name in command.environment if "CPU" in name]


def test_the_interpreter_is_found_by_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv("EAGLE3_SGLANG_PYTHON", raising=False)
    with pytest.raises(InputError, match=r"eagle3-serving\[sglang\]"):
        sglang_python()
    beside = tmp_path / ".venv-sglang" / "bin" / "python"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert sglang_python() == beside
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert sglang_python() == Path(sys.executable)
    monkeypatch.setenv("EAGLE3_SGLANG_PYTHON", str(tmp_path / "none"))
    with pytest.raises(InputError, match="EAGLE3_SGLANG_PYTHON names"):
        sglang_python()
    monkeypatch.setenv("EAGLE3_SGLANG_PYTHON", str(beside))
    assert sglang_python() == beside


def test_wrong_options_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 steps of 4 hold 4 to 37 tokens"):
        sglang_command(SglangOptions(model, model, Shape(3, 4, 60)))
    with pytest.raises(InputError, match="dtype 'int8' is unknown"):
        sglang_command(SglangOptions(model, dtype="int8"))
    with pytest.raises(InputError, match=r"no config\.json in the drafter directory"):
        sglang_command(SglangOptions(model, tmp_path / "none"))


def test_modes_become_trees(model: Path) -> None:
    def options(mode: str) -> EvalOptions:
        return EvalOptions("sglang", model, model, (model,), mode=mode, k=4, nodes=11, depth=5, top_k=4)

    assert shape_of(options("chain")) == Shape(4, 1, 5)
    assert shape_of(options("tree")) == Shape(5, 4, 12)
    assert shape_of(options("auto")) is None
