"""What a decoding step of trees asks of a GPU, counted in stock vLLM without one: launches, and what the host waits for.

On an H100 plain vLLM launched 20 kernels a step, the trees before they stood in graphs 1,841 (of an 8B target; of the three
layers here the same count gives 18 and, with one value read by the host, 743), and a prototype in graphs 21.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.vllm_engine import SHIM
from eagle3_serving.checkpoint.save import save_drafter
from eagle3_serving.drafter import Drafter, DrafterConfig

pytest.importorskip("vllm")
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
REQUESTS = (1, 8, 64)
MOST = 25  # launches of a step


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny random target and a drafter for it."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    none = dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"))
    config = LlamaConfig(**SIZES, num_hidden_layers=3, max_position_embeddings=512, initializer_range=0.3, **none)
    LlamaForCausalLM(config).save_pretrained(folder / "target")
    drafter = Drafter(
        DrafterConfig(**SIZES, draft_vocab_size=512, target_hidden_size=128, aux_layers=(1, 2, 3))  # type: ignore[arg-type]
    )
    for parameter in drafter.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    save_drafter(drafter.eval().requires_grad_(False), folder / "drafter", torch.float32)
    return folder / "target", folder / "drafter"


@pytest.fixture(scope="module")
def counted(pair: tuple[Path, Path]) -> dict[str, Any]:
    script = Path(__file__).with_name("launches_in_vllm.py")
    job = json.dumps({"nodes": 6, "requests": REQUESTS, "plant": True})
    done = subprocess.run(
        [sys.executable, str(script), *map(str, pair), job],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(SHIM), *sys.path])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("requests", REQUESTS)
def test_a_step_of_trees_is_two_graphs_and_little_else(counted: dict[str, Any], requests: int) -> None:
    launches = counted[str(requests)]["launches"]
    assert launches["graph: target"] == launches["graph: verified rows and draft"] == 1
    assert sum(launches.values()) <= MOST, launches
    # of ours: rows and masks, acceptance, the drafter's inputs, and the last graph
    assert {name for name in launches if name in {f"triton: _{k}_kernel" for k in ("begin", "accept", "absorb")}} == {
        "triton: _begin_kernel",
        "triton: _accept_kernel",
        "triton: _absorb_kernel",
    }


@pytest.mark.parametrize("requests", REQUESTS)
def test_the_host_waits_for_nothing(counted: dict[str, Any], requests: int) -> None:
    assert counted[str(requests)]["reads"] == {}
    assert sum(counted[str(requests)]["copies"].values()) <= 6


def test_sampled_requests_wait_for_nothing_either(counted: dict[str, Any]) -> None:
    assert counted["sampled"]["reads"] == {}
    # vLLM's own sampler over every row
    assert sum(counted["sampled"]["launches"].values()) <= MOST + 10


@pytest.mark.parametrize("requests", [*map(str, REQUESTS), "sampled"])
def test_what_stands_in_a_graph_obeys_a_graphs_rules(counted: dict[str, Any], requests: str) -> None:
    assert counted[requests]["broken"] == []


@pytest.mark.parametrize(
    "fault, found",
    [
        ("read", "item reads"),
        ("upload", "copies from the host"),
        ("shape", "other operations or shapes"),
        ("buffer", "other storages"),
    ],
)
def test_a_rule_that_is_broken_is_found(counted: dict[str, Any], fault: str, found: str) -> None:
    assert any(found in line for line in counted[fault]["broken"]), counted[fault]["broken"]
