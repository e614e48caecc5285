"""Whatever is not as known in SGLang, or fails in the plugin: its own EAGLE3 serves, and one line says why."""

from typing import Any

import pytest
from test_captures import by_sglang

HOOKED = [
    "sglang.srt.arg_groups.speculative_hook:_auto_choose_speculative_params",
    "sglang.srt.sampling.sampling_params:SamplingParams.verify",
    "sglang.srt.server_args:ServerArgs.resolve_once",
    "sglang.srt.speculative.spec_info:SpeculativeAlgorithm.create_worker",
    "sglang.srt.speculative.spec_info:SpeculativeAlgorithm.resolve_max_speculative_num_draft_tokens",
]


@pytest.fixture(scope="module")
def found() -> Any:
    return by_sglang("faults_in_sglang.py")


def test_without_a_fault_five_functions_are_changed_and_ours_serves(found: Any) -> None:
    assert found["changed"] == HOOKED and not found["own"]


@pytest.mark.parametrize(
    ("kind", "least"), [("version", 3), ("gone", 20), ("signature", 20), ("import", 15), ("module", 15)]
)
def test_a_fault_is_told_once_and_sglangs_own_serves(kind: str, least: int, found: Any) -> None:
    assert not found["left"]  # nothing of SGLang's is changed after all of them
    assert len(found["faults"][kind]) >= least
    for fault, told in found["faults"][kind].items():
        assert told["own"] and len(told["said"]) == 1, fault
        assert "SGLang's own EAGLE3 serves" in told["said"][0]
        assert told["hooks"] == [] or not told["first"], fault  # what the hooks stand around is looked at before
