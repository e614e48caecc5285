"""Other families of targets, and drafters of other dialects to go on from: each trains, is saved, and drafts exactly."""

import json
import random
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
import transformers

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.engine.pair import load_for
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.train.features import norm_weight
from eagle3_serving.train.job import TrainedDrafter, fit, train
from eagle3_serving.train.options import TrainJob, TrainOptions

VOCAB, HIDDEN = 64, 32  # those of the hand-written drafters of tests/checkpoint
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
IMAGES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "gemma": ("Gemma", {"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma3": ("Gemma3Text", {"sliding_window": 5, "num_key_value_heads": 1, "query_pre_attn_scalar": 8}),
    "gemma3, its images left out": ("Gemma3", {}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5}),
    "llama4": ("Llama4Text", {"num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 5}),
    "qwen3-moe": ("Qwen3Moe", EXPERTS),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
}


def target_directory(folder: Path, name: str) -> Path:
    family, more = TARGETS[name]
    torch.manual_seed(0)
    sizes = {key: value for key, value in SIZES.items() if not (key == "head_dim" and family == "Qwen2")}
    if family == "Gemma3":  # the whole of images and text
        text = {**sizes, **TARGETS["gemma3"][1]}
        config = transformers.Gemma3Config(
            text_config=text, vision_config=IMAGES, mm_tokens_per_image=4, image_token_id=60
        )
        model: Any = transformers.Gemma3ForConditionalGeneration(config)
    else:
        config = getattr(transformers, f"{family}Config")(**{**sizes, **more})
        model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
    for key, parameter in model.named_parameters():
        if key.endswith("model.norm.weight"):
            parameter.data += 0.3 * torch.randn_like(parameter)  # a norm that says something
    model.save_pretrained(folder)
    return folder


def job(directory: Path, tmp_path: Path, **changed: Any) -> TrainJob:
    rng = random.Random(0)
    rows = [[rng.randrange(VOCAB) for _ in range(18)] for _ in range(30)]
    file = tmp_path / "answers.jsonl"
    lines = [json.dumps({"id": str(n), "prompt_ids": row[:4], "response_ids": row[4:]}) for n, row in enumerate(rows)]
    file.write_text("\n".join(lines))
    options = TrainOptions(tokens=400, tokens_per_batch=80, warmup=2, closed_form_batches=3, bf16=False)
    settings: dict[str, Any] = {"held_out": 4, "eval_tokens": 12, "eval_limit": 3, **changed}
    if "init" not in settings:
        settings["draft_vocab_size"] = 48
    return TrainJob(directory, tmp_path / "run", answers=(file,), options=options, **settings)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_of_this_family_gets_a_drafter(tmp_path: Path, name: str) -> None:
    directory = target_directory(tmp_path / "target", name)
    made: TrainedDrafter = train(job(directory, tmp_path))
    assert made.right and made.measured is not None and made.measured.identical
    config = json.loads((made.directory / "config.json").read_text())
    assert config["hidden_act"] == "silu"


def test_gemmas_norm_is_taken_as_it_works(tmp_path: Path) -> None:
    target = Target.load(target_directory(tmp_path / "target", "gemma"))
    state = torch.randn(5, HIDDEN)
    expected = target.body.norm(state)
    ours = state * state.square().mean(-1, keepdim=True).rsqrt() * norm_weight(target)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["eagle", "explicit top-level ids", "qwen3", "norm of each feature", "post-norm feedback", "biases", "fc bias"],
)
def test_training_goes_on_from_a_drafter_of_any_dialect(tmp_path: Path, name: str) -> None:
    directory = target_directory(tmp_path / "target", "llama")
    case = cases.CASES[name]
    init = case.make(tmp_path / "init", case.drafter)
    before = load_for(Target.load(directory), init)
    # no step at all: what is saved computes what was read
    still = job(directory, tmp_path, init=init)
    zero = TrainOptions(tokens=1, learning_rate=0.0, fusion_learning_rate=0.0, warmup=2, bf16=False)
    run = fit(TrainJob(directory, tmp_path / "still", answers=still.answers, init=init, held_out=4, options=zero))
    aux = torch.randn(2, 5, 3 * HIDDEN)
    torch.testing.assert_close(run.drafter.fuse(aux), before.fuse(aux), atol=1e-3, rtol=1e-3)
    assert torch.equal(run.drafter.vocabulary.target_ids, before.vocabulary.target_ids)
    made = train(still)
    assert made.measured is not None and made.measured.identical
    after = load_for(Target.load(directory), made.directory)
    assert after.config.aux_layers == before.config.aux_layers and after.config.qk_norm == before.config.qk_norm
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert sum(moved) > 5


def test_a_drafter_of_more_layers_is_gone_on_from(tmp_path: Path) -> None:
    directory = target_directory(tmp_path / "target", "llama")
    case = cases.CASES["three layers"]
    init = case.make(tmp_path / "init", case.drafter)
    asked = job(directory, tmp_path, init=init)
    run = fit(asked)
    before = load_for(run.target, init).state_dict()
    learned = torch.load(asked.out / "state.pt", weights_only=True)["drafter"]  # what is kept may be the start
    for layer in range(3):
        name = f"layers.{layer}.mlp.down_proj.weight"
        assert not torch.equal(learned[name], before[name]), "every layer learns"


def tiny(family: str, **more: Any) -> Target:
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **more})
    return Target(getattr(transformers, f"{family}ForCausalLM")(config), family)


@pytest.mark.parametrize(
    ("family", "more", "said"),
    [
        ("Qwen3Next", EXPERTS, "layers of kind linear_attention .* cannot be taken back"),
        ("GPTNeoX", {}, "not a decoder of the Llama family"),
        ("DeepseekV2", {}, r"multi-head latent attention \(kv_lora_rank\)"),
        ("Nemotron", {}, "NemotronAttention does not hand packed rows on"),
    ],
)
def test_a_target_that_the_engine_cannot_run_is_refused_by_name(family: str, more: dict[str, Any], said: str) -> None:
    """Nemotron's layers drop the rows: it answered, every row seeing every other, and nothing told."""
    with pytest.raises(InputError, match=said):
        EmbeddedEngine(tiny(family, **more)).generate_many([[1, 2, 3, 4]], DecodeOptions(2, "plain"), 1)


def test_a_norm_that_drafters_have_not_is_refused_for_training() -> None:
    with pytest.raises(InputError, match="its final norm is no RMSNorm"):
        norm_weight(tiny("Olmo"))
