"""SGLang 0.5.23: what its LlamaForCausalLMEagle3 makes of a checkpoint; nearly all that is wrong it takes in silence."""

import re
from dataclasses import replace

from eagle3_serving.checkpoint.aux_layers import KEY, default_aux_layers, sglang_boundaries
from eagle3_serving.checkpoint.dialects.base import architectures
from eagle3_serving.checkpoint.dialects.common import LITTLE, unlike_target
from eagle3_serving.checkpoint.dialects.sglang import own_embedding_is_meant, scales_at_once
from eagle3_serving.checkpoint.engines.base import Engine, Reader, View, pre_fc_norm, stored_zero_biases
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.names import CAUSAL, sglang_name, wrapper
from eagle3_serving.checkpoint.neutral import Head, Neutral
from eagle3_serving.checkpoint.source import Json
from eagle3_serving.drafter.config import DrafterConfig, RopeConfig
from eagle3_serving.drafter.shapes import parameter_shapes

_LEGACY = (("midlayer", "layers.0"), ("aux_norm_low", "fc_norm.0"), ("aux_norm_mid", "fc_norm.1"), ("aux_norm_high", "fc_norm.2"))  # fmt: skip
_LATER = re.compile(r"layers\.[1-9]\d*\.input_layernorm\.")
WINDOW_FLAG = "--speculative-draft-window-size"  # tokens before a row's own
_NO_PLACE = "no conversion helps: SGLang has no place for it"


def view(neutral: Neutral, facts: TargetFacts) -> View:
    reader, keys = Reader("sglang", "SGLang", neutral), neutral.source.config
    nested = keys.get("eagle_config")
    nested = nested if isinstance(nested, dict) else {}
    if "LlamaForCausalLMEagle3" not in architectures(neutral.source):
        label = (architectures(neutral.source) or ("missing",))[0]
        reader.error("architectures", f"is {label}; SGLang's only Llama draft class is LlamaForCausalLMEagle3")
    if not isinstance(keys.get("model_type"), str):
        reader.error("model_type", "is missing: the engine cannot read config.json")
    tied = bool(keys.get("tie_word_embeddings", False))
    bias = bool(keys.get("bias", False))
    config = replace(
        neutral.config,
        aux_layers=_aux_layers(reader, nested, facts),
        norm_before_residual=False,
        pre_fc_norm=pre_fc_norm(
            nested.get("norm_before_fc", keys.get("norm_before_fc")), keys.get("fc_norm") or keys.get("use_aux_norm")
        ),
        norm_output=bool(keys.get("norm_output", False)),
        qk_norm=False,
        sliding_window=None,
        fc_bias=bias,
        attention_bias=False,
        mlp_bias=False,
        num_layers=reader.num_layers(keys),
        rope=_rope(reader, keys),
        hidden_act=reader.activation(keys),
    )
    reader.features(config.aux_layers)
    _keys(reader, keys, nested, tied, neutral)
    output_bias = bias or bool(keys.get("attention_bias", False))
    extra = tuple(f"layers.{i}.self_attn.o_proj.bias" for i in range(config.num_layers)) if output_bias else ()
    extra = tuple(name for name in extra if name not in stored_zero_biases(neutral))
    reader.load(config, lambda name, canonical: _take(reader, config, name, canonical, tied, extra), extra)
    if any(f.where == "d2t" and "absolute ids" in f.what for f in neutral.findings):
        reader.silent("d2t", "holds absolute ids, SGLang adds them to 0, 1, 2, ...")
    own_embedding = _embedding(reader, neutral, facts, keys)
    head: Head = "tied" if tied else "own" if keys.get("draft_vocab_size", 0) is not None else "target"
    if head == "own" and "lm_head.weight" not in reader.tensors and not reader.prefixes:
        reader.silent("lm_head.weight", "SGLang does not find it: left uninitialised, acceptance is 0")
    elif head == "target" and "lm_head.weight" in neutral.tensors:
        reader.silent("draft_vocab_size", "is null: SGLang takes the target's head in place of the stored one")
    return reader.finish(config, head, own_embedding, f"{WINDOW_FLAG} {{before}}; the plugin sets it by itself")


def _aux_layers(reader: Reader, nested: Json, facts: TargetFacts) -> tuple[int, ...]:
    meant, unknown = reader.neutral.config.aux_layers, (-1,) * reader.neutral.config.num_aux
    inner = nested.get(KEY)
    if inner:
        return tuple(sorted(set(sglang_boundaries(inner, facts.num_layers, facts.model_type))))
    if facts.num_layers is not None:
        return default_aux_layers(facts.num_layers)
    if reader.neutral.aux.default:
        return meant
    reader.say("warning", KEY, f"SGLang reads ids inside eagle_config alone and takes the target's defaults; right only "
               f"if they are {list(meant)}", "give --target DIR or --num-target-layers N, or convert")  # fmt: skip
    return unknown


def _keys(reader: Reader, keys: Json, nested: Json, tied: bool, neutral: Neutral) -> None:
    config = neutral.config
    if "draft_vocab_size" not in keys and not tied:
        reader.error("draft_vocab_size", "is missing: SGLang stops with an AttributeError")
    if "target_hidden_size" in keys and keys["target_hidden_size"] is None:
        reader.error("target_hidden_size", "is null: SGLang stops with a TypeError")
    if tied and neutral.head == "own":
        reader.silent("tie_word_embeddings", "is true: SGLang skips lm_head.weight and takes the embedding for a head")
    count = keys.get("num_aux_hidden_states")
    if count is None:
        count = len(nested[KEY]) if nested.get(KEY) else 3
    if count != config.num_aux:
        reader.error(
            "num_aux_hidden_states", f"SGLang takes {count!r:.20} features, fc reads {config.num_aux}: it will not load"
        )
    if config.num_aux * config.target_hidden_size == config.hidden_size:
        reader.silent(
            "fc.weight", "reads one feature as wide as the drafter, and SGLang leaves fc out there", _NO_PLACE
        )
    if neutral.mask_hidden is not None:
        reader.silent("mask_hidden", "a parallel drafter (P-EAGLE): SGLang drafts one token after the other", _NO_PLACE)
    if config.causal_head:
        reader.silent(CAUSAL, "a causal head: SGLang skips its tensors", _NO_PLACE)


def _rope(reader: Reader, keys: Json) -> RopeConfig:
    """It reads partial_rotary_factor at the top level alone, and scales `dynamic` from the first token on."""
    found, partial = reader.rope(keys), keys.get("partial_rotary_factor")
    if partial is None:
        found = replace(found, partial=1.0)
    if scales_at_once(found):
        reader.silent("rope_parameters", "type dynamic: SGLang scales it from the first token on, and not beyond the trained "
                      "length alone", _NO_PLACE)  # fmt: skip
    return found


def _take(reader: Reader, config: DrafterConfig, name: str, canonical: str, tied: bool, extra: tuple[str, ...]) -> bool:
    if prefix := wrapper(name):
        reader.once(
            prefix,
            name,
            f"names start with `{prefix}`, which a wrapper left: SGLang skips them all in silence",
            "silent",
        )
        return False
    stored = name
    for old, new in _LEGACY:
        stored = stored.replace(old, new)
    stored = stored.removeprefix("model.")
    if _LATER.match(stored):
        return False  # the parameter exists, and is not used
    if canonical == "lm_head.weight" and tied:
        return False
    fused = ".qkv_proj." in stored or ".gate_up_proj." in stored
    if (canonical in parameter_shapes(config) or canonical in extra) and (stored == sglang_name(canonical) or fused):
        return True
    reason = _NO_PLACE if canonical.endswith(("_norm.weight", ".bias")) and "fusion" not in canonical else ""
    reader.silent(name, "SGLang has no parameter under this name and skips it", reason)
    return False


def _embedding(reader: Reader, neutral: Neutral, facts: TargetFacts, keys: Json) -> bool:
    """Whether the drafter's own embedding stays: SGLang puts the target's in its place where the widths are equal."""
    width = keys.get("target_hidden_size", neutral.config.hidden_size)
    if width is not None and width != neutral.config.hidden_size:
        if not neutral.config.own_embedding:
            reader.silent("embed_tokens.weight", "is missing, and the target's has another width: left uninitialised",
                          "export it too")  # fmt: skip
        return True
    if neutral.config.hidden_size != neutral.config.target_hidden_size:
        reader.error("target_hidden_size", "is missing, and the target's width is not the drafter's")
    if own_embedding_is_meant(neutral):
        apart = unlike_target(neutral, facts)
        if apart:
            reader.say("silent" if apart > LITTLE else "warning", "embed_tokens.weight",
                       f"is {apart:.2%} from the target's, which SGLang puts in its place", _NO_PLACE)  # fmt: skip
        elif facts.embedding is None:
            reader.say("note", "embed_tokens.weight", "SGLang puts the target's embedding in its place",
                       "give --target DIR to have them compared")  # fmt: skip
    return False


ENGINE = Engine("sglang", "SGLang 0.5.23", view)
