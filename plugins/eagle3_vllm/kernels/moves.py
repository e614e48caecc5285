"""Keys and values of accepted rows move to where a text has them, in every layer of every KV group at once.

Shape letters: G KV groups, P parts (keys or values of one layer, or both), B requests of the padded batch, D depths, T
rows of the pass, U places of a page, K key-value heads, W width of a row in one head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton

WORDS = (8, 4, 2, 1)  # bytes moved at once: the widest that divides every address
FIELDS = 9  # of a part in the table


@dataclass(frozen=True)
class KVTable:
    """Where every part lies, on the device: `table_PF` int64 [P, 9], address in bytes, then in words the strides of a page,
    a place, a head and along a row, then U, K, W and the KV group. `word` bytes; `heads` and `width` the largest."""

    table_PF: Tensor
    word: int
    heads: int
    width: int

    @classmethod
    def of(cls, parts: Sequence[tuple[int, Tensor]]) -> "KVTable":
        """`parts`: KV group and a view [pages, U, K, W] of keys, of values or of both side by side, of any strides.

        The caches must outlive the table. Raises ValueError where there is no part, or one is not of four dimensions.
        """
        if not parts:
            raise ValueError("no KV cache to move rows in")
        for _, view in parts:
            if view.dim() != 4 or view.device != parts[0][1].device:
                raise ValueError(
                    f"a KV part of shape {tuple(view.shape)} on {view.device}: [pages, U, K, W] on one device"
                )
        word = min(_word(view) for _, view in parts)
        rows = []
        for group, view in parts:
            size = view.element_size()
            _, places, heads, width = view.shape
            *outer, along = (stride * size // word for stride in view.stride())
            # a row that lies in one piece is moved in words, any other element by element
            step, count = (1, width * size // word) if view.stride(3) == 1 else (along, width)
            rows.append([view.data_ptr(), *outer, step, places, heads, count, group])
        table_PF = torch.tensor(rows, dtype=torch.int64, device=parts[0][1].device)
        return cls(table_PF, word, max(row[6] for row in rows), max(row[7] for row in rows))


def _word(view: Tensor) -> int:
    size = view.element_size()
    if view.stride(3) != 1:
        return size
    *outer, _ = (stride * size for stride in view.stride())
    spans = (view.data_ptr(), *outer, view.shape[3] * size)
    return next(word for word in WORDS if all(span % word == 0 for span in spans))


def move(table: KVTable, slots_GT: Tensor, rows_BD: Tensor, root_B: Tensor) -> None:
    """The KV row of the d-th accepted node to the place d + 1 behind its root's, in place, in one launch.

    `slots_GT` int vLLM's slot mapping of the pass, by KV group (a negative slot is left alone). `rows_BD` int64 accepted
    tree rows, -1 past them; `root_B` int64 the pass's row of each root (any stride). A row that stands where it belongs
    costs nothing. As `eagle3_serving.tree.kv_moves` with d ascending, which it says is safe in place.
    """
    batch, depth = rows_BD.shape
    types = {8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.int8}
    _move_kernel[(table.table_PF.shape[0], batch)](
        table.table_PF,
        slots_GT,
        slots_GT.stride(0),
        rows_BD,
        rows_BD.stride(0),
        root_B,
        root_B.stride(0),
        DEPTH=depth,
        FIELDS=FIELDS,
        HEADS=triton.next_power_of_2(table.heads),
        WIDTH=triton.next_power_of_2(table.width),
        WORD=types[table.word],
    )


@triton.jit(do_not_specialize=["slots_stride", "rows_stride", "root_stride"])
def _move_kernel(  # type: ignore[no-untyped-def]
    table_ptr,
    slots_ptr,
    slots_stride,
    rows_ptr,
    rows_stride,
    root_ptr,
    root_stride,
    DEPTH: tl.constexpr,
    FIELDS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WORD: tl.constexpr,
):
    field_ptr = table_ptr + tl.program_id(0) * FIELDS
    base = tl.cast(tl.load(field_ptr), tl.pointer_type(WORD))
    page_stride = tl.load(field_ptr + 1)
    place_stride = tl.load(field_ptr + 2)
    head_stride = tl.load(field_ptr + 3)
    step = tl.load(field_ptr + 4)
    places = tl.load(field_ptr + 5)
    heads = tl.load(field_ptr + 6)
    width = tl.load(field_ptr + 7)
    slot_ptr = slots_ptr + tl.load(field_ptr + 8) * slots_stride
    b = tl.program_id(1).to(tl.int64)
    root = tl.load(root_ptr + b * root_stride).to(tl.int64)
    head = tl.arange(0, HEADS)
    word = tl.arange(0, WIDTH)
    part = head[:, None] * head_stride + word[None, :] * step
    inside = (head < heads)[:, None] & (word < width)[None, :]
    # d ascending: a write never lands on a row still to be read, and every thread copies its own words in that order
    for d in range(DEPTH):
        row = tl.load(rows_ptr + b * rows_stride + d)
        if row > d + 1:
            source = tl.load(slot_ptr + root + row).to(tl.int64)
            target = tl.load(slot_ptr + root + d + 1).to(tl.int64)
            go = inside & (head < tl.where((source >= 0) & (target >= 0), heads, 0))[:, None]
            read = source // places * page_stride + source % places * place_stride
            written = target // places * page_stride + target % places * place_stride
            words = tl.load(base + read + part, mask=go)
            tl.store(base + written + part, words, mask=go)
