"""Targets and features beyond a plain Llama on real vLLM: a tree, vLLM's own chain, or plain decoding with a line that says so.
Never another token, never an end. One process, an engine after the other, each target tiny and drawn here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, [str(HERE / "mrv2_on_cpu"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(HERE / "features_in_vllm.py"), str(tmp_path_factory.mktemp("features"))]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("EAGLE3_", "VLLM_CPU_KV"))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**clean, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found


def tree(said: dict[str, Any], case: str) -> None:
    one = said[case]
    assert one["tokens"] == one["plain"]["tokens"]
    assert one["lines"] == ["eagle3: trees of 16 nodes, depth 3, 6 children a node"]
    assert one["accepted"] > 5 and one["drafted"] > 5 * one["accepted"]  # many nodes, of which some are right


def chain(said: dict[str, Any], case: str, reason: str) -> None:
    one = said[case]
    assert one["tokens"] == one["plain"]["tokens"]
    assert f"eagle3: a chain of 3 instead of 16 nodes: {reason}" in one["lines"]
    assert one["drafted"] > one["accepted"] > 0


def plain(said: dict[str, Any], case: str, reason: str) -> None:
    one = said[case]
    assert one["tokens"] == one["plain"]["tokens"]
    assert one["lines"] == [f"eagle3: nothing is drafted: {reason}"]
    assert one["drafted"] == 0


@pytest.mark.supports("vllm", "tree", "a key head for each query head (1:1)")
def test_as_many_key_heads_as_query_heads(said: dict[str, Any]) -> None:
    tree(said, "1:1")


@pytest.mark.supports("vllm", "tree", "parallel drafting (P-EAGLE)", "a causal head over masks")
def test_a_parallel_drafters_tree_comes_from_one_pass_and_its_causal_head(said: dict[str, Any]) -> None:
    one = said["causal head"]
    assert one["tokens"] == one["plain"]["tokens"]
    assert one["lines"][0] == "eagle3: a parallel drafter: every depth of a tree from one pass over its masks"
    sides = one["steps"], one["embedded"]["steps"], one["embedded"]["by masks"]
    ours, embedded, masks = (
        [steps[:-1] for steps in side] for side in sides
    )  # the last is cut off by the answer's end
    assert ours == embedded != masks


@pytest.mark.supports("vllm", "chain", "parallel drafting (P-EAGLE)")
def test_a_parallel_drafter_drafts_a_chain_in_one_pass(said: dict[str, Any]) -> None:
    """Nobody tells vLLM that it is parallel but the plugin."""
    chain(said, "masks", "Model Runner V1 runs: it verifies chains only")
    assert (
        said["masks"]["lines"].count(
            "eagle3: a parallel drafter: all draft tokens in one pass, as parallel_drafting would say"
        )
        == 1
    )


@pytest.mark.supports("vllm", "tree", "grouped heads, 8 queries a key (8:1)")
def test_eight_query_heads_a_key_head(said: dict[str, Any]) -> None:
    tree(said, "8:1")


@pytest.mark.supports("vllm", "tree", "targets with experts: Qwen3-MoE", "grouped heads, 4 queries a key (4:1)")
def test_experts(said: dict[str, Any]) -> None:
    tree(said, "experts")


@pytest.mark.supports("vllm", "tree", "quantised targets: fp8 weights and inputs (compressed-tensors)")
def test_a_target_in_fp8(said: dict[str, Any]) -> None:
    tree(said, "fp8")


@pytest.mark.supports("vllm", "tree", "quantised targets: int8 weights and inputs (compressed-tensors)")
def test_a_target_in_int8(said: dict[str, Any]) -> None:
    tree(said, "int8")


@pytest.mark.supports("vllm", "tree", "quantised targets: 4-bit weights (AWQ, compressed-tensors), in bf16")
@pytest.mark.parametrize("method", ["awq", "w4a16"])
def test_a_target_in_four_bits(said: dict[str, Any], method: str) -> None:
    tree(said, method)


@pytest.mark.supports("vllm", "own chain", "a quantised KV cache (fp8)")
def test_a_kv_cache_in_fp8(said: dict[str, Any]) -> None:
    chain(said, "fp8 KV", "a quantised KV cache")


@pytest.mark.supports(
    "vllm", "tree", "targets with a sliding window in all layers", "targets with sliding windows in some layers"
)
@pytest.mark.parametrize("layers", ["all", "some"])
def test_sliding_windows(said: dict[str, Any], layers: str) -> None:
    """On a CPU, where windows slide with each row's depth; on a GPU vLLM's own chain serves."""
    tree(said, f"windows in {layers}")


@pytest.mark.supports("vllm", "chain", "LoRA adapters on the target", "logprobs")
def test_an_adapter_for_one_request_of_a_batch(said: dict[str, Any]) -> None:
    chain(said, "adapter", "Model Runner V1 runs: it verifies chains only")
    with_it, without = said["adapter"], said["adapter, V2"]
    assert with_it["tokens"][0] != said["fp8 KV"]["tokens"][0]  # the same target and prompt without it
    assert with_it["tokens"] == without["tokens"]
    for mine, theirs in zip(with_it["logprobs"], with_it["plain"]["logprobs"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)


@pytest.mark.supports("vllm", "plain", "LoRA adapters on the target")
def test_an_adapter_where_vllm_would_stop_at_the_first_draft(said: dict[str, Any]) -> None:
    plain(said, "adapter, V2", "on a CPU, Model Runner V2 with LoRA adapters stops at the first draft")


@pytest.mark.supports("vllm", "plain", "targets that vLLM gives no drafter: Mixtral")
def test_a_target_whose_hidden_states_vllm_hands_to_no_drafter(said: dict[str, Any]) -> None:
    plain(said, "mixtral", "vLLM's MixtralForCausalLM gives a drafter no hidden states and stops at start with one")
