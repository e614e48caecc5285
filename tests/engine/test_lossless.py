"""Greedy speculation gives plain decoding's tokens, whatever the drafter says."""

import pytest
import torch
from tiny import VOCAB, tiny_engine, tiny_target

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.engine.rows import KVPool

SHAPES = [
    DecodeOptions(max_new_tokens=60, mode="chain", k=1),
    DecodeOptions(max_new_tokens=60, mode="chain", k=5),
    DecodeOptions(max_new_tokens=60, mode="tree", nodes=12, depth=1, top_k=12),
    DecodeOptions(max_new_tokens=60, mode="tree", nodes=60, depth=2, top_k=12),
    DecodeOptions(max_new_tokens=60, mode="tree", nodes=20, depth=5, top_k=4),
    DecodeOptions(max_new_tokens=60, mode="tree", nodes=300, depth=3, top_k=6),
]


@pytest.mark.parametrize("options", SHAPES, ids=lambda o: f"{o.mode}-{o.k}-{o.nodes}-{o.depth}-{o.top_k}")
@pytest.mark.parametrize("seed", range(3))
def test_tokens_equal_plain_decoding(seed: int, options: DecodeOptions) -> None:
    engine = tiny_engine(seed)
    prompt = torch.randint(VOCAB, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
    plain = engine.generate(prompt, DecodeOptions(max_new_tokens=60, mode="plain"))
    speculative = engine.generate(prompt, options)
    assert speculative.token_ids == plain.token_ids
    assert len(plain.token_ids) == plain.passes == 60
    assert len(speculative.token_ids) - 1 == sum(speculative.accepted) + speculative.steps - _last_bonus_cut(
        speculative.accepted, 60
    )


def _last_bonus_cut(accepted: tuple[int, ...], limit: int) -> int:
    """1 where the limit fell before the last pass's bonus token."""
    return int(1 + sum(accepted) + len(accepted) > limit)


def test_plain_decoding_equals_transformers_generate() -> None:
    target = tiny_target(5)
    prompt = [3, 1, 4, 1, 5]
    plain = EmbeddedEngine(target).generate(prompt, DecodeOptions(max_new_tokens=40, mode="plain"))
    want = target.model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)
    assert list(plain.token_ids) == want[0, len(prompt) :].tolist()


def test_siblings_are_accepted_and_their_kv_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.Tensor] = []
    move = KVPool.move

    def spy(pool: KVPool, source_BD: torch.Tensor, destination_BD: torch.Tensor) -> None:
        moved.append(source_BD - destination_BD)
        move(pool, source_BD, destination_BD)

    monkeypatch.setattr(KVPool, "move", spy)
    engine = tiny_engine(1)
    speculative = engine.generate(
        [1, 2, 3], DecodeOptions(max_new_tokens=80, mode="tree", nodes=150, depth=2, top_k=12)
    )
    assert any(bool((step > 0).any()) for step in moved)
    assert min(speculative.accepted[:-1]) >= 1  # every child of the root is in the tree
    assert max(speculative.accepted) == 2


@pytest.mark.parametrize("mode", ["chain", "tree"])
@pytest.mark.parametrize("layers, norm_output", [(1, True), (2, False)])
def test_a_part_vocabulary_and_other_drafters(mode: str, layers: int, norm_output: bool) -> None:
    engine = tiny_engine(2, draft_ids=(0, 3, 4, 7, 11), layers=layers, norm_output=norm_output, aux_layers=(0, 3))
    plain = engine.generate([5, 6], DecodeOptions(max_new_tokens=50, mode="plain"))
    speculative = engine.generate([5, 6], DecodeOptions(max_new_tokens=50, mode=mode, k=4, nodes=20, depth=3, top_k=5))  # type: ignore[arg-type]
    assert speculative.token_ids == plain.token_ids


def test_a_drafter_of_nothing_but_nan_costs_speed_only() -> None:
    engine = tiny_engine(3)
    assert engine.drafter is not None
    engine.drafter.lm_head.weight.fill_(float("nan"))  # type: ignore[operator, union-attr]
    plain = engine.generate([1], DecodeOptions(max_new_tokens=20, mode="plain"))
    for mode in ("chain", "tree"):
        speculative = engine.generate([1], DecodeOptions(max_new_tokens=20, mode=mode, nodes=9, depth=3, top_k=3))  # type: ignore[arg-type]
        assert speculative.token_ids == plain.token_ids
        assert sum(speculative.accepted) == 0
