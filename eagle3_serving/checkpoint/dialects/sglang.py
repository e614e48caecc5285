"""SGLang's own: nested ids of layer outputs, one Llama draft class without biases in its attention."""

from eagle3_serving.checkpoint.aux_layers import sglang_ids
from eagle3_serving.checkpoint.dialects import common
from eagle3_serving.checkpoint.dialects.base import Dialect, Output, Rules, Tensors, architectures, provenance
from eagle3_serving.checkpoint.dialects.quantization import quantization_keys
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.names import sglang_name
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.source import Source, zeros
from eagle3_serving.drafter.config import RopeConfig

# in what a conversion notes of itself: the stored embedding is a copy, and the target's is meant
EMBEDDING_NOTE, TARGETS = "embedding", "the target's"


def _recognises(source: Source) -> bool:
    return "LlamaForCausalLMEagle3" in architectures(source)


def refusals(neutral: Neutral, facts: TargetFacts) -> list[str]:
    """What SGLang's class does not compute, or computes otherwise."""
    config, found = neutral.config, []
    if config.norm_before_residual:
        found.append("norm_before_residual: SGLang takes the residual before the norm")
    if config.attention_bias:
        found.append("biases of q, k and v: SGLang has none")
    if config.mlp_bias:
        found.append("biases in the MLP: SGLang has none")
    if config.qk_norm:
        found.append("norms of queries and keys (Qwen3): SGLang has no such draft class")
    if neutral.mask_hidden is not None:
        found.append("parallel drafting (P-EAGLE): only vLLM has it")
    if config.num_aux * config.target_hidden_size == config.hidden_size:
        found.append("a single feature as wide as the drafter: SGLang leaves out fc there")
    if neutral.head == "tied" and config.own_embedding and config.target_hidden_size == config.hidden_size:
        found.append("a head tied to an own embedding: SGLang puts the target's embedding there")
    if neutral.head == "target" and neutral.target_ids is not None:
        found.append("the target's head with a vocabulary map")
    if ids(neutral, facts) is None:
        found.append(f"auxiliary boundaries {list(config.aux_layers)}: SGLang cannot say them for this target")
    apart = common.unlike_target(neutral, facts) if own_embedding_is_meant(neutral) else 0.0
    if apart > common.LITTLE:
        found.append(f"an embedding of its own, {apart:.1%} from the target's: SGLang puts the target's in its place")
    if scales_at_once(config.rope):
        found.append("rope type dynamic: SGLang scales it from the first token on")
    if config.hidden_act != "silu":
        found.append(f"activation {config.hidden_act}: SGLang's Llama has silu alone")
    return found


def scales_at_once(rope: RopeConfig) -> bool:
    return rope.type == "dynamic" and float(rope.params["factor"]) != 1


def own_embedding_is_meant(neutral: Neutral) -> bool:
    """Trainers around SGLang and EAGLE keep the target's embedding, whatever copy they ship; vLLM's readers use the copy.
    A conversion does not make such a copy the drafter's own: it notes whose it is."""
    same_width = neutral.config.target_hidden_size == neutral.config.hidden_size
    copied = provenance(neutral.source).get(EMBEDDING_NOTE) == TARGETS
    reads_it = neutral.dialect in ("vllm", "speculators", "universal")
    return neutral.config.own_embedding and same_width and reads_it and not copied


def ids(neutral: Neutral, facts: TargetFacts) -> list[int] | None:
    """The nested ids under which SGLang's target class captures the drafter's boundaries."""
    return sglang_ids(neutral.config.aux_layers, facts.num_layers, facts.model_type)


def zero_biases(neutral: Neutral) -> Tensors:
    """SGLang's `bias` key, which fc.bias needs, gives o_proj a bias too: written, or it is uninitialised memory."""
    if not neutral.config.fc_bias:
        return {}
    dtype = neutral.tensors["fusion.fc.bias"].dtype
    names = (f"layers.{i}.self_attn.o_proj.bias" for i in range(neutral.config.num_layers))
    return {name: zeros(name, dtype, (neutral.config.hidden_size,)) for name in names}


def write(neutral: Neutral, facts: TargetFacts, dtype: str) -> Output:
    config = neutral.config
    json = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **common.layer_keys(config, dtype),
        **common.drafter_keys(config),
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": ids(neutral, facts)},
    }
    if config.fc_bias:
        json["bias"] = True
    if neutral.head == "target":
        json["draft_vocab_size"] = None  # how SGLang is told to take the target's head
    json["tie_word_embeddings"] = neutral.head == "tied"
    tensors = common.named(neutral, sglang_name) | zero_biases(neutral) | common.vocabulary(neutral)
    return Output(json | quantization_keys(neutral, sglang_name), tensors)


DIALECT = Dialect("sglang", "SGLang", _recognises, Rules(), refusals=refusals, write=write, engines=("sglang",))
