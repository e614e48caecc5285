"""The drafter's arithmetic against an independent, plainly written form of the paper's equations."""

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle3_serving.drafter import Drafter, DrafterConfig, RopeConfig
from eagle3_serving.drafter.rope import inverse_frequencies
from eagle3_serving.errors import InputError

SHAPE = DrafterConfig(
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=20,
    draft_vocab_size=8,
    target_hidden_size=12,
    aux_layers=(1, 2, 3),
)
IDS = torch.tensor([0, 1, 4, 7, 9, 11, 15, 19])


def make(**changes: object) -> Drafter:
    torch.manual_seed(0)
    drafter = Drafter(DrafterConfig(**{**SHAPE.__dict__, **changes}), IDS)
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.4)  # norms' gains too: a gain of one would hide a missing norm
    return drafter.eval()


def causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def reference(drafter: Drafter, tokens: Tensor, aux: Tensor, positions: Tensor) -> Tensor:
    """The paper's section 3.1 for one request, row by row, with loops."""
    p = {name: value.detach() for name, value in drafter.named_parameters()}
    config = drafter.config

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean() + config.rms_norm_eps).sqrt() * p[f"{name}.weight"]

    def rotate(x: Tensor, position: int) -> Tensor:
        half = config.head_dim // 2
        out = x.clone()
        for j in range(half):
            angle = position * config.rope.theta ** (-2 * j / config.head_dim)
            out[:, j] = x[:, j] * math.cos(angle) - x[:, j + half] * math.sin(angle)
            out[:, j + half] = x[:, j + half] * math.cos(angle) + x[:, j] * math.sin(angle)
        return out

    keys, values, logits = [], [], []
    for row, position in enumerate(positions.tolist()):
        g = p["fusion.fc.weight"] @ aux[row]
        e = p["embed_tokens.weight"][tokens[row]]
        normed = norm(g, "layers.0.hidden_norm")
        x = torch.cat([norm(e, "layers.0.input_layernorm"), normed])
        q = rotate((p["layers.0.self_attn.q_proj.weight"] @ x).view(4, 4), position)
        keys.append(rotate((p["layers.0.self_attn.k_proj.weight"] @ x).view(2, 4), position))
        values.append((p["layers.0.self_attn.v_proj.weight"] @ x).view(2, 4))
        heads = []
        for head in range(4):
            scores = torch.stack([q[head] @ key[head // 2] for key in keys]) / 2.0
            heads.append(sum(w * value[head // 2] for w, value in zip(scores.softmax(0), values, strict=True)))
        residual = normed if config.norm_before_residual else g
        h = residual + p["layers.0.self_attn.o_proj.weight"] @ torch.cat(heads)
        y = norm(h, "layers.0.post_attention_layernorm")
        gate = p["layers.0.mlp.gate_proj.weight"] @ y
        a = h + p["layers.0.mlp.down_proj.weight"] @ (gate * gate.sigmoid() * (p["layers.0.mlp.up_proj.weight"] @ y))
        logits.append(p["lm_head.weight"] @ norm(a, "norm"))
    return torch.stack(logits)


@pytest.mark.parametrize("norm_before_residual", [False, True])
def test_the_drafter_is_the_papers(norm_before_residual: bool) -> None:
    drafter = make(norm_before_residual=norm_before_residual)
    tokens, aux, positions = torch.tensor([3, 17, 5, 0, 9]), torch.randn(5, 36), torch.arange(7, 12)
    step = drafter.step(tokens[None], drafter.fuse(aux[None]), positions[None], causal)
    expected = reference(drafter, tokens, aux, positions)
    torch.testing.assert_close(drafter.logits(step.hidden_BLH)[0], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(step.hidden_BLH, step.feedback_BLH)


def test_norm_output_feeds_the_normed_state_back() -> None:
    drafter = make(norm_output=True)
    step = drafter.step(torch.tensor([[3]]), torch.randn(1, 1, 16), torch.tensor([[2]]), causal)
    assert torch.equal(step.feedback_BLH, drafter.norm(step.hidden_BLH))


@pytest.mark.parametrize("kind", ["concat", "per_aux"])
def test_a_norm_before_fusion_makes_it_blind_to_scale(kind: str) -> None:
    drafter, aux = make(pre_fc_norm=kind, rms_norm_eps=1e-12), torch.randn(1, 3, 36)
    torch.testing.assert_close(drafter.fuse(aux), drafter.fuse(aux * 7))
    plain = make()
    assert not torch.allclose(plain.fuse(aux), plain.fuse(aux * 7))


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(500000.0),
        RopeConfig(10000.0, "linear", {"factor": 4.0}),
        RopeConfig(
            500000.0,
            "llama3",
            {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
    ],
)
def test_rope_frequencies_are_transformers_own(rope: RopeConfig) -> None:
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        head_dim=128,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": rope.type, "rope_theta": rope.theta, **rope.params},
    )
    torch.testing.assert_close(inverse_frequencies(rope, 128), LlamaRotaryEmbedding(config).inv_freq)


def test_the_vocabulary_maps_both_ways() -> None:
    vocabulary = make().vocabulary
    table = vocabulary.to_draft()
    assert torch.equal(table[vocabulary.to_target(torch.arange(8))], torch.arange(8))
    assert int((table >= 0).sum()) == 8


@pytest.mark.parametrize(
    ("ids", "said"),
    [(None, "no map"), (IDS[:5], "shape"), (IDS + 5, "outside"), (torch.zeros(8), "same target token")],
)
def test_a_wrong_map_is_refused(ids: Tensor | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Drafter(SHAPE, ids)
