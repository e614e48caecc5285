"""Trees that SGLang verifies by the argmax are walked along drawn tokens: the law of each row, its filters and all.

SGLang's own functions are stood in for by small ones of the same shape; the real ones run in tests/engines/test_sglang.py.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from eagle3_sglang.sampled import Sampling, draw_rows
from torch import Tensor

from benchmarks.gpu.statistics import chi_square

VOCAB, ROWS, REQUESTS = 6, 3, 6000


def draw_from(
    probs: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps: Tensor,
    need_min_p: bool,
    seeds: Tensor | None,
    positions: Tensor,
) -> Tensor:
    ranked = probs.sort(-1, descending=True)
    kept = ranked.values.masked_fill(torch.arange(VOCAB) >= top_ks[:, None], 0.0)
    return ranked.indices.gather(1, torch.multinomial(kept, 1))[:, 0].int()


def info(temperatures: Tensor, top_ks: Tensor) -> SimpleNamespace:
    ones = torch.ones(len(top_ks))
    return SimpleNamespace(
        temperatures=temperatures[:, None], top_ks=top_ks, top_ps=ones, min_ps=0 * ones, need_min_p_sampling=False,
        sampling_seed=None, is_all_greedy=False,
    )  # fmt: skip


def test_each_row_is_drawn_by_its_requests_values() -> None:
    torch.manual_seed(0)
    logits = torch.randn(ROWS, VOCAB)
    warm = torch.arange(REQUESTS) % 2 == 0  # the others are greedy, as SGLang has it: the best of one
    values = info(torch.where(warm, 0.7, 1.0), torch.where(warm, VOCAB, 1))
    drawn = draw_rows(logits.repeat(REQUESTS, 1), torch.zeros(ROWS * REQUESTS), values, draw_from)
    assert bool((drawn[~warm] == logits.argmax(-1)).all())
    for row in range(ROWS):
        law = (logits[row] / 0.7).softmax(-1).double()
        counts = torch.bincount(drawn[warm, row], minlength=VOCAB)
        assert chi_square(counts, law) > 1e-3
        assert chi_square(counts, (logits[row].double()).softmax(-1)) < 1e-3


@pytest.mark.parametrize("greedy", [False, True])
def test_a_pass_of_greedy_requests_keeps_the_argmax(greedy: bool) -> None:
    seen: list[Tensor] = []
    logits = torch.zeros(2 * ROWS, VOCAB)
    values = info(torch.ones(2), torch.full((2,), VOCAB))
    values.is_all_greedy = greedy
    around = Sampling(
        lambda *_: around.verifying("rows", target_predict=torch.zeros(2, ROWS, dtype=torch.long)),
        lambda *_, target_predict: seen.append(target_predict),
        lambda *_: torch.full((2 * ROWS,), 5, dtype=torch.int32),
    )
    verify_input: Any = SimpleNamespace(positions=torch.zeros(2 * ROWS))
    around.sampling(verify_input, SimpleNamespace(sampling_info=values), SimpleNamespace(next_token_logits=logits))
    assert seen[0].tolist() == [[0 if greedy else 5] * ROWS] * 2
    around.verifying(target_predict=torch.ones(2, ROWS))  # outside a pass nothing is known to draw by
    assert seen[1].tolist() == [[1.0] * ROWS] * 2
