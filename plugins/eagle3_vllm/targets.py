"""Targets of vLLM's that do not say what an EAGLE-3 drafter reads: vLLM's own class, with its auxiliary hidden states.

vLLM 0.32 asks a target for its features by `SupportsEagle3`, which Gemma 3 has not. Boundary k is the input of layer k, the
scaled embedding at k = 0, as everywhere. The drafter's own embedding stays vLLM's module, whose rows are not scaled: the
factor stands in the target's `embed_input_ids`.
"""

from typing import Any

from torch import Tensor

from eagle3_vllm.compat import EagleModelMixin, SupportsEagle3, VllmConfig, gemma3, support_torch_compile


@support_torch_compile
class Gemma3Features(gemma3.Gemma3Model, EagleModelMixin):
    """vLLM's decoder, on one pipeline stage; what it returns grows by the watched boundaries."""

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        state_TH = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        residual_TH: Tensor | None = None
        watched: list[Tensor] = []
        for boundary, layer in enumerate(self.layers):
            self._maybe_add_hidden_state(watched, boundary, state_TH, residual_TH)
            state_TH, residual_TH = layer(positions, state_TH, residual_TH, **kwargs)
        self._maybe_add_hidden_state(watched, len(self.layers), state_TH, residual_TH)
        final_TH, _ = self.norm(state_TH, residual_TH)
        return (final_TH, watched) if watched else final_TH


class Gemma3ForCausalLM(gemma3.Gemma3ForCausalLM, SupportsEagle3):
    """vLLM's own, but that a server with EAGLE-3 gets the features."""

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        speculative = vllm_config.speculative_config
        stages = vllm_config.parallel_config.pipeline_parallel_size
        if speculative is None or speculative.method != "eagle3" or stages > 1:
            return gemma3.Gemma3ForCausalLM(vllm_config=vllm_config, prefix=prefix)
        return super().__new__(cls)

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        own = gemma3.Gemma3Model
        gemma3.Gemma3Model = Gemma3Features  # the name by which it makes its decoder
        try:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        finally:
            gemma3.Gemma3Model = own
