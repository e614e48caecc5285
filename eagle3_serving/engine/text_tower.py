"""The language model inside a model that also sees or hears: a causal LM by itself, for texts."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput


class TextTower(nn.Module):
    """The decoder and the head of `whole`, under the names that a transformers causal LM has; nothing else is kept. Three
    rotary positions of a token (mrope) are one where there are no images."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.config = whole.config.get_text_config()
        self.model = whole.model.language_model
        self.lm_head = whole.lm_head
        self.generation_config = getattr(whole, "generation_config", None)

    @staticmethod
    def within(model: Any) -> bool:
        """Whether a model holds one."""
        tower = getattr(getattr(model, "model", None), "language_model", None)
        return all(hasattr(tower, part) for part in ("layers", "norm")) and hasattr(model, "lm_head")

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.lm_head
        return head

    def forward(self, input_ids: Tensor, logits_to_keep: int | Tensor = 0, **kwargs: Any) -> CausalLMOutput:
        """As transformers' own: `logits_to_keep` the last so many rows (0: all) or their indices; logits [B, L, V]."""
        states_BLH = self.model(input_ids=input_ids, **kwargs).last_hidden_state
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BLV = self.lm_head(states_BLH[:, rows])
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits_BLV = cap * torch.tanh(logits_BLV / cap)
        return CausalLMOutput(logits=logits_BLV)
