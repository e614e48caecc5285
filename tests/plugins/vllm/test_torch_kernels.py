"""The stand-ins that real vLLM runs with here draw what vLLM's own kernels draw."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

SHIM = Path(__file__).resolve().parents[2] / "engines" / "mrv2_on_cpu"
SCRIPT = """
import torch
from torch_kernels import stand_in
from vllm.v1.worker.gpu.sample import gumbel, logprob

torch.manual_seed(0)
rows, vocabulary = 6, 5003  # not a multiple of any block
states = torch.tensor([0, 1, 1, 2, 3, -1], dtype=torch.int32)
temperature, seed = torch.tensor([1.0, 0.7, 0.0, 1.5]), torch.tensor([1, 2, 3, 4])
arguments = (torch.randn(rows, vocabulary) * 2, states, temperature, seed, torch.arange(rows) + 7)
own = gumbel.gumbel_sample(*arguments, apply_temperature=True, is_drafting=False)
own_scores = logprob.compute_topk_scores(arguments[0], 3, own)
kernel = gumbel._gumbel_sample_kernel
stand_in()
assert gumbel._gumbel_sample_kernel is not kernel
ours = gumbel.gumbel_sample(*arguments, apply_temperature=True, is_drafting=False)
greedy = arguments[0][3].argmax()
assert own[3] == greedy and (own[:3] != arguments[0][:3].argmax(1)).any(), own  # noise where there is a temperature
assert torch.equal(own[:5], ours[:5]), (own, ours)  # the sixth row is padding
scores = logprob.compute_topk_scores(arguments[0], 3, own)
assert torch.equal(own_scores.selected_token_ranks, scores.selected_token_ranks)
torch.testing.assert_close(own_scores.logprobs, scores.logprobs)
print("equal")
"""


def test_noise_and_logprobs_are_vllm_s_own() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SHIM)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
