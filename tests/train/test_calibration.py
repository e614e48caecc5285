"""What is measured of a drafter is what its trees then meet."""

import sys
from pathlib import Path

import torch

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.train.calibration import calibrate, lookup_chances, measure
from eagle3_serving.train.data import Answer
from eagle3_serving.train.replies import greedy_answers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import VOCAB, tiny_drafter, tiny_target


def test_measured_acceptance_is_what_a_chain_of_one_meets() -> None:
    target, drafter = tiny_target(1), tiny_drafter(1)
    engine = EmbeddedEngine(target, drafter)
    prompts = [torch.randint(VOCAB, (4,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(12)]
    answers = greedy_answers(engine, prompts, 40, 4, progress=False)
    log_p_X, depth_X, rank_X, accepted_X = measure(drafter, target, answers, progress=False)
    first_X = (depth_X == 1) & (rank_X == 0)
    # every row of every answer but the last, drafted from once: one token forward is always the plain text's
    hits = total = 0
    for answer in answers:
        for place in range(len(answer.response_ids) - 1):
            prompt = answer.prompt_ids + answer.response_ids[:place]
            said = engine.generate(prompt, DecodeOptions(2, "chain", k=1, eos_ids=()))
            hits += said.accepted[0]
            total += 1
        if total > 150:
            break
    measured = accepted_X[first_X]
    assert len(measured) == sum(len(answer.response_ids) - 1 for answer in answers)
    assert abs(float(measured[:total].mean()) - hits / total) < 0.15
    assert bool((accepted_X[(depth_X == 2)] <= 1).all()) and float(log_p_X.max()) <= 0


def test_calibration_never_makes_the_fit_worse() -> None:
    target, drafter = tiny_target(1), tiny_drafter(1)
    prompts = [[n % VOCAB, (3 * n) % VOCAB] for n in range(20)]
    answers = greedy_answers(EmbeddedEngine(target), prompts, 40, 10, progress=False)
    fitted = calibrate(drafter, target, answers, progress=False)
    assert fitted.after < fitted.before
    assert fitted.calibration.rows > 1000


def test_lookup_chances_tell_repetition_from_chance() -> None:
    repeats = [Answer("a", (1, 2, 3, 4), (1, 2, 3, 4) * 10)]
    table = lookup_chances(repeats)
    assert table[2][0] > 0.9
    random = torch.Generator().manual_seed(0)
    noise = [Answer("b", (0, 1), tuple(torch.randint(50, (300,), generator=random).tolist()))]
    assert lookup_chances(noise)[0][0] < 0.15
