"""The speculators library's, 0.1 to 0.9: the layer in `transformer_layer_config`, boundaries, the verifier by name."""

from eagle3_serving.checkpoint.dialects import common, vllm
from eagle3_serving.checkpoint.dialects.base import Dialect, Output, Rules
from eagle3_serving.checkpoint.dialects.quantization import quantization_keys
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.names import vllm_name
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.source import Source

VERSION = "0.9.0"  # whose config this is


def _recognises(source: Source) -> bool:
    return "speculators_model_type" in source.config or "speculators_config" in source.config


def refusals(neutral: Neutral, facts: TargetFacts) -> list[str]:
    """What vLLM computes of neither kind, and what the library's own config refuses."""
    found = vllm.refusals(neutral, facts)
    if neutral.config.pre_fc_norm == "both":
        found.append("both norms before fc: its config takes norm_before_fc or fc_norm")
    if neutral.mask_hidden is not None and (neutral.config.norms_features or neutral.config.norm_output):
        found.append("fc_norm or norm_output of a parallel drafter: vLLM reads neither in its config")
    if neutral.config.causal_head:
        found.append("a causal head: the library has none")
    return found


def write(neutral: Neutral, facts: TargetFacts, dtype: str) -> Output:
    config = neutral.config
    kind = "peagle" if neutral.mask_hidden is not None else "eagle3"
    layer = common.layer_keys(config, dtype)
    # vLLM counts the features in here, and takes 3 where nothing is said
    layer["num_aux_hidden_states"] = config.num_aux
    keys = common.drafter_keys(config)
    del keys["num_aux_hidden_states"]
    verifier = {
        "name_or_path": neutral.verifier.get("name_or_path") or facts.name or "",
        "architectures": neutral.verifier.get("architectures") or [],
    }
    method = {"proposal_type": "greedy", "speculative_tokens": 3, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    json = {
        "architectures": ["Eagle3DraftModel" if kind == "eagle3" else "PEagleDraftModel"],
        "speculators_model_type": kind,
        "speculators_version": VERSION,
        **keys,
        "eagle_aux_hidden_state_layer_ids": list(config.aux_layers),
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [method],
            "verifier": verifier,
        },
        "tie_word_embeddings": False,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    tensors = common.named(neutral, vllm_name) | common.vocabulary(neutral)
    if neutral.mask_hidden is not None:
        json["mask_token_id"] = neutral.mask_token_id
        tensors["mask_hidden"] = neutral.mask_hidden
    return Output(json | quantization_keys(neutral, vllm_name), tensors)


DIALECT = Dialect(
    "speculators",
    "speculators",
    _recognises,
    Rules(nested_ids="boundary", layer_order=False),
    refusals=refusals,
    write=write,
    engines=("vllm",),
    wants_embedding=True,
    wants_sorted_vocabulary=True,
)
