"""Paged attention on torch: decode (one row a request) and extend (prefill, tree verification, the draft's catching up).

Shape letters: B requests, T rows of all requests, R rows of one request, S keys, H query heads, G query heads a
key/value head, K key/value heads, D head size.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_LIBRARY = torch.library.Library("sgl_kernel", "FRAGMENT")
_LIBRARY.define(
    "decode_attention_cpu(Tensor query, Tensor(a!) k_cache, Tensor(b!) v_cache, float k_scale, float v_scale,"
    " Tensor(c!) output, Tensor? key, Tensor? value, Tensor loc, Tensor attn_logits, Tensor req_to_token,"
    " Tensor req_pool_indices, Tensor seq_lens, float sm_scale, float logit_cap, bool is_cross_attn,"
    " int sliding_window_size, Tensor? encoder_lens, Tensor? sinks) -> ()"
)
_LIBRARY.define(
    "extend_attention_cpu(Tensor q_extend, Tensor? k_extend, Tensor? v_extend, Tensor(a!) o_extend, Tensor k_buffer,"
    " Tensor v_buffer, float k_scale, float v_scale, Tensor req_to_token, Tensor req_pool_indices, Tensor seq_lens,"
    " Tensor extend_seq_lens, Tensor extend_start_loc, int max_len_extend, float sm_scale, float logit_cap,"
    " bool is_cross_attn, int sliding_window_size, Tensor? encoder_lens, Tensor? sinks, Tensor? tree_mask,"
    " bool is_causal) -> ()"
)


def _attend(
    query_BRHD: Tensor, k_cache_NKD: Tensor, v_cache_NKD: Tensor, slots_BS: Tensor, seen_BRS: Tensor, scale: float
) -> Tensor:
    """[B, R, H, D]; row r of a request sees the keys where `seen_BRS` is true."""
    batch, rows, heads, size = query_BRHD.shape
    kv_heads = k_cache_NKD.shape[1]
    group = heads // kv_heads
    key_BKSD = k_cache_NKD[slots_BS].transpose(1, 2).to(query_BRHD.dtype)
    value_BKSD = v_cache_NKD[slots_BS].transpose(1, 2).to(query_BRHD.dtype)
    # the query heads of one key head stand as further rows, so that keys are not repeated
    query = query_BRHD.view(batch, rows, kv_heads, group, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
    seen = seen_BRS[:, None].repeat(1, 1, group, 1)
    out = scaled_dot_product_attention(query, key_BKSD, value_BKSD, attn_mask=seen, scale=scale)
    return out.view(batch, kv_heads, group, rows, -1).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _only_plain(logit_cap: float, is_cross_attn: bool, sinks: Tensor | None) -> None:
    if logit_cap > 0 or is_cross_attn or sinks is not None:
        raise NotImplementedError("the tests' attention has no logit cap, cross attention or sinks")


def _in_window(seen_BRS: Tensor, place_BR: Tensor, sliding_window_size: int) -> Tensor:
    """Of what rows at these places see the nearest keys, their own among them. SGLang passes 0 where there is no window."""
    if sliding_window_size <= 0:
        return seen_BRS
    return seen_BRS & (torch.arange(seen_BRS.shape[2]) > (place_BR - sliding_window_size)[..., None])


def decode(
    query_BHD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: float,
    v_scale: float,
    output: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    loc: Tensor,
    attn_logits: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens_B: Tensor,
    sm_scale: float,
    logit_cap: float,
    is_cross_attn: bool,
    sliding_window_size: int,
    encoder_lens: Tensor | None,
    sinks: Tensor | None,
) -> None:
    """Writes this step's keys and values to slots `loc`, then each row attends to its request's `seq_lens_B` keys."""
    _only_plain(logit_cap, is_cross_attn, sinks)
    if key is not None and value is not None:
        k_cache[loc] = key.view(-1, *k_cache.shape[1:]).to(k_cache.dtype)
        v_cache[loc] = value.view(-1, *v_cache.shape[1:]).to(v_cache.dtype)
    told = req_to_token, req_pool_indices, seq_lens_B, sm_scale, sliding_window_size
    output.copy_(_last_row(query_BHD, k_cache, v_cache, *told))


def _last_row(
    query_BHD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens_B: Tensor,
    scale: float,
    window: int,
) -> Tensor:
    """[B, H, D]; each request's one row sees all of its keys, or those of the window."""
    width = int(seq_lens_B.max())
    slots_BS = req_to_token[req_pool_indices.long(), :width].long()
    seen_BRS = (torch.arange(width) < seq_lens_B[:, None])[:, None]
    seen_BRS = _in_window(seen_BRS, seq_lens_B[:, None] - 1, window)
    # past a request's end the table holds whatever was there before
    slots_BS = slots_BS.masked_fill(~seen_BRS[:, 0], 0)
    return _attend(query_BHD[:, None], k_cache, v_cache, slots_BS, seen_BRS, scale)[:, 0]


def extend(
    q_extend_THD: Tensor,
    k_extend: Tensor | None,
    v_extend: Tensor | None,
    o_extend: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    k_scale: float,
    v_scale: float,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens_B: Tensor,
    extend_seq_lens_B: Tensor,
    extend_start_loc_B: Tensor,
    max_len_extend: int,
    sm_scale: float,
    logit_cap: float,
    is_cross_attn: bool,
    sliding_window_size: int,
    encoder_lens: Tensor | None,
    sinks: Tensor | None,
    tree_mask: Tensor | None,
    is_causal: bool,
) -> None:
    """The last `extend_seq_lens_B` of each request's `seq_lens_B` positions attend to all before them, and among
    themselves causally or by `tree_mask` [B, R, R]. Their keys and values are in the cache already."""
    _only_plain(logit_cap, is_cross_attn, sinks)
    counts, lengths = extend_seq_lens_B.tolist(), seq_lens_B.tolist()
    same = len(set(counts)) == 1 and counts[0] * len(counts) <= _PACKED_ROWS
    if same and counts[0] == 1:
        # a tree of its root alone, as steps without drafts are: at a decoding step's price, which a real kernel asks too
        first = int(extend_start_loc_B[0])
        rows_BHD = q_extend_THD[first : first + len(counts)]
        told = req_to_token, req_pool_indices, seq_lens_B, sm_scale, sliding_window_size
        attended = _last_row(rows_BHD, k_buffer, v_buffer, *told)
        o_extend[first : first + len(counts)] = attended
        return
    groups = [range(len(counts))] if same else [range(b, b + 1) for b in range(len(counts))]
    for group in groups:
        first, rows = group.start, counts[group.start]
        if rows == 0:
            continue
        width = max(lengths[b] for b in group)
        length_B = seq_lens_B[first : group.stop].long()
        place_S = torch.arange(width)
        slots_BS = req_to_token[req_pool_indices[first : group.stop].long(), :width].long()
        slots_BS = slots_BS.masked_fill(place_S >= length_B[:, None], 0)
        if tree_mask is not None:
            among_BRR = tree_mask.view(-1, rows, rows)[first : group.stop]
        elif is_causal:
            among_BRR = torch.ones(rows, rows, dtype=torch.bool).tril().expand(len(group), -1, -1)
        else:
            among_BRR = torch.ones(len(group), rows, rows, dtype=torch.bool)
        before_B = length_B - rows
        seen_BRS = (place_S < before_B[:, None])[:, None].repeat(1, rows, 1)
        seen_BRS.scatter_(2, (before_B[:, None] + torch.arange(rows))[:, None].expand(-1, rows, -1), among_BRR)
        # by rows in a tree too, whatever their depth: so do SGLang's own kernels, on a CPU and in Triton
        seen_BRS = _in_window(seen_BRS, before_B[:, None] + torch.arange(rows), sliding_window_size)
        start = int(extend_start_loc_B[first])
        end = start + rows * len(group)
        query_BRHD = q_extend_THD[start:end].unflatten(0, (len(group), rows))
        attended = _attend(query_BRHD, k_buffer, v_buffer, slots_BS, seen_BRS, sm_scale)
        o_extend[start:end] = attended.flatten(0, 1)


_PACKED_ROWS = 1024  # of requests padded to one length; prompts are longer and go one by one

_LIBRARY.impl("decode_attention_cpu", decode, "CPU")
_LIBRARY.impl("extend_attention_cpu", extend, "CPU")
