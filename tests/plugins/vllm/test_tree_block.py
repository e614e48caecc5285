"""The CUDA path's own kernel, under Triton's interpreter: a prefix's attention and a tree's block give the whole."""

from pathlib import Path

import pytest
from interpreted import run_interpreted

pytest.importorskip("vllm")


def test_the_merged_block_is_attention_over_prefix_and_tree() -> None:
    run_interpreted(Path(__file__).with_name("tree_block_interpreted.py"))
