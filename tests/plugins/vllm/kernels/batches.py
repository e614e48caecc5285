"""Random trees by slot, and batches of them with padding, as one pass of vLLM holds them.

Shape letters: S request slots, K nodes, B requests of the padded batch.
"""

from dataclasses import dataclass, replace

import torch
from eagle3_vllm.kernels.requests import Requests
from torch import Tensor

from eagle3_serving.tree import PADDING

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS = 7


def integer(high: int, generator: torch.Generator, low: int = 0) -> int:
    """In low .. high - 1."""
    return int(torch.randint(low, high, (), generator=generator))


def random_parents(nodes: int, depth: int, generator: torch.Generator) -> Tensor:
    """[S, K] int64: slot 0 has a full tree, slot 1 a chain, slot 2 no node, others some nodes, then PADDING."""
    parents_SK = torch.full((SLOTS, nodes), PADDING)
    for slot in range(SLOTS):
        count = nodes if slot < 2 else 0 if slot == 2 else integer(nodes + 1, generator)
        deep: list[int] = []
        for node in range(count):
            parent = node - 1 if slot == 1 else integer(node, generator, low=-1)
            while parent >= 0 and deep[parent] >= depth:
                parent = integer(parent, generator, low=-1)
            deep.append(1 if parent < 0 else deep[parent] + 1)
            parents_SK[slot, node] = parent
    return parents_SK


@dataclass
class Batch:
    """`size` requests of which `real` are there; `rows_B` tree rows of each real one, `length_B` its rows of the pass."""

    requests: Requests
    real: int
    slots_B: Tensor
    rows_B: Tensor
    length_B: Tensor
    query_start_B1: Tensor
    cu_num_logits_B1: Tensor
    seq_lens_B: Tensor  # padded

    @property
    def tokens(self) -> int:
        return int(self.query_start_B1[-1])


def uniform_batch(size: int, real: int, rows: int, generator: torch.Generator, on_device: bool = False) -> Batch:
    """Every request has `rows` rows, padding too; the count is a number or stands on the device."""
    return _batch(size, real, torch.full((real,), rows), torch.full((real,), rows), rows, generator, on_device, False)


def varlen_batch(size: int, real: int, rows: int, generator: torch.Generator, prompts: bool = True) -> Batch:
    """Any number of tree rows, or of prompt rows where `prompts`; padding has none. Without prompts the rows of the logits
    are those of the pass."""
    rows_B = torch.randint(1, rows + 1, (real,), generator=generator)
    before_B = torch.randint(0, 300, (real,), generator=generator) * torch.randint(0, 2, (real,), generator=generator)
    if prompts:
        rows_B = rows_B.masked_fill(before_B > 0, 1)
    length_B = rows_B + before_B if prompts else rows_B
    batch = _batch(size, real, rows_B, length_B, rows, generator, True, True)
    return batch if prompts else replace(batch, requests=replace(batch.requests, cu_num_logits_B1=None))


def _batch(
    size: int,
    real: int,
    rows_B: Tensor,
    length_B: Tensor,
    rows: int,
    generator: torch.Generator,
    on_device: bool,
    varlen: bool,
) -> Batch:
    slots_B = torch.randperm(SLOTS, generator=generator)[:real]
    query_start_B1 = torch.nn.functional.pad(length_B.cumsum(0), (1, 0))
    cu_num_logits_B1 = torch.nn.functional.pad(rows_B.cumsum(0), (1, 0))
    seq_lens_B = torch.zeros(size, dtype=torch.int32)
    # the first request has nothing before this pass
    seq_lens_B[:real] = (length_B + torch.arange(real) * torch.randint(1, 60, (real,), generator=generator)).int()
    # a padded buffer, as graphs read it, or vLLM's own, as long as the batch
    idx_B = torch.cat([slots_B, torch.full((size - real,), -1)]).int() if on_device else slots_B
    count = torch.tensor([real], dtype=torch.int32, device=DEVICE) if on_device else real
    starts = (query_start_B1.int().to(DEVICE), cu_num_logits_B1.int().to(DEVICE)) if varlen else (None, None)
    requests = Requests(size, count, idx_B.to(DEVICE), *starts)
    return Batch(requests, real, slots_B, rows_B, length_B, query_start_B1, cu_num_logits_B1, seq_lens_B)
