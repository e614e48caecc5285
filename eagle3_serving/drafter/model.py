"""The drafter: fusion, decoder, norm, head and vocabulary together."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eagle3_serving.drafter.causal import CausalHead
from eagle3_serving.drafter.config import DrafterConfig
from eagle3_serving.drafter.decoder import DraftLayer
from eagle3_serving.drafter.fusion import FeatureFusion
from eagle3_serving.drafter.layers import Attend, LayerFactory
from eagle3_serving.drafter.vocabulary import DraftVocabulary


class DraftStep(NamedTuple):
    """`hidden_BLH` goes to `logits`; `feedback_BLH` stands in for the fused feature on the next draft step."""

    hidden_BLH: Tensor
    feedback_BLH: Tensor


class Drafter(nn.Module):
    """An EAGLE-3 drafter (paper, section 3). Arithmetic only: it holds no KV cache and no mask.

    Shape letters: B batch, L rows, H draft hidden, F = A * Ht concatenated features, V draft vocabulary.
    """

    def __init__(
        self, config: DrafterConfig, target_ids: Tensor | None = None, factory: LayerFactory | None = None
    ) -> None:
        super().__init__()
        factory = factory or LayerFactory()
        self.config = config
        self.vocabulary = DraftVocabulary(target_ids, config.vocab_size, config.draft_vocab_size)
        self.embed_tokens = factory.embedding("embed_tokens", config.vocab_size, config.hidden_size)
        self.fusion = FeatureFusion(config, factory)
        self.layers = nn.ModuleList(DraftLayer(config, i, factory) for i in range(config.num_layers))
        self.mask_hidden: nn.Parameter | None = None
        if config.parallel:
            self.mask_hidden = nn.Parameter(torch.zeros(config.num_aux * config.target_hidden_size))
        self.causal = CausalHead(config, factory) if config.causal_head else None
        self.norm = factory.norm("norm", config.hidden_size, config.rms_norm_eps)
        self.lm_head = factory.linear("lm_head", config.hidden_size, config.draft_vocab_size, False)

    def fuse(self, aux_BLF: Tensor) -> Tensor:
        """Concatenated auxiliary features [B, L, A * Ht] -> fused state [B, L, H]."""
        fused_BLH: Tensor = self.fusion(aux_BLF)
        return fused_BLH

    def step(self, token_ids_BL: Tensor, hidden_BLH: Tensor, positions_BL: Tensor, attend: Attend) -> DraftStep:
        """One draft step: row i holds the state of position i and the token at i + 1, and predicts token i + 2."""
        embedding_BLH = self.embed_tokens(token_ids_BL).to(hidden_BLH.dtype)
        for layer in self.layers:
            hidden_BLH = layer(embedding_BLH, hidden_BLH, positions_BL, attend)
        feedback_BLH = self.norm(hidden_BLH) if self.config.norm_output else hidden_BLH
        return DraftStep(hidden_BLH, feedback_BLH)

    def masks(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows that stand for what is not drafted yet (P-EAGLE, arXiv 2602.01469): features [count, A * Ht] that are learned and
        the tokens [count] after them. Such a row at position i predicts token i + 2 as every other does."""
        assert self.mask_hidden is not None and self.config.mask_token_id is not None
        ids_L = torch.full((count,), self.config.mask_token_id, dtype=torch.long, device=self.mask_hidden.device)
        return self.mask_hidden.expand(count, -1), ids_L

    def follow(self, token_ids: Tensor, state_XH: Tensor, masked_XH: Tensor) -> Tensor:
        """States [..., H] of a parallel drafter's nodes [...]: `masked_XH` is what the one pass gave at their depth, `state_XH` their
        parents' states. Without a causal head a node's token changes nothing."""
        if self.causal is None:
            return masked_XH
        out_XH: Tensor = self.causal(self.embed_tokens(token_ids), state_XH, masked_XH)
        return out_XH

    def keys_values(self, token_ids_BL: Tensor, hidden_BLH: Tensor, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
        """What `step` would cache of these rows in its first layer, each [B, L, K, D]: all that a drafter of one layer
        needs of rows it does not draft from."""
        embedding_BLH = self.embed_tokens(token_ids_BL).to(hidden_BLH.dtype)
        return self.first_layer.keys_values(embedding_BLH, hidden_BLH, positions_BL)

    def logits(self, hidden_BLH: Tensor) -> Tensor:
        """[B, L, H] -> [B, L, V] over the draft vocabulary; the final norm is applied here."""
        logits_BLV: Tensor = self.lm_head(self.norm(hidden_BLH))
        return logits_BLV

    @property
    def first_layer(self) -> DraftLayer:
        """The layer that reads embedding and hidden state: the only one in the paper's drafter."""
        layer = self.layers[0]
        assert isinstance(layer, DraftLayer)
        return layer

    @property
    def dtype(self) -> torch.dtype:
        return next(self.norm.parameters()).dtype
