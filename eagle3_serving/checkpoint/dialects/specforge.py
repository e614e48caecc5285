"""SpecForge's: EAGLE's names under SGLang's label, always with a vocabulary map; read, and written as `sglang`."""

from eagle3_serving.checkpoint.dialects.base import Dialect, Rules, architectures, has_name
from eagle3_serving.checkpoint.source import Source


def _recognises(source: Source) -> bool:
    labelled = "LlamaForCausalLMEagle3" in architectures(source)
    top = source.config.get("eagle_aux_hidden_state_layer_ids")
    return labelled and not top and "t2d" in source.tensors and has_name(source, ("midlayer.",))


DIALECT = Dialect("specforge", "SpecForge", _recognises, Rules(norm_output="final_norm", trains_at_base_10000=True))
