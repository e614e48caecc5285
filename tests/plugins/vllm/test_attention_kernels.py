"""The GPU path's own kernels and what calls them, under Triton's interpreter, against the core's attention."""

import pytest
from interpreted import run_interpreted

pytest.importorskip("vllm")


def test_kernels_and_implementation_give_the_core_s_attention() -> None:
    run_interpreted(("tree_block_interpreted.py", "split_kv_interpreted.py", "implementation_interpreted.py"))
