import importlib.util
import json
from pathlib import Path

import pytest

from eagle3_serving.errors import InputError
from eagle3_serving.serve import vllm
from eagle3_serving.serve.vllm import VllmOptions, vllm_command


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(vllm, "require_vllm", lambda: None)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_plain_server_has_no_speculative_config(model: Path) -> None:
    argv = list(vllm_command(VllmOptions(model, dtype="bf16")).argv)
    assert "--speculative-config" not in argv
    assert argv[argv.index("--dtype") + 1] == "bfloat16"
    assert "--enforce-eager" in argv


def test_the_drafter_and_k_reach_vllm(model: Path) -> None:
    argv = list(vllm_command(VllmOptions(model, model, k=4, compiled=True)).argv)
    value = json.loads(argv[argv.index("--speculative-config") + 1])
    assert value == {"method": "eagle3", "model": str(model), "num_speculative_tokens": 4}
    assert "--enforce-eager" not in argv


def test_several_gpus_and_another_host_reach_the_engine(model: Path) -> None:
    made = vllm_command(VllmOptions(model, host="0.0.0.0", tensor_parallel=2))
    argv = list(made.argv)
    assert argv[argv.index("--tensor-parallel-size") + 1] == "2"
    assert argv[argv.index("--host") + 1] == made.host == "0.0.0.0"
    assert "--tensor-parallel-size" not in vllm_command(VllmOptions(model)).argv


def test_cpu_settings_stay_on_the_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "on_cpu", lambda: True)
    assert vllm.vllm_environment(VllmOptions(model))["VLLM_CPU_KVCACHE_SPACE"] == "1"
    monkeypatch.setattr(vllm, "on_cpu", lambda: False)
    assert not [name for name in vllm.vllm_environment(VllmOptions(model)) if "CPU" in name]


def test_few_cpus_are_all_used_unless_the_user_says_otherwise(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "on_cpu", lambda: True)
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 1}, raising=False)
    assert vllm.vllm_environment(VllmOptions(model))["VLLM_CPU_OMP_THREADS_BIND"] == "1,3"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in vllm.vllm_environment(VllmOptions(model))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    assert "VLLM_CPU_OMP_THREADS_BIND" not in vllm.vllm_environment(VllmOptions(model))


def test_wrong_options_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="k is 0"):
        vllm_command(VllmOptions(model, model, k=0))
    with pytest.raises(InputError, match="dtype 'int8' is unknown"):
        vllm_command(VllmOptions(model, dtype="int8"))
    with pytest.raises(InputError, match=r"no config\.json in the drafter directory"):
        vllm_command(VllmOptions(model, tmp_path / "none"))


def test_a_missing_vllm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"eagle3-serving\[vllm\]"):
        vllm.require_vllm()


def test_a_parallel_drafter_is_said_to_vllm(model: Path) -> None:
    command = vllm_command(VllmOptions(model, model, plugin=False, parallel=True))
    said = json.loads(command.argv[command.argv.index("--speculative-config") + 1])
    assert said["parallel_drafting"] is True and command.environment["EAGLE3_MODE"] == "vllm"
    plain = vllm_command(VllmOptions(model, model))
    assert "parallel_drafting" not in plain.argv[plain.argv.index("--speculative-config") + 1]
