"""vLLM's own Triton backend with trees, its own kernels beside ours, over every layout of its cache; and the ways of a pass
that is all trees."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from batches import DEVICE
from eagle3_vllm.attention import split_kv, tree_block
from eagle3_vllm.attention.layout import canonical, pages
from eagle3_vllm.attention.split_kv import Plan, Scratch
from eagle3_vllm.attention.triton_backend import TreeTritonAttentionBackend
from eagle3_vllm.attention.uniform import UniformRows, attend_uniform
from eagle3_vllm.kernels.begin import TreeBuffers
from eagle3_vllm.trees import PassRows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.v1.attention.backends.triton_attn import TritonAttentionMetadata
from vllm.v1.kv_cache_layout import KVCacheLayout

from eagle3_serving.attention import attend
from eagle3_serving.tree import PADDING, tree_layout, with_root

HEADS, KV_HEADS, DIM, PAGE = 4, 2, 16, 8
SCALE = DIM**-0.5
PLAN = Plan(splits=2, tile=16, block=16, warps=4, stages=1)


@pytest.fixture(autouse=True)
def on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(3)
    if DEVICE == "cpu":  # vLLM's kernels ask it for the size of their blocks
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with torch.device(DEVICE):
        yield


def cache_of(layout: KVCacheLayout, count: int) -> Tensor:
    """The second of three layers' caches as vLLM shows it, [pages, K, U, 2 D], lying as `layout` says."""
    shape = 3, count, KV_HEADS, PAGE, 2 * DIM
    physical = torch.full([shape[dim] for dim in layout.stride_order], torch.nan)
    logical = physical.permute([layout.stride_order.index(dim) for dim in range(5)])
    assert logical.shape == shape
    return logical[1]


class Pass:
    """Three requests: a tree of six rows, a prompt's chunk of three, a text's one row; 21, 9 and 16 rows before them."""

    def __init__(self, layout: KVCacheLayout) -> None:
        self.prefix, self.widths = torch.tensor([21, 9, 16]), torch.tensor([6, 3, 1])
        self.impl: Any = TreeTritonAttentionBackend.get_impl_cls()(HEADS, DIM, SCALE, KV_HEADS, None, None, "auto")
        self.table = torch.arange(1, 13).view(3, 4)[:, [2, 0, 3, 1]].int().contiguous()
        self.cache = cache_of(layout, 14)
        self.length = self.prefix + self.widths
        self.k, self.v = (torch.randn(3, 32, KV_HEADS, DIM) for _ in range(2))
        self.layer = SimpleNamespace(kv_cache=self.cache, head_size=DIM, impl=self.impl, _k_scale=torch.ones(1))
        self.layer._v_scale, self.layer._q_scale = torch.ones(1), torch.ones(1)
        place = torch.arange(32)
        slots = self.table[:, place // PAGE] * PAGE + place % PAGE
        held = place < self.length[:, None]
        self.impl.do_kv_cache_update(self.layer, self.k[held], self.v[held], self.cache, slots[held].long())
        own = held & (place >= self.prefix[:, None])
        self.key, self.value = self.k[own], self.v[own]
        self.query = torch.randn(10, HEADS, DIM)
        self.starts = torch.tensor([0, 6, 9, 10]).int()
        tree = tree_layout(with_root(torch.tensor([[-1, 0, 0, -1, 3], [PADDING] * 5, [PADDING] * 5])), 3)
        index = torch.tensor(
            [[0, 1, 2, 3, 4, 5], [8] * 6, [9] * 6]
        )  # a chunk's last row is a tree, and a text's one row
        before = torch.tensor([21, 11, 16]).int()
        buffers = TreeBuffers(tree.parents_BN, tree.depth_BN, tree.ancestors_BNN, index, before)
        self.rows = PassRows(buffers, self.starts, whole=False, longest=27)
        self.causal = [torch.ones(w, w, dtype=torch.bool).tril() for w in (6, 3, 1)]
        self.masks = [tree.ancestors_BNN[0], *self.causal[1:]]

    def whole(self) -> UniformRows:
        """The same over buffers that keep their places, every row of the pass a tree's."""
        mask = torch.zeros(3, 6, 6, dtype=torch.int8)
        for b, own in enumerate(self.masks):
            mask[b, : len(own), : len(own)] = own
        at = mask, self.prefix.int(), self.table, self.starts, 27, PLAN
        return UniformRows(*at, Scratch.make([(PLAN, 18)], HEADS, DIM, torch.device(DEVICE)), varlen=True)

    def metadata(self, rows: Any) -> TritonAttentionMetadata:
        names = "softmax_segm_output", "softmax_segm_max", "softmax_segm_expsum"
        metadata = TritonAttentionMetadata(
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
        metadata.eagle3_rows = rows
        return metadata

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


OWN = 1e-5 if DEVICE == "cpu" else 5e-3  # of vLLM's own kernel, which multiplies in TF32 on a GPU (0.0016 on an H100)


# vLLM's own kernel takes a second under the interpreter
@pytest.mark.parametrize("layout", [KVCacheLayout.LBNHC, KVCacheLayout.BHLNC], ids=lambda layout: layout.name)
def test_a_mixed_pass(layout: KVCacheLayout) -> None:
    one = Pass(layout)
    assert (one.forward(one.metadata(one.rows)) - one.want(one.masks)).abs().max() < OWN


@pytest.mark.parametrize("layout", KVCacheLayout, ids=lambda layout: layout.name)
def test_a_pass_of_trees_alone(layout: KVCacheLayout) -> None:
    one = Pass(layout)
    assert (one.forward(one.metadata(one.whole())) - one.want(one.masks)).abs().max() < 1e-5


def test_without_trees_it_is_vllm_s_own() -> None:
    one = Pass(KVCacheLayout.LBNHC)
    assert (one.forward(one.metadata(None)) - one.want(one.causal)).abs().max() < OWN


def test_a_table_of_ours_goes_before_the_metadata_s() -> None:
    """FlashInfer's metadata has none."""
    one = Pass(KVCacheLayout.LBNHC)
    metadata = one.metadata(one.rows)
    metadata.block_table, metadata.eagle3_table = one.table.roll(1, 0), one.table
    assert (one.forward(metadata)[:6] - one.want(one.masks)[:6]).abs().max() < 1e-5


def test_quantised_output_is_refused() -> None:
    one = Pass(KVCacheLayout.LBNHC)
    at = one.layer, one.query, one.key, one.value, one.cache, one.metadata(one.rows), one.query
    with pytest.raises(NotImplementedError, match="EAGLE3_MODE=chain"):
        one.impl.forward(*at, torch.ones(1))


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("window", [None, 8, 40])
def test_a_draft_sees_a_window_of_its_prefix(window: int | None, past: int) -> None:
    """Rows of a draft stand at one place, `past` behind the prefix, and see all of the draft that their mask shows."""
    one = Pass(KVCacheLayout.LBNHC)
    q, k, v = (torch.randn(3, rows, heads, DIM) for rows, heads in ((2, HEADS), (5, KV_HEADS), (5, KV_HEADS)))
    mask = (torch.rand(3, 2, 5) < 0.5).logical_or(torch.eye(5)[3:].bool())
    prefix = one.impl.tree_prefix(one.layer, one.table, one.prefix.int(), 27, window)
    said = prefix.attend(q, k, v, mask, past)
    for b, before in enumerate(one.prefix.tolist()):
        seen = torch.ones(2, before, dtype=torch.bool)
        if window is not None:
            seen &= torch.arange(before) > before + past - window
        keys, values = (torch.cat([x[b, :before], own[b]])[None] for x, own in ((one.k, k), (one.v, v)))
        want = attend(q[b : b + 1], keys, values, torch.cat([seen, mask[b]], 1)[None], SCALE).out_BRAD[0]
        assert (said[b] - want).abs().max() < 1e-5


class TwoTrees:
    """Two requests of six rows over a cache, the second only there to fill a graph; two rows of the pass are nobody's."""

    def __init__(self) -> None:
        one = Pass(KVCacheLayout.LBNHC)
        self.cache = one.cache
        self.inputs = [torch.randn(14, heads * DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        mask = (torch.rand(2, 6, 6) < 0.4).logical_or(torch.eye(6).bool())
        at = mask, torch.tensor([21, 0]).int(), one.table[:2], torch.tensor([0, 6, 12]).int(), 27, PLAN
        self.rows = UniformRows(*at, Scratch.make([(PLAN, 12)], HEADS, DIM, torch.device(DEVICE)))

    def attend(self, over_prefix: Callable[..., Any] | None = None, **change: Any) -> Tensor:
        output = torch.full((14, HEADS * DIM), torch.nan)
        return self.into(output, over_prefix, **change)

    def into(self, output: Tensor, over_prefix: Callable[..., Any] | None = None, **change: Any) -> Tensor:
        return attend_uniform(*self.inputs, self.cache, replace(self.rows, **change), output, SCALE, DIM, over_prefix)


def over_prefix(q_TAD: Tensor, keys: Tensor, values: Tensor, rows: UniformRows) -> tuple[Tensor, Tensor]:
    """What FlashAttention computes."""
    k, v = (x[rows.table_BN.long()].flatten(1, 2)[:, :27].nan_to_num() for x in (keys, values))
    seen = (torch.arange(27) < rows.prefix_B[:, None])[:, None].expand(-1, 6, -1)
    state = attend(q_TAD.unflatten(0, (2, 6)), k, v, seen, SCALE)
    return state.out_BRAD.flatten(0, 1), state.lse_BRA.flatten(0, 1).T.contiguous()


def test_both_ways_are_one_attention() -> None:
    two = TwoTrees()
    split, flash = two.attend(), two.attend(over_prefix, way="flash")
    assert split[12:].isnan().all() and not split[:12].isnan().any()
    assert (split[:12] - flash[:12]).abs().max() < 1e-5


def test_the_way_flash_needs_flash_attention_and_one_width() -> None:
    two = TwoTrees()
    with pytest.raises(ValueError, match="this backend has"):
        two.attend(way="flash")
    with pytest.raises(ValueError, match="one width"):
        two.attend(over_prefix, way="flash", varlen=True)


class Views(TorchDispatchMode):
    """What is not a view of what is there would be made anew, or read by the host, in a captured graph too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.is_view, func
        return func(*args, **(kwargs or {}))


class NotLaunched:
    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *_, **__: None


def test_nothing_is_made_or_read_around_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    two = TwoTrees()
    output = two.attend()
    part = over_prefix(two.inputs[0][:12].view(12, HEADS, DIM), *pages(two.cache, DIM), two.rows)
    for module, name in ((split_kv, "_split_kernel"), (split_kv, "_combine_kernel"), (tree_block, "_merged_kernel")):
        monkeypatch.setattr(module, name, NotLaunched())
    with Views():
        two.into(output)
        two.into(output, varlen=True)
        two.into(output, lambda *_: part, way="flash")


def test_the_strides_of_one_key_value_head() -> None:
    single = torch.zeros(5, 8, 1, 32).transpose(1, 2)[..., :16]
    assert canonical(single.transpose(1, 2)).stride() == (256, 32, 16, 1)
    several = torch.zeros(5, 8, 2, 32)
    assert canonical(several) is several
