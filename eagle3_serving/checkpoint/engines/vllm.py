"""vLLM 0.32: what its two draft classes (llama_eagle3, qwen3_eagle3) make of a checkpoint."""

import re
from dataclasses import replace

from eagle3_serving.checkpoint.aux_layers import KEY, default_aux_layers
from eagle3_serving.checkpoint.dialects.base import architectures
from eagle3_serving.checkpoint.dialects.common import LITTLE, unlike_target
from eagle3_serving.checkpoint.dialects.sglang import own_embedding_is_meant
from eagle3_serving.checkpoint.engines.base import Engine, Reader, View, pre_fc_norm, stored_zero_biases
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.names import CAUSAL, vllm_name, wrapper
from eagle3_serving.checkpoint.neutral import Head, Neutral
from eagle3_serving.checkpoint.source import Json
from eagle3_serving.drafter.config import DrafterConfig
from eagle3_serving.drafter.shapes import parameter_shapes

_LLAMA = (
    "PEagleDraftModel",
    "PeagleLlamaForCausalLM",
    "Eagle3LlamaForCausalLM",
    "Eagle3MiniMaxM2ForCausalLM",
    "LlamaForCausalLMEagle3",
    "Eagle3Qwen2_5vlForCausalLM",
    "Eagle3Qwen3vlForCausalLM",
)
_QWEN3 = ("Eagle3Qwen3ForCausalLM", "PeagleQwen3ForCausalLM")
PARALLEL = '"parallel_drafting": true'
_LATER = re.compile(r"layers\.[1-9]\d*\.hidden_norm\.")


def view(neutral: Neutral, facts: TargetFacts) -> View:
    reader = Reader("vllm", "vLLM", neutral)
    keys = _speculators(reader, neutral.source.config) if "speculators_config" in neutral.source.config else None
    qwen3 = _family(reader, keys) == "qwen3"
    keys = neutral.source.config if keys is None else keys
    nested = keys.get("eagle_config")
    nested = nested if isinstance(nested, dict) else {}
    config = replace(
        neutral.config,
        aux_layers=_aux_layers(reader, keys, nested, facts),
        norm_before_residual=bool(keys.get("norm_before_residual", False)),
        pre_fc_norm=pre_fc_norm(nested.get("norm_before_fc", keys.get("norm_before_fc")), keys.get("fc_norm")),
        norm_output=bool(keys.get("norm_output", False)),
        qk_norm=qwen3,
        fc_bias=False,
        attention_bias=bool(keys.get("attention_bias", False)),
        mlp_bias=bool(keys.get("mlp_bias", False)) and not qwen3,
        num_layers=reader.num_layers(keys),
        rope=reader.rope(keys),
        hidden_act=reader.activation(keys),
    )
    reader.features(config.aux_layers)
    _count(reader, keys, nested, qwen3, neutral)
    # `bias` and `attention_bias` make o_proj's bias in its Llama; its Qwen3 has none
    biased = bool(keys.get("bias", False)) or config.attention_bias
    output = tuple(f"layers.{i}.self_attn.o_proj.bias" for i in range(config.num_layers))
    extra = () if qwen3 or not biased else tuple(name for name in output if name not in stored_zero_biases(neutral))
    lost = output if qwen3 else ()
    reader.load(config, lambda name, canonical: _take(reader, config, name, canonical, lost), extra, lost)
    _vocabulary(reader, neutral, facts)
    _parallel(reader, keys, neutral)
    _embedding(reader, neutral, facts)
    head: Head = "own" if "lm_head.weight" in reader.tensors else "target"
    if neutral.head == "tied":
        reader.silent("lm_head.weight", "the head is tied to the embedding, vLLM shares the target's head")
    return reader.finish(config, head, "embed_tokens.weight" in reader.tensors)


def _speculators(reader: Reader, raw: Json) -> Json:
    """What `update_eagle3` and `update_peagle` keep of a speculators config."""
    kind, layer = raw.get("speculators_model_type"), raw.get("transformer_layer_config")
    if kind not in ("eagle3", "peagle") or not isinstance(layer, dict):
        reader.error("speculators_model_type", f"vLLM has no drafter for speculators type {kind!r:.40}", "")
        return {}
    settings = raw.get("speculators_config")
    methods = settings.get("proposal_methods") if isinstance(settings, dict) else None
    verifier = settings.get("verifier") if isinstance(settings, dict) else None
    if not isinstance(methods, list) or not methods or not isinstance(verifier, dict) or "name_or_path" not in verifier:
        reader.error("speculators_config", "lacks proposal_methods or the verifier's name_or_path; vLLM refuses it")
    keys = dict(layer)
    for key in ("target_hidden_size", KEY):
        if raw.get(key):
            keys[key] = raw[key]
    keys["draft_vocab_size"] = raw.get("draft_vocab_size")
    keys["norm_before_residual"] = raw.get("norm_before_residual", kind == "eagle3")
    keys["norm_before_fc"] = raw.get("norm_before_fc", False)
    if kind == "eagle3":
        keys["fc_norm"], keys["norm_output"] = raw.get("fc_norm", False), raw.get("norm_output", False)
    else:
        keys["pard_token"] = raw.get("mask_token_id")
    model_type = layer.get("model_type", "llama")
    prefix = "Eagle3" if kind == "eagle3" else "Peagle"
    keys["architectures"] = [f"{prefix}{'Qwen3' if model_type == 'qwen3' else 'Llama'}ForCausalLM"]
    if model_type not in ("llama", "qwen3"):
        reader.error("transformer_layer_config.model_type", f"is {model_type!r:.40}; vLLM knows llama and qwen3")
    return keys


def _family(reader: Reader, keys: Json | None) -> str:
    labels = architectures(reader.neutral.source) if keys is None else tuple(keys.get("architectures", ()))
    label = labels[0] if labels else ""
    if keys is None and not isinstance(reader.neutral.source.config.get("model_type"), str):
        reader.error("model_type", "is missing: the engine cannot read config.json")
    if keys is None and label and not label.startswith("Eagle3") and not label.endswith("Eagle3"):
        label = f"Eagle3{label}"  # as EAGLEConfig does; PEagleDraftModel too, which only speculators' form is spared
    if label in _QWEN3:
        if not reader.neutral.config.qk_norm:
            reader.silent(
                "architectures",
                f"{labels[0]} makes vLLM norm every query and key, and this drafter has no such norms",
                "label it LlamaForCausalLMEagle3, or convert",
            )
        return "qwen3"
    if label not in _LLAMA:
        reader.error(
            "architectures", f"is {labels[0] if labels else 'missing'}; vLLM has no draft class {label or 'then'}"
        )
    return "llama"


def _aux_layers(reader: Reader, keys: Json, nested: Json, facts: TargetFacts) -> tuple[int, ...]:
    """Boundaries as Model Runner V1 takes them; where V2 takes others, that is said."""
    meant, unknown = reader.neutral.config.aux_layers, (-1,) * reader.neutral.config.num_aux
    default = default_aux_layers(facts.num_layers) if facts.num_layers is not None else unknown
    if reader.neutral.aux.default and default == unknown:
        return meant
    if keys.get(KEY):
        return tuple(sorted(set(keys[KEY])))
    inner = nested.get(KEY)
    first = tuple(sorted(set(inner))) if inner else default
    if inner and default not in (first, unknown):
        reader.silent(
            KEY,
            f"ids inside eagle_config: Model Runner V1 takes them as boundaries {list(first)}, V2 ignores them and takes "
            f"{list(default)}; the drafter was trained on {list(meant)}",
        )
    elif inner and default == unknown and first != meant:
        reader.silent(
            KEY,
            f"ids inside eagle_config: Model Runner V1 takes them as boundaries {list(first)}, V2 ignores them; the "
            f"drafter was trained on {list(meant) if -1 not in meant else 'what they mean'}",
        )
    if not inner and default == unknown and -1 not in meant:
        reader.say("warning", KEY, f"vLLM takes the target's defaults; right only if they are {list(meant)}",
                   "give --target DIR or --num-target-layers N, or convert")  # fmt: skip
        return meant
    return first


def _count(reader: Reader, keys: Json, nested: Json, qwen3: bool, neutral: Neutral) -> None:
    count = (keys.get("num_aux_layers") if qwen3 else None) or keys.get("num_aux_hidden_states")
    if count is None:
        ids = (keys.get(KEY) if qwen3 else None) or nested.get(KEY)
        count = len(ids) if ids else 3
    if count != neutral.config.num_aux:
        reader.error(
            "num_aux_hidden_states",
            f"vLLM takes {count!r:.20} features, fc reads {neutral.config.num_aux}: it will not load",
        )
    if "target_hidden_size" in keys and keys["target_hidden_size"] is None:
        reader.error("target_hidden_size", "is null; vLLM multiplies with it", "remove the key, or convert")


def _take(reader: Reader, config: DrafterConfig, name: str, canonical: str, lost: tuple[str, ...]) -> bool:
    if prefix := wrapper(name):
        reader.once(prefix, name, f"names start with `{prefix}`, which a wrapper left: vLLM knows none of them")
        return False
    if name.startswith("model."):
        reader.once("model.", name, "names start with `model.`: vLLM adds it a second time and refuses them")
        return False
    stored = name.replace("midlayer.", "layers.0.")
    if _LATER.match(stored):
        return False  # the parameter exists, and is not used
    fused = ".qkv_proj." in stored or ".gate_up_proj." in stored
    known = stored == vllm_name(canonical) or fused
    if known and canonical in parameter_shapes(config) and canonical not in lost:
        return True
    if canonical in lost and not reader.neutral.tensors[canonical].read().any():
        return False
    if name.endswith(".bias"):
        reader.silent(name, "vLLM has no such bias and skips it", "train without it: vLLM has no place for it")
    elif canonical == "fusion.input_norm.weight":
        reader.silent(name, "norm_before_fc is not true, and vLLM skips the norm")
    else:
        reader.error(name, f"vLLM has no parameter for tensor {name} and refuses the checkpoint")
    return False


def _parallel(reader: Reader, keys: Json, neutral: Neutral) -> None:
    """A parallel drafter is one by the server's command alone: config.json cannot say it to vLLM."""
    if neutral.mask_hidden is None:
        return
    if neutral.config.causal_head:
        reader.say("unjudged", CAUSAL, "a causal head: trees of this package's plugin draft with it, on vLLM's Model Runner V2; "
                   "vLLM's own drafter has no such parameter and refuses the checkpoint",
                   "eagle3 serve --engine vllm with a tree's --k")  # fmt: skip
    reader.say("unjudged", "mask_hidden", f'a parallel drafter (P-EAGLE): right where {PARALLEL} stands in '
               "--speculative-config; without it vLLM skips mask_hidden in silence, and little is accepted",
               "eagle3 serve --engine vllm says it")  # fmt: skip
    if not any(type(keys.get(key)) is int for key in ("mask_token_id", "pard_token", "ptd_token_id")):
        reader.error("mask_token_id", "is missing (also as pard_token or ptd_token_id): vLLM stops without it",
                     "write the token that stands for what is not drafted yet")  # fmt: skip


def _vocabulary(reader: Reader, neutral: Neutral, facts: TargetFacts) -> None:
    config, stored = neutral.config, [name for name in neutral.source.tensors if "d2t" in name]
    if stored and config.draft_vocab_size == (facts.vocab_size or config.vocab_size):
        reader.error(stored[0], "every token can be drafted, and there is a d2t all the same: vLLM refuses it")
    if any(name.startswith("model.") and "d2t" in name for name in stored):
        reader.error(stored[0], "vLLM knows it as d2t alone")
    if any(f.where == "d2t" and "absolute ids" in f.what for f in neutral.findings):
        reader.silent("d2t", "holds absolute ids, vLLM adds them to 0, 1, 2, ...")


def _embedding(reader: Reader, neutral: Neutral, facts: TargetFacts) -> None:
    if not neutral.config.own_embedding:
        if neutral.config.hidden_size != neutral.config.target_hidden_size:
            reader.error("embed_tokens.weight", "is missing, and the target's has another width", "export it too")
        return
    same_width = neutral.config.hidden_size == neutral.config.target_hidden_size
    apart = unlike_target(neutral, facts) if same_width and not own_embedding_is_meant(neutral) else 0.0
    if apart:
        reader.say(
            "silent" if apart > LITTLE else "warning",
            "embed_tokens.weight",
            f"is {apart:.2%} from the target's: vLLM keeps it, and the drafter was trained with the target's",
            "eagle3-convert --to vllm --target DIR leaves it out",
        )


ENGINE = Engine("vllm", "vLLM 0.32", view)
