"""SpecForge's: EAGLE's names under SGLang's label, always with a vocabulary map; read, and written as `sglang`."""

from eagle3_serving.checkpoint.dialects.base import Dialect, Rules, architectures, has_name
from eagle3_serving.checkpoint.source import Source

_NOT_ITS_KEYS = ("eagle_aux_hidden_state_layer_ids", "norm_before_residual", "norm_before_fc", "num_aux_hidden_states")


def _recognises(source: Source) -> bool:
    labelled = "LlamaForCausalLMEagle3" in architectures(source)
    others = any(key in source.config for key in _NOT_ITS_KEYS)
    return labelled and not others and "t2d" in source.tensors and has_name(source, ("midlayer.",))


DIALECT = Dialect("specforge", "SpecForge", _recognises, Rules(norm_output="final_norm", trains_at_base_10000=True))
