"""The keys of config.json that we know: what is computed here, what changes nothing, and what is not judged.

A key decides nothing by being unknown. One that an engine reads, or that by its name changes arithmetic, and that is not
computed here, makes the verdict "not judged": a test holds the engines' own sources against these lists.
"""

import re

from eagle3_serving.checkpoint.findings import Finding
from eagle3_serving.checkpoint.source import Json

_COMPUTED = """
    architectures model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    hidden_act hidden_activation rms_norm_eps max_position_embeddings rope_theta rope_scaling rope_parameters
    partial_rotary_factor rotary_pct rotary_emb_fraction original_max_position_embeddings sliding_window use_sliding_window
    layer_types attention_bias mlp_bias bias vocab_size draft_vocab_size target_hidden_size tie_word_embeddings
    norm_before_residual norm_before_fc fc_norm use_aux_norm norm_output num_aux_hidden_states num_aux_layers
    eagle_aux_hidden_state_layer_ids eagle_config use_aux_hidden_state parallel_drafting mask_token_id pard_token ptd_token_id
    num_depths quantization_config compression_config eagle3_serving transformer_layer_config speculators_config
    speculators_model_type speculators_version
"""
COMPUTED = frozenset(_COMPUTED.split())

# bookkeeping of transformers, trainers and exporters, and what engines set themselves
_INERT = """
    _name_or_path _attn_implementation attn_implementation _torchspec_version transformers_version torch_dtype dtype use_cache
    attention_dropout dropout hidden_dropout resid_pdrop initializer_range bos_token_id eos_token_id pad_token_id max_window_layers
    pretraining_tp use_return_dict return_dict output_attentions output_hidden_states is_encoder_decoder id2label label2id
    problem_type chunk_size_feed_forward target_layer_count target_model_type qkv_bias auto_map has_no_defaults_at_init
    image_token_id video_token_id vision_start_token_id vision_end_token_id enable_lm_head_fp32 enable_lm_head_output_fp32
    initializer_scale
"""
INERT = frozenset(_INERT.split())

# read by an engine or known to change arithmetic, and not computed here: the value that changes nothing
UNCOMPUTED: dict[str, object] = {
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "query_pre_attn_scalar": None,
    "attention_multiplier": None,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "is_causal": True,
    "rope_is_neox_style": True,
    "dual_chunk_attention_config": None,
    "intermediate_size_mlp": None,
    "clip_qkv": None,
    "use_last_layernorm": True,
    "use_input_layernorm_in_first_layer": True,
    "use_mtp_layernorm": False,
    "parallel_draft_step": 1,
    "parallel_draft_heads_num_layers": 0,
}
_ARITHMETIC = re.compile(r"multiplier|scal(e|ing)|softcap|rope|rotary|alibi|clip|residual|norm|bias|activation")


def judge(config: Json, place: str = "") -> list[Finding]:
    """A finding for each key of `config` (at `place`) that may change what is computed and is not computed here."""
    found = []
    for key, value in config.items():
        if key in COMPUTED or key in INERT or not isinstance(key, str):
            continue
        suspect = key in UNCOMPUTED or _ARITHMETIC.search(key.lower())
        if suspect and not _changes_nothing(value, UNCOMPUTED.get(key)):
            found.append(Finding("unjudged", "any", f"{place}{key}"[:80],
                                 f"is {value!r:.60}: what it changes is not computed here", "leave it out if it changes nothing"))  # fmt: skip
    return found


def _changes_nothing(value: object, plain: object) -> bool:
    if value is None or value is plain:
        return True
    if isinstance(value, bool):
        return value is False and plain is not True
    return isinstance(value, int | float) and not isinstance(plain, bool) and value == plain
