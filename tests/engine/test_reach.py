"""Targets whose layers do not see all of a text, or bend their scores: packed rows and trees give what transformers does."""

from typing import Any

import pytest
import torch
import transformers
from tiny import SIZES, tiny_drafter

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Target
from eagle3_serving.engine.reach import Reach
from eagle3_serving.train.fingerprint import of_target

WINDOW = 5
WINDOWED = {**SIZES, "sliding_window": WINDOW}
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2: windows, scores bent": ("Gemma2", {**MIXED, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3Text", {**MIXED, "num_key_value_heads": 1, "query_pre_attn_scalar": 8}),
    "gpt-oss: windows, sinks": ("GptOss", {**MIXED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama4: chunks": (
        "Llama4Text",
        {
            "layer_types": ["chunked_attention", "full_attention"] * 2,
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 32,
            "num_local_experts": 2,
            "no_rope_layers": [1, 0, 1, 0],
        },
    ),
    "cohere2": ("Cohere2", MIXED),
    "olmo3": ("Olmo3", MIXED),
    "exaone4": ("Exaone4", MIXED),
    "ministral": ("Ministral", MIXED),
    "mistral: one window for all": ("Mistral", {}),
    "mistral: no window": ("Mistral", {"sliding_window": None}),
    "llama: a key that it does not read": ("Llama", {}),
}
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5], [3]]
TOKENS = 24  # several windows, and the ends of several chunks inside a tree


def model(name: str) -> Any:
    family, more = FAMILIES[name]
    torch.manual_seed(3)
    config = getattr(transformers, f"{family}Config")(**{**WINDOWED, **more})
    made = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")._from_config(
        config, attn_implementation="eager"
    )
    for key, parameter in made.named_parameters():
        if key.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    return made.eval()


def said_by_transformers(made: Any, prompt: list[int]) -> list[int]:
    """Greedy, the whole text at every token, without a cache."""
    ids = list(prompt)
    for _ in range(TOKENS):
        ids.append(int(made(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_plain_and_drafted_are_transformers_own(name: str) -> None:
    made = model(name)
    expected = [said_by_transformers(made, prompt) for prompt in PROMPTS]
    states = made.model(input_ids=torch.tensor([PROMPTS[1]]), output_hidden_states=True, use_cache=False).hidden_states
    engine = EmbeddedEngine(Target(made, name), tiny_drafter(3))
    watched, _ = engine.target.hidden_states(torch.tensor([PROMPTS[1]]))
    torch.testing.assert_close(watched, torch.cat(states[1:4], dim=-1))  # what training reads
    accepted = 0
    for options in (
        DecodeOptions(TOKENS, "plain"),
        DecodeOptions(TOKENS, "chain", k=4),
        DecodeOptions(TOKENS, "tree", nodes=60, depth=7, top_k=6),  # deeper than the window
    ):
        for batch in (1, 3):
            said = engine.generate_many(PROMPTS, options, batch)
            assert [list(one.token_ids) for one in said] == expected
            accepted += sum(sum(one.accepted) for one in said)
    assert accepted  # a draft that is never right would pass too


def test_a_window_changes_what_is_said() -> None:
    """Or the tests above would pass without any."""
    narrow, wide = (Target(model(name)) for name in ("mistral: one window for all", "mistral: no window"))
    said = [
        EmbeddedEngine(one).generate(PROMPTS[1], DecodeOptions(TOKENS, "plain")).token_ids for one in (narrow, wide)
    ]
    assert said[0] != said[1]


def test_a_window_makes_another_target() -> None:
    """Or features of one would be read for the other: no weight differs."""
    made = [Target(model("gemma3")), Target(model("gemma3"))]
    assert of_target(made[0]) == of_target(made[1])
    made[1].model.config.sliding_window += 1
    assert of_target(made[0]) != of_target(made[1])


def test_what_a_row_sees() -> None:
    query, keys = torch.tensor([[7, 8]]), torch.arange(10)[None]
    window, chunk = Reach("window", 3).sees(query, keys)[0], Reach("chunk", 4).sees(query, keys)[0]
    assert window.nonzero()[:, 1].tolist() == [5, 6, 7, 8, 9, 6, 7, 8, 9]  # what comes after is masked elsewhere
    assert chunk.nonzero()[:, 1].tolist() == [4, 5, 6, 7, 8, 9, 8, 9]


def test_llama_4_is_bounded_where_its_temperature_would_count_rows() -> None:
    assert Target(model("llama4: chunks")).max_positions == 256
    config = transformers.Llama4TextConfig(**{**WINDOWED, **FAMILIES["llama4: chunks"][1]}, floor_scale=100)
    assert Target(transformers.Llama4ForCausalLM(config)).max_positions == 99
