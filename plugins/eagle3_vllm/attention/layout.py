"""How vLLM 0.32's backends for GPUs lay out the keys and values of a layer: FLASH_ATTN, FLASHINFER and TRITON_ATTN alike.

The cache of a layer comes as [pages, K, U, 2 D], keys and values of a place side by side, and every backend takes it apart
by `transpose(1, 2).split(D)`. How it lies (places or heads first, layers between pages) is in the strides alone.

Shape letters: P pages, U places of a page, K key-value heads, D head size.
"""

from torch import Tensor


def pages(kv_cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Views of keys and values [P, U, K, D]. Raises ValueError for a cache of another layout."""
    if kv_cache.dim() != 4 or kv_cache.shape[-1] != 2 * head_dim:
        raise ValueError(
            f"a KV cache of shape {tuple(kv_cache.shape)} for heads of {head_dim}: known is [pages, heads, places, "
            f"{2 * head_dim}]; serve without trees (EAGLE3_MODE=chain)"
        )
    keys, values = kv_cache.transpose(1, 2).split(head_dim, dim=-1)
    return keys, values


def canonical(x: Tensor) -> Tensor:
    """The same view with the strides of dimensions of size 1 (one key-value head, with tensor parallelism) as large as if
    it were contiguous there: FlashAttention 3 loads by descriptors, which refuse odd ones."""
    strides, inner = list(x.stride()), 1
    for dim in reversed(range(x.dim())):
        if x.shape[dim] == 1:
            strides[dim] = inner
        inner = strides[dim] * x.shape[dim]
    return x if tuple(strides) == x.stride() else x.as_strided(x.shape, strides)
