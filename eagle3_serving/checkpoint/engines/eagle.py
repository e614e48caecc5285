"""SafeAILab/EAGLE: what its decoder makes of a checkpoint; it loads with strict=False."""

from dataclasses import replace

from eagle3_serving.checkpoint import rope
from eagle3_serving.checkpoint.aux_layers import default_aux_layers
from eagle3_serving.checkpoint.engines.base import Engine, Reader, View
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.names import eagle_name
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.drafter.config import RopeConfig


def view(neutral: Neutral, facts: TargetFacts) -> View:
    reader, meant, keys = Reader("eagle", "EAGLE", neutral), neutral.config, neutral.source.config
    scaling = keys.get("rope_scaling")
    try:
        found = rope.decode({k: v for k, v in keys.items() if k != "rope_parameters"})
        # theta is honoured only without scaling
        found = RopeConfig(10000.0, found.type, found.params) if scaling else found
    except rope.RopeError as error:
        reader.error("rope_scaling", str(error))
        found = meant.rope
    if isinstance(scaling, dict) and scaling.get("type") not in ("linear", "dynamic"):
        reader.error("rope_scaling", f"type {scaling.get('type')!r:.20}: EAGLE knows linear and dynamic, under `type`")
    default = default_aux_layers(facts.num_layers) if facts.num_layers is not None else meant.aux_layers
    config = replace(
        meant,
        aux_layers=default,
        num_layers=1,
        norm_before_residual=False,
        norm_output=False,
        pre_fc_norm="none",
        qk_norm=False,
        sliding_window=None,
        fc_bias=False,
        attention_bias=False,
        mlp_bias=False,
        rope=replace(found, partial=1.0),
        hidden_act=keys.get("hidden_act") or "silu",
    )
    if meant.head_dim != meant.hidden_size // meant.num_attention_heads:
        reader.error("head_dim", f"is {meant.head_dim}; EAGLE takes hidden_size / heads")
    if len([path for path in neutral.source.files if path.suffix == ".safetensors"]) > 1:
        reader.error("model.safetensors", "is sharded; EAGLE reads one file")

    def take(name: str, canonical: str) -> bool:
        if name == eagle_name(canonical):
            return True
        reader.silent(name, "EAGLE has no parameter under this name and skips it")
        return False

    reader.load(config, take)
    if "embed_tokens.weight" not in reader.tensors and "target_hidden_size" in keys:
        reader.silent("target_hidden_size", "is there, and no embed_tokens.weight: EAGLE then loads no embedding and leaves it random",
                      "remove the key" if meant.hidden_size == meant.target_hidden_size else "export the embedding too")  # fmt: skip
    if "lm_head.weight" not in reader.tensors:
        reader.silent("lm_head.weight", "EAGLE does not find it: left as it was made")
    return reader.finish(config, "own", "embed_tokens.weight" in reader.tensors)


ENGINE = Engine("eagle", "SafeAILab/EAGLE", view)
