"""Whatever is not as known in vLLM, or fails in the plugin: nothing of vLLM is changed, and one line says why."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eagle3_serving.errors import CheckError
from eagle3_serving.patches import Patches

pytest.importorskip("vllm")
from eagle3_vllm.seams import SEAMS
from eagle3_vllm.settings import Settings

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found() -> Any:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EAGLE3_")}
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), clean.get("PYTHONPATH"))))
    script = Path(__file__).with_name("faults_in_vllm.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=clean)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_the_plugin_changes_in_vllm(found: Any) -> None:
    """All that a registration leaves behind; a new seam belongs here, and where faults are looked for."""
    assert found["changed"] == sorted(seam.target for seam in SEAMS)


@pytest.mark.parametrize(
    ("kind", "least"),
    [("import", 50), ("signature", 35), ("gone", 20), ("runner", 4), ("module", 30), ("version", 4)],
)
def test_a_fault_changes_nothing_and_is_told_once(kind: str, least: int, found: Any) -> None:
    faults = found["faults"][kind]
    assert len(faults) >= least
    for fault, told in faults.items():
        assert told["left"] == [], fault
        assert len(told["said"]) == 1 and "vLLM's own EAGLE-3 serves" in told["said"][0], fault
        named = fault.rsplit(".", 1)[-1] if kind in ("import", "module", "runner") else fault
        assert named in told["said"][0] or kind == "gone", told["said"]


def test_changes_are_undone_where_a_later_one_fails(found: Any) -> None:
    *failed, whole = found["faults"]["patch"].values()
    assert len(failed) >= 16
    for told in failed:
        assert told["left"] == [] and len(told["said"]) == 1 and "planted" in told["said"][0]
    assert whole["said"] == [] and whole["left"] == found["changed"]


def started(target: Path, environment: dict[str, str], **engine: Any) -> "subprocess.CompletedProcess[str]":
    """An engine's configuration, as a server makes it before anything loads."""
    code = (
        "from vllm.engine.arg_utils import EngineArgs\n"
        f"EngineArgs(model={str(target)!r}, max_model_len=512, dtype='float32', **{engine!r}).create_engine_config()\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EAGLE3_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_setting_that_cannot_be_read_ends_a_server_with_eagle3_alone(target_dir: Path, drafter_dir: Path) -> None:
    wrong = {"EAGLE3_MODE": "tre"}
    assert started(target_dir, wrong).returncode == 0
    asked = {"method": "eagle3", "model": str(drafter_dir), "num_speculative_tokens": 2}
    done = started(target_dir, wrong, speculative_config=asked)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("eagle3: ")]
    assert line == "eagle3: EAGLE3_MODE is 'tre': one of auto, tree, chain, vllm"


def planted(*_: Any) -> Any:
    raise RuntimeError("planted")


def test_a_speculator_that_cannot_be_made_leaves_vllms(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    from eagle3_vllm import architecture, compat, registration

    own = {name: lambda *_: "vLLM's own" for name in compat.RUNNER}
    runner = SimpleNamespace(**own)
    monkeypatch.setattr("eagle3_vllm.compat.model_runner", lambda: runner)
    monkeypatch.setattr(architecture, "not_judged", planted)
    config = SimpleNamespace(speculative_config=SimpleNamespace(method="eagle3", draft_model_config=None))
    with Patches() as patches:
        registration._register_trees(patches, Settings(), logging.getLogger("test"))
        device = torch.device("cpu")
        made = runner.init_speculator(config, device, None), runner.init_model_state(config, None, None, device)
        made += runner.DraftTokensHandler(device), runner.ModelCudaGraphManager(config)
        assert set(made) == {"vLLM's own"}
    patches.undo()
    assert vars(runner) == own
    said = [message for message in caplog.messages if "eagle3" in message]
    assert said == ["eagle3: vLLM's own chain serves, and no trees: RuntimeError: planted"]


def test_a_backend_of_ours_that_cannot_be_imported_is_vllms_and_no_trees_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from eagle3_vllm import compat, fallback
    from eagle3_vllm.attention import chosen

    found = chosen.import_module
    monkeypatch.setattr(chosen, "import_module", lambda name: planted() if "eagle3" in name else found(name))
    assert compat.CPUAttentionBackend is chosen.CPU_ATTN
    monkeypatch.setattr(fallback, "config_reasons", lambda *_: [])
    monkeypatch.setattr(fallback.cpu_attn, "_get_attn_isa", lambda *_: "vec")
    model = SimpleNamespace(dtype=torch.float32, get_head_size=lambda: 64)
    config: Any = SimpleNamespace(model_config=model, cache_config=SimpleNamespace(block_size=16))
    assert fallback.server_reasons(config, Settings()) == ["RuntimeError: planted"]
    monkeypatch.undo()
    assert issubclass(chosen.CPU_ATTN, compat.CPUAttentionBackend) and chosen.CPU_ATTN is not compat.CPUAttentionBackend


def test_what_is_no_longer_in_a_config_is_a_reason_and_not_an_end() -> None:
    from eagle3_vllm import fallback

    config: Any = SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=4), model_config=None)
    [reason] = fallback.config_reasons(config, Settings(mode="tree"))
    assert reason.startswith("AttributeError: ")


def test_a_drafter_that_is_not_judged_is_vllms_own_to_draft_with(
    monkeypatch: pytest.MonkeyPatch, drafter_dir: Path, tmp_path: Path
) -> None:
    from eagle3_vllm import architecture, compat

    class Own:
        def __init__(self, vllm_config: Any, prefix: str) -> None: ...

    monkeypatch.setitem(compat.own_drafters, "Known", SimpleNamespace(load_model_cls=lambda: Own))
    raw = json.loads((drafter_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "logit_scale": 0.5}))
    (tmp_path / "model.safetensors").symlink_to(drafter_dir / "model.safetensors")
    draft = SimpleNamespace(
        model=str(tmp_path), revision=None, hf_config=SimpleNamespace(architectures=["Other", "Known"])
    )
    config: Any = SimpleNamespace(speculative_config=SimpleNamespace(draft_model_config=draft, parallel_drafting=False))
    assert isinstance(architecture.Eagle3ServingForCausalLM(vllm_config=config), Own)
    draft.model = str(drafter_dir)
    assert architecture.not_judged(config.speculative_config) == ""


def test_a_broken_drafter_ends_the_server_before_anything_loads(drafter_dir: Path, target_dir: Path) -> None:
    from eagle3_vllm.configure import require_right

    def config(drafter: Path, target: Path) -> Any:
        draft = SimpleNamespace(model=str(drafter))
        speculative = SimpleNamespace(method="eagle3", draft_model_config=draft)
        return SimpleNamespace(speculative_config=speculative, model_config=SimpleNamespace(model=str(target)))

    require_right(config(drafter_dir, target_dir))
    require_right(config(drafter_dir, drafter_dir))  # vLLM's own config of the drafter
    with pytest.raises(CheckError):
        require_right(config(target_dir, drafter_dir))
