"""The real target and drafter: what is drafted never shows in the law of the tokens drawn."""

from pathlib import Path

import pytest

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation, Sampling
from eagle3_serving.eval.law import BOUND, compare

DRAWS, BATCH = 240, 40
PROMPT = "The best thing about"


@pytest.fixture(scope="module")
def engine(target_dir: Path, drafter_dir: Path) -> EmbeddedEngine:
    return EmbeddedEngine.load(target_dir, drafter_dir)


@pytest.fixture(scope="module")
def prompt_ids(target_dir: Path) -> list[int]:
    from eagle3_serving.targets.chat import load_tokenizer

    ids: list[int] = load_tokenizer(target_dir)(PROMPT)["input_ids"]
    return ids


def draws(engine: EmbeddedEngine, prompt_ids: list[int], options: DecodeOptions) -> list[Generation]:
    return engine.generate_many([prompt_ids] * DRAWS, options, BATCH)


def p_value(one: list[Generation], other: list[Generation]) -> float:
    return compare([[said.token_ids for said in one]], [[said.token_ids for said in other]])


@pytest.mark.parametrize("law", [Sampling(0.7, top_p=0.95, seed=1), Sampling(1.0, min_p=0.02, seed=1)], ids=str)
def test_the_first_tokens_follow_plain_samplings_law(
    engine: EmbeddedEngine, prompt_ids: list[int], law: Sampling
) -> None:
    plain = draws(engine, prompt_ids, DecodeOptions(3, "plain", sampling=law))
    other = Sampling(law.temperature, top_p=law.top_p, min_p=law.min_p, seed=2)
    for proposals in ("coupled", "top", "drawn"):
        options = DecodeOptions(3, "tree", nodes=5, depth=2, top_k=3, sampling=other, proposals=proposals)  # type: ignore[arg-type]
        drafted = draws(engine, prompt_ids, options)
        assert sum(sum(one.accepted) for one in drafted) > DRAWS / 10
        assert p_value(plain, drafted) > 1e-3, proposals
    colder = Sampling(law.temperature * 0.4, top_p=law.top_p, min_p=law.min_p, seed=3)
    wrong = draws(engine, prompt_ids, DecodeOptions(3, "plain", sampling=colder))
    assert p_value(plain, wrong) < BOUND
