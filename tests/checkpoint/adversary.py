"""Drafters of every combination that we could think of, each in the writing of a trainer that can say it, by seed.

`python tests/checkpoint/adversary.py 2000` converts as many, to every dialect, and tells what is not as it should be.
"""

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import drafters
import torch
from drafters import Known, known
from reference import READERS, Rules, Target, logits, stored
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle3_serving.checkpoint import check, convert
from eagle3_serving.drafter import RopeConfig
from eagle3_serving.errors import CheckError

DIALECTS = ("vllm", "sglang", "universal", "speculators", "eagle")
OWN_COUNTS = ("vllm", "speculators")  # whose own readers use the drafter's copy of the embedding
NESTED = ("specforge", "torchspec", "sglang", "modelopt")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Adversary(NamedTuple):
    """`drafter` is what the directory means. `embedding`: none, copy (the target's), near, other. `writer` and the rest say
    how it is written down."""

    drafter: Known
    writer: str
    embedding: str
    dtype: str
    layout: str
    ids: str
    tied: bool
    extra: dict[str, Any]


def draw(seed: int) -> Adversary:
    """One of them; a writer is asked only for what it can write."""
    rng = random.Random(seed)
    writer = rng.choice(("eagle", "specforge", "torchspec", "angelslim", "vllm", "speculators", "sglang", "modelopt"))
    rich, sglangs = writer in ("vllm", "speculators"), writer in ("sglang", "torchspec", "specforge")
    changes: dict[str, Any] = {}
    if rng.random() < 0.4:
        changes["draft_vocab_size"] = drafters.VOCAB
    if writer not in ("eagle", "angelslim") and rng.random() < 0.4:
        changes["aux_layers"] = rng.choice(
            ((2, 5, 11), (1, 6, 10), (4, 6, 8)) if writer != "specforge" else ((2, 5, 11),)
        )
    if rich and rng.random() < 0.2:
        changes["aux_layers"] = rng.choice(((1, 4, 8, 11), (3, 9), (2, 6, 12)))
    if (rich or sglangs) and rng.random() < 0.4:
        changes["pre_fc_norm"] = rng.choice(
            ("concat", "per_aux", "both") if writer == "vllm" else ("concat", "per_aux")
        )
        if writer in ("specforge", "torchspec"):
            changes["pre_fc_norm"] = "per_aux"
    if rich or writer == "sglang" or (sglangs and changes.get("pre_fc_norm")) or writer == "torchspec":
        changes["norm_output"] = rng.random() < 0.4
    if rich:
        changes["norm_before_residual"] = rng.random() < 0.3
        changes["qk_norm"] = rng.random() < 0.25
        changes["attention_bias"] = rng.random() < 0.25
    if writer == "vllm":
        changes["mlp_bias"] = rng.random() < 0.15
    if writer == "modelopt":
        changes["fc_bias"] = rng.random() < 0.3
    if rich and rng.random() < 0.2:
        changes["num_layers"] = rng.choice((2, 3))
    if writer not in ("eagle", "angelslim") and rng.random() < 0.2:
        changes["head_dim"] = 16
    if writer == "speculators" and rng.random() < 0.2:
        changes["sliding_window"] = 4
    if writer not in ("eagle", "angelslim") and rng.random() < 0.25:
        changes["rope"] = rng.choice((RopeConfig(5000.0, "linear", {"factor": 4.0}), RopeConfig(5000.0, partial=0.5)))
    if rich and rng.random() < 0.15:
        changes["target_hidden_size"] = 48
    embedding = rng.choice(("none", "copy", "near", "other"))
    if changes.get("target_hidden_size"):
        embedding = "other"
    changes["own_embedding"] = embedding != "none"
    drafter = known(seed, **changes)
    tied = writer == "vllm" and embedding != "none" and drafter.ids is None and rng.random() < 0.2
    tensors = dict(drafter.tensors)
    if embedding == "copy":
        tensors["embed_tokens.weight"] = drafters.embedding()
    elif embedding == "near":
        tensors["embed_tokens.weight"] = drafters.embedding() * 1.01
    if tied:
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"]
    dtype = rng.choice(("float32", "float32", "bfloat16", "float16"))
    tensors = {n: t.to(DTYPES[dtype]).float() for n, t in tensors.items()}
    extra = rng.choice(({}, {"num_aux_hidden_states": drafter.config.num_aux}, {"use_cache": True, "my_note": "x"}))
    layout = rng.choice(("one", "one", "shards", "prefixed", "pickle", "fused"))
    return Adversary(drafter._replace(tensors=tensors), writer, embedding, dtype, layout, "", tied, dict(extra))


def write(folder: Path, made: Adversary) -> Path:
    """The directory, as `made.writer` writes it."""
    drafter, config = made.drafter, made.drafter.config
    if made.writer in ("eagle", "angelslim"):
        drafters.as_eagle(folder, drafter)
        if made.writer == "angelslim":
            drafters.edit(folder, _name_or_path="AngelSlim/some_eagle3")
    elif made.writer in ("specforge", "torchspec"):
        drafters.as_specforge(folder, drafter, explicit=config.aux_layers != (2, 6, 9))
        changes: dict[str, Any] = {"norm_output": config.norm_output} if config.norm_output else {}
        drafters.edit(folder, **changes, **({"_torchspec_version": "0.1.0"} if made.writer == "torchspec" else {}))
    elif made.writer == "modelopt":
        as_counted(folder, drafter)
        (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": {}}))
    elif made.writer == "sglang":
        as_counted(folder, drafter)
    else:
        drafters.as_vllm(folder, drafter) if made.writer == "vllm" else drafters.as_speculators(folder, drafter)
    drafters.edit(folder, **made.extra)
    _say_rope(folder, config.rope)
    tensors = {
        n: t.to(DTYPES[made.dtype]) if t.is_floating_point() else t
        for n, t in load_file(folder / "model.safetensors").items()
    }
    if made.tied:
        del tensors["lm_head.weight"]
        drafters.edit(folder, tie_word_embeddings=True)
    if config.mlp_bias:
        drafters.edit(folder, mlp_bias=True)
    _lay_out(folder, tensors, made)
    return folder


def as_counted(folder: Path, drafter: Known) -> Path:
    """SGLang's own names and nested ids of outputs."""
    c = drafter.config
    config = {**drafters.plain_config(c), "architectures": ["LlamaForCausalLMEagle3"], "norm_output": c.norm_output}
    config["eagle_config"] = {
        "eagle_aux_hidden_state_layer_ids": [k - 1 for k in c.aux_layers],
        "use_aux_hidden_state": True,
    }
    config |= {"norm_before_fc": c.norms_concatenation, "fc_norm": c.norms_features}
    ids = drafters.vocabulary(drafter.ids)
    ids.pop("t2d", None)
    return drafters.save(folder, config, {n.removeprefix("fusion."): t for n, t in drafter.tensors.items()} | ids)


def _say_rope(folder: Path, rope: RopeConfig) -> None:
    raw = json.loads((folder / "config.json").read_text())
    keys = raw.get("transformer_layer_config", raw)
    if rope.type == "linear":
        keys["rope_scaling"] = {"type": "linear", **rope.params}
    if rope.partial != 1:
        keys["partial_rotary_factor"] = rope.partial
    (folder / "config.json").write_text(json.dumps(raw))


def _lay_out(folder: Path, tensors: dict[str, Tensor], made: Adversary) -> None:
    path = folder / "model.safetensors"
    path.unlink()
    if made.layout == "prefixed":
        tensors = {n if n in ("d2t", "t2d", "lm_head.weight") else f"model.{n}": t for n, t in tensors.items()}
    elif made.layout == "fused":
        for name in [n for n in tensors if n.endswith("q_proj.weight")]:
            stem = name.removesuffix("q_proj.weight")
            if f"{stem}q_proj.bias" not in tensors:
                tensors[f"{stem}qkv_proj.weight"] = torch.cat([tensors.pop(f"{stem}{x}_proj.weight") for x in "qkv"])
    elif made.layout == "pickle":
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    elif made.layout == "shards":
        names = sorted(tensors)
        where = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
        for file in set(where.values()):
            save_file({n: tensors[n].contiguous().clone() for n in names if where[n] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        return
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path)


def can_express(made: Adversary, to: str, target: bool) -> bool:
    """By hand, from what the engines' classes have."""
    c, drafter = made.drafter.config, made.drafter
    whole = c.draft_vocab_size == c.vocab_size
    other = made.embedding == "other" and c.target_hidden_size == c.hidden_size
    meant = made.writer in OWN_COUNTS
    head_moves = other and meant and target
    sglang = not (
        c.norm_before_residual
        or c.attention_bias
        or c.mlp_bias
        or c.qk_norm
        or max(c.aux_layers) >= drafters.N
        or head_moves
    )
    vllm = not c.fc_bias and not (c.qk_norm and c.mlp_bias)
    if c.qk_norm and c.attention_bias:
        vllm = vllm and not any(t.any() for n, t in drafter.tensors.items() if n.endswith("o_proj.bias"))
    eagle = not (
        c.num_layers > 1 or c.norm_before_residual or c.norm_output or c.pre_fc_norm != "none" or c.qk_norm
        or c.fc_bias or c.attention_bias or c.mlp_bias or c.head_dim != c.hidden_size // c.num_attention_heads
        or c.aux_layers != (2, 6, 9) or c.rope.partial != 1 or c.rope.type != "default"
    )  # fmt: skip
    assert whole or drafter.ids is not None
    if to == "speculators":
        return vllm and c.pre_fc_norm != "both"
    return {"vllm": vllm, "sglang": sglang, "universal": vllm and sglang, "eagle": eagle}[to]


def meaning(made: Adversary) -> tuple[dict[str, Tensor], Rules]:
    """What the directory means, for the reference."""
    c = made.drafter.config
    w = {n.removeprefix("fusion."): t for n, t in made.drafter.tensors.items()}
    ids = torch.arange(drafters.VOCAB) if made.drafter.ids is None else made.drafter.ids
    rope = {"theta": c.rope.theta, "factor": c.rope.params.get("factor", 1.0), "partial": c.rope.partial}
    return w, Rules(
        c.aux_layers, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rms_norm_eps, rope, c.norms_concatenation,
        c.norms_features, c.norm_before_residual, c.norm_output, c.qk_norm, c.num_layers, c.sliding_window, ids,
    )  # fmt: skip


def faults(seed: int, folder: Path) -> list[str]:
    """What is not as it should be with drafter `seed`, one line each."""
    made, found = draw(seed), []
    source = write(folder / "source", made)
    with_target = seed % 2 == 0 and made.drafter.config.target_hidden_size == drafters.HIDDEN
    facts: dict[str, Any] = {"num_target_layers": drafters.N}
    if with_target:
        facts = {"target": drafters.target_directory(folder / "target")}
    # nested ids that cannot be told are asked
    answer: Any = "output" if made.writer in NESTED and made.drafter.config.aux_layers[0] != 2 else None
    width = made.drafter.config.target_hidden_size
    target = Target(drafters.N, width, drafters.embedding(), drafters.embedding(98))
    if len(target.embedding[0]) != made.drafter.config.hidden_size:
        raise AssertionError("a target of another width has no embedding here")
    for to in DIALECTS:
        where = f"seed {seed} ({made.writer}, {made.layout}, {made.embedding}, {made.dtype}) to {to}"
        expected = can_express(made, to, with_target)
        try:
            report = convert(source, folder / to, to=to, aux_convention=answer, **facts)
        except CheckError as error:
            if expected:
                found.append(f"{where}: refused: {error}")
            elif "cannot express" not in str(error):
                found.append(f"{where}: not refused by name: {error}")
            continue
        if not expected:
            found.append(f"{where}: was expected to be refused")
            continue
        if not report.parity or any(p.max_difference != 0 for p in report.parity):
            found.append(f"{where}: no proof, or not exact: {report.parity} {report.parity_note}")
        engine = {"universal": None, "speculators": "vllm"}.get(to, to)
        wrong = [f.line() for f in check(folder / to, engine=engine, **facts) if f.breaks or f.unjudged]
        if wrong:
            found.append(f"{where}: its check says {wrong}")
        w, rules = meaning(made)
        tensors = stored(folder / to)[1]
        for read in READERS[to]:
            w2, rules2 = read(folder / to, target)
            mine = dict(w)
            lent = made.embedding == "none" or "embed_tokens.weight" not in tensors or read.__name__ == "of_sglang"
            left_out = with_target and made.writer not in OWN_COUNTS and made.embedding != "copy"
            if (lent or left_out) and width == made.drafter.config.hidden_size:
                mine["embed_tokens.weight"] = target.embedding  # the engine's, and said so
            if made.tied and made.embedding != "copy" and mine["embed_tokens.weight"] is target.embedding:
                mine["lm_head.weight"] = w["lm_head.weight"]
            if rules2.window != rules.window:
                rules2 = rules2._replace(window=rules.window)  # SGLang's is a flag of the server, and the check says so
            one, other = logits(mine, rules, width), logits(w2, rules2, width)
            same = torch.equal(one.isinf(), other.isinf())
            gap = float((one - other).nan_to_num(0, 0, 0).abs().max())
            if not same or gap > 1e-3:
                found.append(f"{where}: {read.__name__} computes something else: {gap:.3g}, the same tokens: {same}")
    return found


def survey(count: int, first: int = 0) -> int:
    bad = 0
    for seed in range(first, first + count):
        folder = Path(tempfile.mkdtemp(prefix="adversary-"))
        try:
            for line in faults(seed, folder):
                bad += 1
                print(line, flush=True)
        finally:
            shutil.rmtree(folder)
    print(f"{count} drafters, {count * len(DIALECTS)} conversions, {bad} faults")
    return bad


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(bool(survey(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
