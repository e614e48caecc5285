"""Draft tokens on their way to the scheduler: each request hands over as many as its tree has nodes."""

from typing import Any

import torch

from eagle3_serving.tree import PADDING
from eagle3_vllm.compat import DraftTokenIds, DraftTokensHandler, InputBatch
from eagle3_vllm.trees import Trees


class TreeDraftTokens(DraftTokensHandler):
    """Where scheduling waits for a step's end, a request is scheduled exactly its nodes, and what the batch saves on one
    request it can spend on another. Under asynchronous scheduling every request was scheduled the full width before its
    tree was drawn: slots without a node are verified and never accepted."""

    def __init__(self, device: torch.device, trees: Trees) -> None:
        super().__init__(device)
        self.trees = trees
        self.nodes_B: torch.Tensor | None = None

    def set_draft_tokens(self, input_batch: InputBatch, draft_tokens: torch.Tensor) -> None:
        super().set_draft_tokens(input_batch, draft_tokens)
        self.nodes_B = None
        # asynchronous scheduling asks for drafts only to check them against grammars
        if input_batch.has_structured_output_reqs or not self.trees.config.scheduler_config.async_scheduling:
            self.nodes_B = (self.trees.parents_SK[input_batch.idx_mapping] != PADDING).sum(1)

    def get_draft_tokens(self) -> Any:
        drafted = super().get_draft_tokens()
        if drafted is None or self.nodes_B is None:
            return drafted
        pairs = zip(drafted.draft_token_ids, self.nodes_B.tolist(), strict=True)
        return DraftTokenIds(drafted.req_ids, [tokens[:nodes] for tokens, nodes in pairs])
