"""Run by `test_attention_kernels.py`: vLLM's own Triton backend with trees, its own kernels beside ours, over every layout of
its cache; and the ways of a pass of trees."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from eagle3_vllm.attention import split_kv, tree_block
from eagle3_vllm.attention.layout import canonical, pages
from eagle3_vllm.attention.split_kv import Plan, Scratch
from eagle3_vllm.attention.triton_backend import TreeTritonAttentionBackend
from eagle3_vllm.attention.uniform import UniformRows, attend_uniform
from eagle3_vllm.kernels.begin import TreeBuffers, begin
from eagle3_vllm.kernels.requests import Requests
from eagle3_vllm.trees import PassRows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.v1.attention.backends.triton_attn import TritonAttentionMetadata
from vllm.v1.kv_cache_layout import KVCacheLayout

from eagle3_serving.attention import attend
from eagle3_serving.tree import PADDING

torch.cuda.get_device_capability = lambda *_: (9, 0)  # vLLM's kernels ask it for the size of their blocks
HEADS, KV_HEADS, DIM, PAGE = 4, 2, 16, 8
SCALE = DIM**-0.5


def cache_of(layout: KVCacheLayout, count: int) -> Tensor:
    """The second of three layers' caches as vLLM shows it, [pages, K, U, 2 D], lying as `layout` says."""
    shape = 3, count, KV_HEADS, PAGE, 2 * DIM
    physical = torch.full([shape[dim] for dim in layout.stride_order], torch.nan)
    logical = physical.permute([layout.stride_order.index(dim) for dim in range(5)])
    assert logical.shape == shape
    return logical[1]


class Pass:
    """Three requests: a tree of six rows, a prompt's chunk of three, a text's one row; 21, 9 and 16 rows before them."""

    prefix, widths = torch.tensor([21, 9, 16]), torch.tensor([6, 3, 1])
    parents = torch.tensor([[-1, 0, 0, -1, 3], [PADDING] * 5, [PADDING] * 5])

    def __init__(self, layout: KVCacheLayout) -> None:
        generator = torch.Generator().manual_seed(3)
        self.impl: Any = TreeTritonAttentionBackend.get_impl_cls()(HEADS, DIM, SCALE, KV_HEADS, None, None, "auto")
        self.table = torch.arange(1, 13).view(3, 4)[:, [2, 0, 3, 1]].int().contiguous()
        self.cache = cache_of(layout, 14)
        self.length = self.prefix + self.widths
        self.k, self.v = (torch.randn(3, 32, KV_HEADS, DIM, generator=generator) for _ in range(2))
        self.layer = SimpleNamespace(kv_cache=self.cache, head_size=DIM, impl=self.impl, _k_scale=torch.ones(1))
        self.layer._v_scale, self.layer._q_scale = torch.ones(1), torch.ones(1)
        place = torch.arange(32)
        slots = self.table[:, place // PAGE] * PAGE + place % PAGE
        held = place < self.length[:, None]
        self.impl.do_kv_cache_update(self.layer, self.k[held], self.v[held], self.cache, slots[held].long())
        own = held & (place >= self.prefix[:, None])
        self.key, self.value = self.k[own], self.v[own]
        self.query = torch.randn(10, HEADS, DIM, generator=generator)
        self.starts = torch.tensor([0, 6, 9, 10]).int()

    def metadata(self) -> TritonAttentionMetadata:
        names = "softmax_segm_output", "softmax_segm_max", "softmax_segm_expsum"
        return TritonAttentionMetadata(
            num_actual_tokens=10,
            max_query_len=6,
            query_start_loc=self.starts,
            max_seq_len=27,
            seq_lens=self.length.int(),
            block_table=self.table,
            slot_mapping=torch.zeros(10),
            seq_threshold_3D=0,
            num_par_softmax_segments=1,
            causal=True,
            **dict.fromkeys(names, torch.zeros(1)),
        )

    def want(self, masks: list[Tensor]) -> Tensor:
        """Every row over its request's prefix and over what the mask of its own rows shows."""
        out = []
        for b, mask in enumerate(masks):
            seen = torch.cat([torch.ones(len(mask), int(self.prefix[b]), dtype=torch.bool), mask], 1)
            q, end = self.query[self.starts[b] : self.starts[b + 1]], int(self.length[b])
            out.append(attend(q[None], self.k[b, None, :end], self.v[b, None, :end], seen[None], SCALE).out_BRAD[0])
        return torch.cat(out)

    def forward(self, metadata: Any) -> Tensor:
        output = torch.full((10, HEADS, DIM), torch.nan)
        self.impl.forward(self.layer, self.query, self.key, self.value, self.cache, metadata, output)
        return output


causal = [torch.ones(w, w, dtype=torch.bool).tril() for w in (6, 3, 1)]
plan = Plan(splits=2, tile=16, block=16, warps=4, stages=1)
scratch = Scratch.make([(plan, 18)], HEADS, DIM, torch.device("cpu"))
for layout in KVCacheLayout:
    one = Pass(layout)
    trees = TreeBuffers.make(3, 6, "cpu")
    requests = Requests(3, 3, torch.arange(3), one.starts, torch.tensor([0, 6, 7, 8]))
    begin(one.parents, requests, one.length, 3, trees, torch.zeros(10))
    rows = PassRows(trees, one.starts, whole=False, longest=27)
    masks = [trees.mask_BRR[0], *causal[1:]]
    metadata = one.metadata()
    metadata.eagle3_rows = rows
    if layout in (KVCacheLayout.LBNHC, KVCacheLayout.BHLNC):  # vLLM's own kernel takes a second
        assert (one.forward(metadata) - one.want(masks)).abs().max() < 1e-5, layout
    # the whole pass over buffers that keep their places, requests as wide as they are
    mask = torch.zeros(3, 6, 6, dtype=torch.int8)
    for b, m in enumerate(masks):
        mask[b, : len(m), : len(m)] = m
    at = one.prefix.int(), one.table, one.starts
    metadata.eagle3_rows = UniformRows(mask, *at, longest=27, plan=plan, scratch=scratch, varlen=True)
    assert (one.forward(metadata) - one.want(masks)).abs().max() < 1e-5, layout
metadata.eagle3_rows = None  # no tree: vLLM's own alone
assert (one.forward(metadata) - one.want(causal)).abs().max() < 1e-5
metadata.eagle3_rows = rows
metadata.block_table, metadata.eagle3_table = one.table.roll(1, 0), one.table  # FlashInfer's metadata has no table
assert (one.forward(metadata)[:6] - one.want(masks)[:6]).abs().max() < 1e-5

# trees of one width, a request that is only there to fill the graph among them, by both ways
q = torch.randn(14, HEADS * DIM)
kv = [torch.randn(14, KV_HEADS * DIM) for _ in range(2)]
two = UniformRows(
    (torch.rand(2, 6, 6) < 0.4).int().bitwise_or(torch.eye(6).int()).to(torch.int8),
    torch.tensor([21, 0]).int(),
    one.table[:2],
    torch.tensor([0, 6, 12]).int(),
    longest=27,
    plan=plan,
    scratch=scratch,
)


def over_prefix(q_TAD: Tensor, keys: Tensor, values: Tensor, rows: UniformRows) -> tuple[Tensor, Tensor]:
    """What FlashAttention computes."""
    k, v = (x[rows.table_BN.long()].flatten(1, 2)[:, :27] for x in (keys, values))
    seen = (torch.arange(27) < rows.prefix_B[:, None])[:, None].expand(-1, 6, -1)
    state = attend(q_TAD.unflatten(0, (2, 6)), k.nan_to_num(), v.nan_to_num(), seen, SCALE)
    return state.out_BRAD.flatten(0, 1), state.lse_BRA.flatten(0, 1).T.contiguous()


outputs = [torch.full((14, HEADS * DIM), torch.nan) for _ in range(2)]
attend_uniform(q, *kv, one.cache, two, outputs[0], SCALE, DIM)
attend_uniform(q, *kv, one.cache, replace(two, way="flash"), outputs[1], SCALE, DIM, over_prefix)
assert outputs[0][12:].isnan().all() and not outputs[0][:12].isnan().any()
assert (outputs[0][:12] - outputs[1][:12]).abs().max() < 1e-5
for wrong, says in ((replace(two, way="flash"), "this backend"), (replace(two, way="flash", varlen=True), "one width")):
    try:
        attend_uniform(q, *kv, one.cache, wrong, outputs[0], SCALE, DIM)
    except ValueError as error:
        assert says in str(error)  # noqa: PT017
    else:
        raise AssertionError(f"taken, though {says}")


class Views(TorchDispatchMode):
    """What is not a view of what is there would be made anew, or read by the host, in a captured graph too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.is_view, func
        return func(*args, **(kwargs or {}))


class NotLaunched:
    def __getitem__(self, grid: Any) -> Any:
        return lambda *_, **__: None


part = over_prefix(q[:12].view(12, HEADS, DIM), *pages(one.cache, DIM), two)
split_kv._split_kernel = split_kv._combine_kernel = tree_block._merged_kernel = NotLaunched()
with Views():
    attend_uniform(q, *kv, one.cache, two, outputs[0], SCALE, DIM)
    attend_uniform(q, *kv, one.cache, replace(two, varlen=True), outputs[0], SCALE, DIM)
    attend_uniform(q, *kv, one.cache, replace(two, way="flash"), outputs[1], SCALE, DIM, lambda *_: part)

# one key-value head: the strides of what has size 1
single = torch.zeros(5, 8, 1, 32).transpose(1, 2)[..., :16]
assert canonical(single.transpose(1, 2)).stride() == (256, 32, 16, 1) and canonical(one.cache) is one.cache
