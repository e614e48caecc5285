"""SpecForge's: EAGLE's names under SGLang's label, always with a vocabulary map; read, and written as `sglang`."""

from eagle3_serving.checkpoint.dialects.base import Dialect, Rules, architectures, has_name
from eagle3_serving.checkpoint.source import Source


def marked(source: Source) -> bool:
    """Whether it has SpecForge's names and label; keys of config.json that others add do not take them away."""
    labelled = "LlamaForCausalLMEagle3" in architectures(source)
    return labelled and "t2d" in source.tensors and has_name(source, ("midlayer.",))


DIALECT = Dialect("specforge", "SpecForge", marked, Rules(norm_output="either", trains_at_base_10000=True))
