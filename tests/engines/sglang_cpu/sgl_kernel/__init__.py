"""Test-only stand-in for SGLang's CPU kernels, in torch: the operators that EAGLE decoding of a Llama-like model calls.

Written from the contracts at their call sites (sglang/kernels/ops, layers/attention/intel_amx_backend.py) and held
against SGLang's own Triton kernels where those exist (tests/engines/sglang_cpu_reference.py). What nothing here calls
raises NotImplementedError when it is called, not when it is imported.
"""

from sgl_kernel import attention as attention  # registers torch.ops.sgl_kernel.*
from sgl_kernel.cache import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    build_draft_decode_metadata_cpu,
    copy_all_layer_kv_cache_cpu,
    fill_accept_out_cache_loc_cpu,
)
from sgl_kernel.missing import absent
from sgl_kernel.tree import build_tree_kernel_efficient_cpu, fill_bonus_tokens_cpu, verify_tree_greedy_cpu

__version__ = "0.0.0+torch.reference"

rotate_input_ids_cpu = absent("rotate_input_ids_cpu")

__all__ = [
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_draft_decode_metadata_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "rotate_input_ids_cpu",
    "verify_tree_greedy_cpu",
]
