"""The trees of the requests in flight: drafted after one target pass, verified by the next.

Shape letters: S request slots, B requests of a pass, R tree rows, K nodes, D depths.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eagle3_serving.tree import PADDING, Acceptance, DraftTree
from eagle3_vllm.attention.rows import TreeRows, tree_rows
from eagle3_vllm.compat import InputBatch, VllmConfig
from eagle3_vllm.metrics import Tally
from eagle3_vllm.settings import Settings


@dataclass
class Trees:
    """What speculator, model state and sampler of one model runner share. Buffers keep their places, so that a CUDA graph
    may hold on to them."""

    config: VllmConfig
    settings: Settings
    device: torch.device
    rows: TreeRows | None = None  # of the pass in flight; None where nothing was drafted
    accepted: Acceptance | None = None
    slots: Tensor | None = None  # [KV groups, T] of the pass in flight

    def __post_init__(self) -> None:
        slots, nodes = self.config.scheduler_config.max_num_seqs, self.config.num_speculative_tokens
        self.nodes = nodes
        self.tally = Tally(self.device)
        self.depth = min(self.settings.depth, nodes)
        self.parents_SK = torch.full((slots, nodes), PADDING, dtype=torch.long, device=self.device)
        self.only_chain_S = torch.zeros(slots, dtype=torch.bool, device=self.device)

    def forget(self, slot: int, only_chain: bool) -> None:
        """A new request in `slot`: nothing is drafted for it yet."""
        self.parents_SK[slot] = PADDING
        self.only_chain_S[slot] = only_chain

    def keep(self, slots_B: Tensor, tree: DraftTree) -> None:
        """The trees just drafted, to be verified by the next pass."""
        width = tree.parents_BN.shape[1]
        self.parents_SK[slots_B, :width] = tree.parents_BN
        self.parents_SK[slots_B, width:] = PADDING
        self.tally.drafted(tree.parents_BN)

    def begin(self, batch: InputBatch, slot_mappings: Tensor) -> None:
        """The rows of the pass that is about to run."""
        self.accepted, self.rows, self.slots = None, None, slot_mappings
        if batch.num_draft_tokens_per_req is None or not batch.num_draft_tokens:
            return
        rows_B = (batch.cu_num_logits[1:] - batch.cu_num_logits[:-1]).long()
        count = batch.num_reqs
        self.rows = tree_rows(
            self.parents_SK[batch.idx_mapping],
            rows_B,
            batch.query_start_loc[1 : count + 1].long(),
            batch.seq_lens[:count].long(),
            self.depth,
            int(batch.seq_lens_cpu_upper_bound[:count].max()),
        )

    def path_index(self) -> tuple[Tensor, Tensor]:
        """The pass's rows of accepted nodes, in order of depth, and where they belong: [B, D] each. Where nothing was
        accepted both are the root's row."""
        assert self.rows is not None and self.accepted is not None
        rows_BD, root_B1 = self.accepted.rows_BD, self.rows.index_BR[:, :1]
        depth_D = torch.arange(1, rows_BD.shape[1] + 1, device=rows_BD.device)
        there_BD = rows_BD >= 0
        return root_B1 + rows_BD.clamp(min=0), root_B1 + torch.where(there_BD, depth_D, 0)


def without_rows(attn_metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same metadata for rows that are a text."""
    if not attn_metadata:
        return attn_metadata
    plain = {id(value): copy.copy(value) for value in attn_metadata.values()}
    for value in plain.values():
        value.eagle3_rows = None
    return {name: plain[id(value)] for name, value in attn_metadata.items()}
