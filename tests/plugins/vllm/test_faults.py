"""Whatever is not as known in vLLM, or fails in the plugin: nothing of vLLM is changed, and one line says why."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

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
    runner = "vllm.v1.worker.gpu.model_runner"
    assert found["changed"] == [
        "ModelRegistry Eagle3LlamaForCausalLM",
        "ModelRegistry Eagle3Qwen3ForCausalLM",
        "ModelRegistry LlamaForCausalLMEagle3",
        "collectors of metrics",
        "environment EAGLE3_METRICS_DIR",
        "override of CPU_ATTN",
        "vllm.config.vllm:VllmConfig.__post_init__",
        "vllm.sampling_params:SamplingParams._validate_spec_decode",
        "vllm.v1.core.sched.scheduler:Scheduler.__init__",
        "vllm.v1.core.sched.scheduler:Scheduler.make_spec_decoding_stats",
        "vllm.v1.sample.rejection_sampler:RejectionSampler.eagle3",
        "vllm.v1.sample.rejection_sampler:RejectionSampler.forward",
        "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.propose",
        f"{runner}:DraftTokensHandler",
        f"{runner}:ModelCudaGraphManager",
        f"{runner}:eagle3_trees",
        f"{runner}:init_model_state",
        f"{runner}:init_speculator",
    ]


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
