"""A causal head: children that depend on their node's token, where one pass drafted every depth."""

import torch
from torch import Tensor, nn

from eagle3_serving.drafter.config import DrafterConfig
from eagle3_serving.drafter.decoder import DraftMLP
from eagle3_serving.drafter.layers import LayerFactory


class CausalHead(nn.Module):
    """What a mask's state becomes once the node before it has a token, in the spirit of JetSpec (arXiv 2606.18394).

    It attends to nothing and caches nothing: beside the one pass a depth costs a projection, an MLP and the output head.
    """

    def __init__(self, config: DrafterConfig, factory: LayerFactory) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.embedding_norm = factory.norm("causal.embedding_norm", size, eps)
        self.state_norm = factory.norm("causal.state_norm", size, eps)
        self.proj = factory.linear("causal.proj", 2 * size, size, False)
        self.mlp_norm = factory.norm("causal.mlp_norm", size, eps)
        self.mlp = DraftMLP(config, "causal.mlp", factory)

    def forward(self, embedding: Tensor, state: Tensor, masked: Tensor) -> Tensor:
        """A node's state [..., H], from which its children are drafted and theirs computed: of its token's embedding, of its
        parent's state, and of the mask's at its depth."""
        hidden: Tensor = masked + self.proj(self.read(embedding, state))
        out: Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return out

    def read(self, embedding: Tensor, state: Tensor) -> Tensor:
        """What `proj` is given, [..., 2H]."""
        return torch.cat([self.embedding_norm(embedding.to(state.dtype)), self.state_norm(state)], dim=-1)
