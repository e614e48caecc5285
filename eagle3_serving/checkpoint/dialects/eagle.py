"""The method's own repository (SafeAILab/EAGLE): one `midlayer`, default features, plain attention."""

from eagle3_serving.checkpoint import rope
from eagle3_serving.checkpoint.dialects import common
from eagle3_serving.checkpoint.dialects.base import Dialect, Output, Rules
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.names import eagle_name
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.source import Source


def _recognises(source: Source) -> bool:
    return True  # the plainest form: whatever nobody else claims


def refusals(neutral: Neutral, facts: TargetFacts) -> list[str]:
    """What the repository's decoder has no code for."""
    config, found = neutral.config, []
    if config.num_layers > 1:
        found.append(f"{config.num_layers} layers: it has one")
    if config.norm_before_residual:
        found.append("norm_before_residual")
    if config.norm_output:
        found.append("norm_output: the post-norm state is not fed back")
    if config.pre_fc_norm != "none":
        found.append("a norm before fc (input_norm or fc_norm)")
    if config.qk_norm:
        found.append("norms of queries and keys (Qwen3)")
    if config.fc_bias or config.attention_bias or config.mlp_bias:
        found.append("biases")
    if config.head_dim != config.hidden_size // config.num_attention_heads:
        found.append(f"head_dim {config.head_dim}: it takes hidden_size / num_attention_heads")
    if config.rope.type not in ("default", "linear", "dynamic"):
        found.append(f"rope type {config.rope.type}")
    elif config.rope.partial != 1 or config.rope.params.get(rope.MROPE):
        found.append("a rotary embedding of a part of each head" if config.rope.partial != 1 else "positions of images")
    elif config.rope.type != "default" and config.rope.theta != 10000.0:
        found.append(f"rope type {config.rope.type} with base {config.rope.theta:g}: its base is 10000 there")
    if not common.is_default(neutral, facts):
        found.append(
            f"auxiliary boundaries {list(config.aux_layers)}: it has the defaults alone, and no key for others"
            if facts.num_layers is not None
            else f"auxiliary boundaries {list(config.aux_layers)}, unless they are the target's defaults: give --target "
            "DIR or --num-target-layers N"
        )
    if neutral.head != "own":
        found.append("a head that is not stored")
    if not config.own_embedding and config.hidden_size != config.target_hidden_size:
        found.append("an embedding that is not stored, of another width than the target's")
    if neutral.mask_hidden is not None:
        found.append("parallel drafting (P-EAGLE): only vLLM has it")
    if neutral.scales:
        found.append("quantised weights")
    return found


def write(neutral: Neutral, facts: TargetFacts, dtype: str) -> Output:
    config = neutral.config
    json = {"architectures": ["LlamaForCausalLMEagle3"], **common.layer_keys(config, dtype)}
    json["draft_vocab_size"] = config.draft_vocab_size
    if config.own_embedding:
        json["target_hidden_size"] = (
            config.target_hidden_size
        )  # where it stands, EAGLE does not load the target's embedding
    del json["rope_parameters"]
    if config.rope.type != "default":
        # it looks for the older key
        json["rope_scaling"] = {**json["rope_scaling"], "type": config.rope.type}
    return Output(json, common.named(neutral, eagle_name) | common.vocabulary(neutral))


DIALECT = Dialect(
    "eagle",
    "SafeAILab/EAGLE",
    _recognises,
    Rules(norm_output="either", trains_at_base_10000=True),
    refusals=refusals,
    write=write,
    engines=("eagle",),
    wants_sorted_vocabulary=True,
)
