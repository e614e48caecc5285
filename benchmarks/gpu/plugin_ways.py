"""The vLLM plugin's own kernel for a tree's block, timed without vLLM: Triton is all that it needs.

Its file asks vLLM for Triton. Unless vLLM is loaded already, a stand-in of that one module gives it Triton itself; nothing
else of vLLM is pretended. On a CPU the kernel's meaning in PyTorch stands in its place.
"""

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from benchmarks.gpu.verify_case import Case
from eagle3_serving.attention import AttentionState, attend, merge, prefix_attention

KERNEL = Path(__file__).resolve().parents[2] / "plugins" / "eagle3_vllm" / "attention" / "tree_block.py"


def load_kernel(file: Path = KERNEL) -> ModuleType:
    """The module in `file`. Raises ImportError where it, Triton, or what it asks of vLLM is missing."""
    if not file.is_file():
        raise ImportError(f"no {file.name} in the plugin")
    import triton  # type: ignore[import-untyped, unused-ignore]
    import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

    stand_in: dict[str, Any] = {}
    if "vllm" not in sys.modules:
        stand_in = {"vllm": ModuleType("vllm"), "vllm.triton_utils": ModuleType("vllm.triton_utils")}
        stand_in["vllm.triton_utils"].tl, stand_in["vllm.triton_utils"].triton = tl, triton
    spec = importlib.util.spec_from_file_location("eagle3_gpu_kit_tree_block", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.update(stand_in)
    try:
        spec.loader.exec_module(module)
    finally:
        for name in stand_in:
            del sys.modules[name]
    return module


def split_triton(case: Case) -> Callable[[], Tensor]:
    module = _kernel()
    merged = module.merged if case.q_BRAD.is_cuda else _meaning
    k_BKSD, v_BKSD = (x[:, : case.prefix].transpose(1, 2).contiguous() for x in (case.k_BSKD, case.v_BSKD))
    k_BRKD, v_BRKD = (x[:, case.prefix :].contiguous() for x in (case.k_BSKD, case.v_BSKD))
    scale = 1 / math.sqrt(case.q_BRAD.shape[-1])

    def run() -> Tensor:
        prefix = prefix_attention(case.q_BRAD, k_BKSD, v_BKSD)
        # as FlashAttention gives them
        parts = (prefix.out_BRAD.contiguous(), prefix.lse_BRA.contiguous())
        out: Tensor = merged(case.q_BRAD, k_BRKD, v_BRKD, case.layout.ancestors_BNN, *parts, scale)
        return out.to(case.q_BRAD.dtype)

    return run


def _meaning(
    q_BRAD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask_BRS: Tensor, prefix_BRAD: Tensor, lse_BRA: Tensor, scale: float
) -> Tensor:
    tail = attend(q_BRAD, k_BSKD, v_BSKD, mask_BRS, scale)
    return merge(AttentionState(prefix_BRAD, lse_BRA), tail).out_BRAD


_loaded: list[ModuleType] = []


def _kernel() -> ModuleType:
    if not _loaded:
        _loaded.append(load_kernel())
    return _loaded[0]
