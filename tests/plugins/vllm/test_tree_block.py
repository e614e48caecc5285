"""The CUDA path's own kernel, under Triton's interpreter: a prefix's attention and a tree's block give the whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

SHIM = Path(__file__).resolve().parents[2] / "engines" / "mrv2_on_cpu"
SCRIPT = """
import torch
from eagle3_serving.attention import AttentionState, tree_attention
from eagle3_vllm.attention.tree_block import merged

torch.manual_seed(0)
for batch, rows, tail, heads, kv_heads, dim, prefix in ((2, 5, 5, 4, 2, 16, 7), (1, 61, 61, 3, 3, 64, 0), (2, 10, 30, 9, 3, 64, 33)):
    q = torch.randn(batch, rows, heads, dim)
    k, v = (torch.randn(batch, prefix + tail, kv_heads, dim) for _ in range(2))
    mask = torch.rand(batch, rows, tail) < 0.4
    mask[:, torch.arange(rows), torch.arange(tail - rows, tail)] = True
    scale = dim**-0.5
    wide_k, wide_v = (x.repeat_interleave(heads // kv_heads, 2) for x in (k, v))
    scores = torch.einsum("brad,bsad->bras", q, wide_k) * scale
    seen = torch.cat([torch.ones(batch, rows, prefix, dtype=torch.bool), mask], 2)
    whole = torch.einsum("bras,bsad->brad", scores.masked_fill(~seen[:, :, None], -torch.inf).softmax(-1), wide_v)
    before = scores[..., :prefix]
    lse = before.logsumexp(-1)
    part = torch.einsum("bras,bsad->brad", before.softmax(-1), wide_v[:, :prefix])
    arguments = q, k[:, prefix:], v[:, prefix:], mask, part, lse, scale
    reference = tree_attention(*arguments[:4], lambda _: AttentionState(part, lse), scale).out_BRAD
    assert (reference - whole).abs().max() < 1e-5
    assert (merged(*arguments) - whole).abs().max() < 1e-5, (merged(*arguments) - whole).abs().max()
    half = merged(*(x.bfloat16() for x in arguments[:3]), mask, part.bfloat16(), lse, scale)
    far = (half.float() - whole).abs().max()
    assert half.dtype == torch.bfloat16 and far < 0.1, far
print("equal")
"""


def test_the_merged_block_is_attention_over_prefix_and_tree() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SHIM)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
