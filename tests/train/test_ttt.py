"""Training-time test must compute what drafting computes: step n of the unrolled loss = the n-th chained draft step."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eagle3_serving.drafter import Drafter, DrafterConfig
from eagle3_serving.errors import InputError
from eagle3_serving.train.data import Answer, choose_vocabulary, make_batches, read_answers
from eagle3_serving.train.features import FeatureBatch, FeatureCache
from eagle3_serving.train.ttt import UnrolledAttention, _true_keys, ttt_loss

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


def make_batch() -> tuple[Drafter, FeatureBatch]:
    torch.manual_seed(0)
    drafter = Drafter(CONFIG)
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    tokens, rows = torch.randint(0, 20, (2, 12)), torch.tensor([8, 5])
    batch = FeatureBatch(tokens, torch.randn(2, 12, 48), torch.randn(2, 8, 16), torch.tensor([3, 4]), rows)
    return drafter, batch


def test_an_unrolled_step_is_a_drafted_step() -> None:
    drafter, batch = make_batch()
    fused = drafter.fuse(batch.aux_BLF)[:, :11]
    positions = (batch.start_B[:, None] + torch.arange(8)).clamp(max=10)
    attend = UnrolledAttention(*_true_keys(drafter, fused, batch.tokens_BL[:, 1:]), positions)
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


def chained(drafter: Drafter, fused_LH: Tensor, next_L: Tensor, row: int, steps: int) -> list[Tensor]:
    """Logits of `steps` draft steps with an ordinary growing KV cache: true rows 0..row, then the drafter's own."""
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.append(k[0])
        values.append(v[0])
        all_k, all_v = torch.cat(keys), torch.cat(values)
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
    cache = FeatureCache(tmp_path / "features")
    _, batch = make_batch()
    asked = []

    def extract(answers: Sequence[Answer]) -> FeatureBatch:
        asked.append(answers)
        return batch

    answers = [Answer("a", (1,), (2, 3, 4))]
    first, second = cache.get(answers, extract), cache.get(answers, extract)
    assert asked == [answers]
    assert torch.equal(first.tokens_BL, batch.tokens_BL)
    torch.testing.assert_close(first.aux_BLF, batch.aux_BLF, atol=0.02, rtol=0.01)
    assert torch.equal(first.aux_BLF, second.aux_BLF)
    assert [path.suffix for path in (tmp_path / "features").iterdir()] == [".safetensors"]
    cache.get([Answer("a", (1,), (2, 3, 5))], extract)  # the same id with other tokens is another entry
    assert len(asked) == 2
