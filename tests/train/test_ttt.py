"""Training-time test must compute what drafting computes: step n of the unrolled loss = the n-th chained draft step."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eagle3_serving.drafter import Drafter, DrafterConfig
from eagle3_serving.errors import InputError
from eagle3_serving.train.criterion import OBJECTIVES, Criterion, Objective
from eagle3_serving.train.data import Answer, choose_vocabulary, make_batches, read_answers
from eagle3_serving.train.features import FeatureBatch, FeatureCache, FeatureSource
from eagle3_serving.train.objectives import token_loss
from eagle3_serving.train.ttt import TrueRows, UnrolledAttention, ttt_loss, unroll

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import tiny_target

CONFIG = DrafterConfig(
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=20,
    draft_vocab_size=20,
    target_hidden_size=16,
    aux_layers=(1, 2, 3),
)


def make_batch(**changes: Any) -> tuple[Drafter, FeatureBatch]:
    torch.manual_seed(0)
    drafter = Drafter(replace(CONFIG, **changes))
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    tokens, rows = torch.randint(0, 20, (2, 12)), torch.tensor([8, 5])
    batch = FeatureBatch(tokens, torch.randn(2, 12, 48), torch.randn(2, 8, 16), torch.tensor([3, 4]), rows)
    return drafter, batch


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_step_is_the_same_step() -> None:
    drafter, batch = make_batch()
    head, found = torch.randn(20, 16), []
    for draft in (drafter.step, torch.compile(drafter.step, dynamic=True)):
        drafter.zero_grad()
        result = ttt_loss(drafter, batch, head, torch.arange(20), 3, 0.8, draft=draft)
        result.loss.backward()
        found.append((result.losses_S, [p.grad for p in drafter.parameters() if p.grad is not None]))
    (losses_S, gradients), (compiled_S, compiled) = found
    torch.testing.assert_close(compiled_S, losses_S)
    torch.testing.assert_close(compiled, gradients)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_output": True},
        {"norm_output": True, "pre_fc_norm": "per_aux"},
        {"qk_norm": True},
        {"norm_before_residual": True},
        {"attention_bias": True},
        {"sliding_window": 4},
    ],
)
def test_an_unrolled_step_is_a_drafted_step(changes: dict[str, Any]) -> None:
    drafter, batch = make_batch(**changes)
    fused = drafter.fuse(batch.aux_BLF)[:, :11]
    positions = (batch.start_B[:, None] + torch.arange(8)).clamp(max=10)
    next_tokens = batch.tokens_BL[:, 1:]
    keys_values = drafter.keys_values(next_tokens, fused, torch.arange(11).expand_as(next_tokens))
    attend = UnrolledAttention(*keys_values, positions, drafter.config.sliding_window)
    tokens = batch.tokens_BL[:, 1:].gather(1, positions)
    hidden = fused.gather(1, positions[..., None].expand(-1, -1, 16))
    unrolled = []
    for _ in range(3):
        out = drafter.step(tokens, hidden, positions, attend)
        unrolled.append(drafter.logits(out.hidden_BLH))
        hidden = torch.nn.functional.pad(out.feedback_BLH, (0, 0, 1, 0))[:, :-1]
    for start in range(3):  # draft from response row `start` of request 0, on true features up to there
        drafted = chained(drafter, fused[0], batch.tokens_BL[0, 1:], int(batch.start_B[0]) + start, 3)
        for step in range(3):
            torch.testing.assert_close(unrolled[step][0, start + step], drafted[step], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 2},
        {"num_layers": 2, "sliding_window": 4},
        {"num_layers": 3, "qk_norm": True},
        {"causal_head": True},
        {"num_layers": 2, "sliding_window": 4, "causal_head": True},
    ],
)
def test_a_parallel_unrolled_step_is_a_mask_of_one_pass(changes: dict[str, Any]) -> None:
    drafter, batch = make_batch(mask_token_id=3, **changes)
    assert drafter.mask_hidden is not None
    torch.nn.init.normal_(drafter.mask_hidden)
    unrolled = list(unroll(drafter, batch, torch.ones_like(batch.taught_BR), 3))
    fused, after = drafter.fuse(batch.aux_BLF), batch.tokens_BL[:, 1:]
    masked_LF, masks_L = drafter.masks(2)
    for start in range(3):  # true rows up to response row `start` of request 0, and two masks
        row = int(batch.start_B[0]) + start
        hidden = torch.cat([fused[:1, : row + 1], drafter.fuse(masked_LF)[None]], dim=1)
        tokens = torch.cat([after[:1, : row + 1], masks_L[None]], dim=1)
        causal = TrueRows(drafter.config.sliding_window)
        alone = drafter.step(tokens, hidden, torch.arange(row + 3)[None], causal).hidden_BLH[0, row:]
        if drafter.causal is not None:  # the answer's own tokens are the chain's
            states = [alone[0]]
            for step in (1, 2):
                embedding_H = drafter.embed_tokens(after[0, row + step])
                states.append(drafter.causal(embedding_H, states[-1], alone[step]))
            alone = torch.stack(states)
        for step, (hidden_NH, mask_BR) in enumerate(unrolled):
            place = int(mask_BR[0, : start + step].sum())
            torch.testing.assert_close(hidden_NH[place], alone[step], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [2, 3])
def test_an_unrolled_step_of_several_layers_is_a_drafted_step(layers: int) -> None:
    drafter, batch = make_batch(num_layers=layers)
    unrolled = list(unroll(drafter, batch, torch.ones_like(batch.taught_BR), 3))
    row = int(batch.start_B[0]) + 2
    attend = GrowingCache()
    fused, after = drafter.fuse(batch.aux_BLF), batch.tokens_BL[:, 1:]
    out = drafter.step(after[:1, : row + 1], fused[:1, : row + 1], torch.arange(row + 1)[None], attend)
    for step in range(3):
        if step:
            feedback = out.feedback_BLH[:, -1:]
            out = drafter.step(after[:1, row + step, None], feedback, torch.tensor([[row + step]]), attend)
        hidden_NH, mask_BR = unrolled[step]
        place = int(mask_BR[0, : 2 + step].sum())
        torch.testing.assert_close(hidden_NH[place], out.hidden_BLH[0, -1], atol=1e-5, rtol=1e-4)


class GrowingCache:
    """Attention over all rows so far, of every layer its own."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in self.seen:
            k, v = (torch.cat([old, new], dim=1) for old, new in zip(self.seen[layer], (k, v), strict=True))
        self.seen[layer] = (k, v)
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(
            1, 2
        )


def chained(drafter: Drafter, fused_LH: Tensor, next_L: Tensor, row: int, steps: int) -> list[Tensor]:
    """Logits of `steps` draft steps with an ordinary growing KV cache: true rows 0..row, then the drafter's own."""
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.append(k[0])
        values.append(v[0])
        window = drafter.config.sliding_window or len(keys)
        all_k, all_v = torch.cat(keys[-window:]), torch.cat(values[-window:])
        out = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), all_k.transpose(0, 1)[None], all_v.transpose(0, 1)[None], enable_gqa=True
        )
        return out.transpose(1, 2)

    logits = []
    for position in range(row + 1):
        out = drafter.step(
            next_L[None, position, None], fused_LH[None, position, None], torch.tensor([[position]]), attend
        )
    logits.append(drafter.logits(out.hidden_BLH)[0, 0])
    for step in range(1, steps):
        out = drafter.step(next_L[None, row + step, None], out.feedback_BLH, torch.tensor([[row + step]]), attend)
        logits.append(drafter.logits(out.hidden_BLH)[0, 0])
    return logits


def test_padding_and_prompt_rows_teach_nothing() -> None:
    drafter, batch = make_batch()
    head, to_draft = torch.randn(20, 16), torch.arange(20)
    before = ttt_loss(drafter, batch, head, to_draft, 3, 0.8)
    assert before.rows == 7 + 4
    batch.final_BRH[1, 5:] = 1e3
    batch.aux_BLF[1, 10:] = 1e3
    after = ttt_loss(drafter, batch, head, to_draft, 3, 0.8)
    torch.testing.assert_close(before.loss, after.loss)
    batch.final_BRH[1, 1] += 1.0
    assert not torch.allclose(before.loss, ttt_loss(drafter, batch, head, to_draft, 3, 0.8).loss)


def test_a_token_outside_the_draft_vocabulary_is_not_taught() -> None:
    drafter, batch = make_batch()
    to_draft = torch.arange(20)
    to_draft[batch.tokens_BL[0, 5]] = -1
    rows = ttt_loss(drafter, batch, torch.randn(20, 16), to_draft, 1, 1.0).rows
    assert rows < 11


def test_vocabulary_and_batches() -> None:
    answers = [Answer(str(n), (1,) * (n % 5 + 1), (7, 7, 3, n % 4)) for n in range(40)]
    ids, coverage = choose_vocabulary(answers, 10, 3)
    assert ids.tolist() == [0, 3, 7]
    assert coverage == pytest.approx((80 + 40 + 10 + 10) / 160)
    batches = make_batches(answers, 30, seed=1)
    assert sorted(answer.id for batch in batches for answer in batch) == sorted(answer.id for answer in answers)
    assert all(len(batch) * max(a.length for a in batch) <= 30 for batch in batches)
    assert batches == make_batches(answers, 30, seed=1)


def test_a_damaged_answers_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "a", "prompt_ids": [1], "response_ids": [2, 3, 4]}\n{"id": "b"}\n')
    with pytest.raises(InputError, match=r"answers.jsonl:2"):
        read_answers([path], 100)


def test_the_feature_cache_gives_back_what_it_got(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features", "a target")
    first, second = Answer("a", (1, 2), (3, 4, 5)), Answer("b", (6,), (7, 8, 9, 10))
    asked = []

    def extract(answers: Sequence[Answer]) -> FeatureBatch:
        asked.append([answer.id for answer in answers])
        generator = torch.Generator().manual_seed(len(asked))
        length, rows = max(a.length for a in answers), max(len(a.response_ids) for a in answers)
        aux, final = torch.randn(2, length, 48, generator=generator), torch.randn(2, rows, 16, generator=generator)
        tokens, count = torch.zeros(2, length, dtype=torch.long), len(answers)
        start, held = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
        return FeatureBatch(tokens, aux[:count], final[:count], start, held)

    assert cache.missing_bytes([first, second], 48, 16) > 2 * (48 * 10 + 16 * 7)
    together = cache.get([first, second], extract)
    assert asked == [["a", "b"]]
    assert cache.missing_bytes([first, second], 48, 16) == 0
    assert together.tokens_BL.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert together.start_B.tolist() == [1, 0] and together.rows_B.tolist() == [3, 4]
    expected = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(together.aux_BLF, expected, atol=0.02, rtol=0.01)
    # another batch, another order: the same features, padded anew, and no pass
    alone = cache.get([first], extract)
    assert torch.equal(alone.final_BRH[0], together.final_BRH[0, :3]) and alone.final_BRH.shape[1] == 3
    assert torch.equal(cache.get([second, first], extract).aux_BLF[1], together.aux_BLF[0])
    assert len(asked) == 1 and {path.suffix for path in (tmp_path / "features").iterdir()} == {".safetensors"}
    cache.get([Answer("a", (1, 2), (3, 4, 6))], extract)  # the same id with other tokens is another entry
    FeatureCache(tmp_path / "features", "another target").get([first], extract)
    assert len(asked) == 3
    for path in (tmp_path / "features").iterdir():
        path.write_bytes(path.read_bytes()[:40])  # cut short by a crash of the machine: made anew
    again = cache.get([first, second], extract)
    assert len(asked) == 4 and again.tokens_BL.tolist() == together.tokens_BL.tolist()


def test_a_cache_of_more_boundaries_serves_a_drafter_of_fewer(tmp_path: Path) -> None:
    answers = [Answer("a", (1, 2), (3, 4, 5)), Answer("b", (6,), (7, 8, 9, 1))]
    wide = FeatureSource(tiny_target(3), (1, 2, 3), tmp_path, bf16=False)
    everything = wide(answers)
    target = tiny_target(3)
    narrow = FeatureSource(target, (3, 1), tmp_path, watched=(1, 2, 3), bf16=False)
    assert narrow.missing_bytes(answers) == 0
    first, _, last = everything.aux_BLF.chunk(3, dim=-1)
    assert torch.equal(narrow(answers).aux_BLF, torch.cat([last, first], dim=-1))
    other = FeatureSource(tiny_target(4), (1, 2, 3), tmp_path, bf16=False)
    assert other.missing_bytes(answers) > 0


def test_answers_shorter_than_the_unrolling_teach_what_they_can() -> None:
    drafter, batch = make_batch()
    short = FeatureBatch(batch.tokens_BL, batch.aux_BLF, batch.final_BRH[:, :2], batch.start_B, torch.tensor([2, 2]))
    result = ttt_loss(drafter, short, torch.randn(20, 16), torch.arange(20), 4, 0.8)
    assert result.rows_S == (2, 0, 0, 0) and result.chains == 2
    assert bool(result.loss.isfinite()) and result.losses_S[1:].tolist() == [0.0, 0.0, 0.0]
    result.loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in drafter.parameters())


def test_accepted_counts_chains_of_right_tokens() -> None:
    drafter, batch = make_batch()
    result = ttt_loss(drafter, batch, torch.randn(20, 16), torch.arange(20), 3, 1.0)
    expected = 0
    for b in range(2):
        start, rows = int(batch.start_B[b]), int(batch.rows_B[b])
        fused = drafter.fuse(batch.aux_BLF)[b]
        for row in range(rows - 1):
            steps = min(3, rows - 1 - row)
            drafted = chained(drafter, fused, batch.tokens_BL[b, 1:], start + row, steps)
            own = [int(batch.tokens_BL[b, start + row + step + 2]) for step in range(steps)]
            for logits, token in zip(drafted, own, strict=True):
                if int(logits.argmax()) != token:
                    break
                expected += 1
    assert int(result.accepted) == expected and result.chains == 7 + 4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_least_at_the_target_itself(objective: Objective) -> None:
    torch.manual_seed(0)
    labels = torch.randn(6, 20).softmax(-1)
    least = token_loss(labels.log(), labels, objective)
    accepted = labels.minimum(torch.randn(6, 20).softmax(-1))
    assert 0 < float(accepted.sum(-1).mean()) < 1
    for _ in range(5):
        logits = (labels.log() + 0.5 * torch.randn(6, 20)).requires_grad_(True)
        loss = token_loss(logits, labels, objective)
        assert float(loss.detach()) > float(least)
        step = logits - 0.1 * torch.autograd.grad(loss, logits)[0]
        assert float(token_loss(step, labels, objective).detach()) < float(loss.detach())
    if objective == "total-variation":
        assert float(token_loss(torch.zeros(1, 4), torch.tensor([[1.0, 0, 0, 0]]), objective)) == pytest.approx(0.75)


def test_the_regression_pulls_the_state_to_the_targets() -> None:
    drafter, batch = make_batch()
    head, norm = torch.randn(20, 16), torch.ones(16)
    alone = Criterion(token_weight=0.0, feature_weight=1.0)
    first = ttt_loss(drafter, batch, head, torch.arange(20), 2, 0.8, alone, norm)
    assert not torch.allclose(first.loss, ttt_loss(drafter, batch, head, torch.arange(20), 2, 0.8).loss)
    optimizer = torch.optim.Adam(drafter.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss = ttt_loss(drafter, batch, head, torch.arange(20), 2, 0.8, alone, norm).loss
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * float(first.loss.detach())
