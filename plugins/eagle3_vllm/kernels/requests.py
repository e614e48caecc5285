"""Which requests a launch serves, and which rows of the pass are theirs.

Shape letters: B requests of the padded batch.
"""

from dataclasses import dataclass

from torch import Tensor
from vllm.triton_utils import tl, triton


@dataclass(frozen=True)
class Requests:
    """A batch of `size` requests, padding included; what a launch writes for padding harms nobody.

    Request b is there if b < `count` and `idx_mapping_B[b]`, its slot, is not negative. `count` is a number where the
    launch stands outside CUDA graphs, else an int32 tensor of one element. Nothing past `count` is read.

    Uniform, `query_start_B1` None: request b has rows b * R to (b + 1) * R of the pass, and the same of the logits.
    Varlen: rows `query_start_B1[b]` to `query_start_B1[b + 1]`, of which as many at the end form its tree (the root first)
    as it has rows of the logits, `cu_num_logits_B1[b]` to `cu_num_logits_B1[b + 1]`, R at most.

    All integers are int32 or int64, as vLLM has them.
    """

    size: int
    count: int | Tensor
    idx_mapping_B: Tensor
    query_start_B1: Tensor | None = None
    cu_num_logits_B1: Tensor | None = None

    @property
    def varlen(self) -> bool:
        return self.query_start_B1 is not None

    @property
    def starts(self) -> tuple[Tensor, Tensor]:
        """`query_start_B1` and `cu_num_logits_B1`; where uniform, what no kernel reads."""
        if self.query_start_B1 is None:
            return self.idx_mapping_B, self.idx_mapping_B
        return self.query_start_B1, self.query_start_B1 if self.cu_num_logits_B1 is None else self.cu_num_logits_B1


@triton.jit
def slot_of(idx_ptr, count, b):  # type: ignore[no-untyped-def]
    """The slot of request b, -1 where it is padding."""
    # one kernel for both kinds of count: which one it is is known when it is compiled
    there = b < tl.load(count) if count.dtype.is_ptr() else b < count
    slot = tl.load(idx_ptr + b, mask=there, other=-1).to(tl.int64)
    return tl.maximum(slot, -1)


@triton.jit
def rows_of(b, slot, query_start_ptr, cu_logits_ptr, ROWS: tl.constexpr, VARLEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """(first row of the pass, rows of the pass, rows of the tree, first row of the logits) of request b.

    Uniform padding has rows as all have; varlen padding has none.
    """
    if VARLEN:
        there = slot >= 0
        first = tl.load(query_start_ptr + b, mask=there, other=0).to(tl.int32)
        length = tl.load(query_start_ptr + b + 1, mask=there, other=0).to(tl.int32) - first
        logit = tl.load(cu_logits_ptr + b, mask=there, other=0).to(tl.int32)
        rows = tl.load(cu_logits_ptr + b + 1, mask=there, other=0).to(tl.int32) - logit
    else:
        first = (b * ROWS).to(tl.int32)
        length = (b * 0 + ROWS).to(tl.int32)
        logit = first
        rows = length
    return first, length, rows, logit


def block(rows: int) -> int:
    """The power of two that holds `rows`, 16 at least."""
    return max(16, triton.next_power_of_2(rows))
