"""One directory that vLLM and SGLang both load rightly: each finds its own keys and names in it."""

from eagle3_serving.checkpoint.dialects import common, sglang, vllm
from eagle3_serving.checkpoint.dialects.base import Dialect, Output, Tensors
from eagle3_serving.checkpoint.dialects.quantization import quantization_keys
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.names import eagle_name, sglang_name, vllm_name
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.source import Source


def _recognises(source: Source) -> bool:
    nested = source.config.get("eagle_config")
    both = isinstance(nested, dict) and nested.get("eagle_aux_hidden_state_layer_ids")
    return bool(both and source.config.get("eagle_aux_hidden_state_layer_ids"))


def refusals(neutral: Neutral, facts: TargetFacts) -> list[str]:
    found = list(dict.fromkeys(vllm.refusals(neutral, facts) + sglang.refusals(neutral, facts)))
    if neutral.head == "tied":
        found.append("a tied head: vLLM would share the target's")
    return found


def write(neutral: Neutral, facts: TargetFacts, dtype: str) -> Output:
    config = neutral.config
    single = config.num_layers == 1
    json = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **common.layer_keys(config, dtype),
        **common.drafter_keys(config),
        # vLLM reads the top-level boundaries, SGLang the nested "output of layer k - 1"
        "eagle_aux_hidden_state_layer_ids": list(config.aux_layers),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": sglang.ids(neutral, facts),
        },
    }
    if neutral.head == "target":
        json["draft_vocab_size"] = None
    rename = eagle_name if single else sglang_name
    tensors: Tensors = common.named(neutral, rename)
    if not single:
        # both engines have both norms in a later layer, and each uses one of them: the same tensor twice serves both
        tensors |= {vllm_name(n): t for n, t in neutral.tensors.items() if vllm_name(n) != sglang_name(n)}
    tensors |= common.vocabulary(neutral)
    return Output(json | quantization_keys(neutral, rename), tensors)


DIALECT = Dialect(
    "universal",
    "vLLM and SGLang in one directory",
    _recognises,
    refusals=refusals,
    write=write,
    engines=("vllm", "sglang"),
)
