"""vLLM's own: top-level boundary ids, counted layers, every norm and bias that its two draft classes have."""

from eagle3_serving.checkpoint.dialects import common
from eagle3_serving.checkpoint.dialects.base import Dialect, Output, architectures
from eagle3_serving.checkpoint.dialects.quantization import quantization_keys
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.names import vllm_name
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.source import Source


def _recognises(source: Source) -> bool:
    labels = ("Eagle3", "PEagle", "Peagle")
    nested = source.config.get("eagle_config")
    top = bool(source.config.get("eagle_aux_hidden_state_layer_ids"))
    both = isinstance(nested, dict) and bool(nested.get("eagle_aux_hidden_state_layer_ids"))
    return any(a.startswith(labels) for a in architectures(source)) or (top and not both)


def refusals(neutral: Neutral, facts: TargetFacts) -> list[str]:
    """What no class of vLLM's computes."""
    config, found = neutral.config, []
    if config.hidden_act != "silu":
        found.append(f"activation {config.hidden_act}: vLLM's Llama and Qwen3 have silu alone")
    if config.fc_bias:
        found.append("fc.bias: vLLM drops it in silence")
    if neutral.head == "tied":
        found.append("a tied head without a stored embedding: vLLM would share the target's head")
    if config.qk_norm and any(t.read().any() for n, t in neutral.tensors.items() if n.endswith("o_proj.bias")):
        found.append("a bias of o_proj in a Qwen3-shaped layer")
    if config.qk_norm and config.mlp_bias:
        found.append("biases in the MLP of a Qwen3-shaped layer")
    if neutral.target_ids is not None and config.draft_vocab_size == config.vocab_size:
        found.append("a whole vocabulary in another order: vLLM takes no d2t there")
    return found


def write(neutral: Neutral, facts: TargetFacts, dtype: str) -> Output:
    config = neutral.config
    label = "Eagle3Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLMEagle3"
    json = {"architectures": [label], **common.layer_keys(config, dtype), **common.drafter_keys(config)}
    json["eagle_aux_hidden_state_layer_ids"] = list(config.aux_layers)
    tensors = common.named(neutral, vllm_name) | common.vocabulary(neutral)
    if (
        neutral.mask_hidden is not None
    ):  # under the same label: vLLM 0.32 knows PEagleDraftModel in speculators' form alone
        json["mask_token_id"] = neutral.mask_token_id
        tensors["mask_hidden"] = neutral.mask_hidden
    return Output(json | quantization_keys(neutral, vllm_name), tensors)


DIALECT = Dialect("vllm", "vLLM", _recognises, refusals=refusals, write=write, engines=("vllm",))
