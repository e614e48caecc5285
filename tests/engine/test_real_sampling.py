"""The real target and drafter: what is drafted never shows in the law of the tokens drawn."""

from dataclasses import replace
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
def test_what_is_drafted_shows_in_no_token_and_no_law(
    engine: EmbeddedEngine, prompt_ids: list[int], law: Sampling
) -> None:
    plain = draws(engine, prompt_ids, DecodeOptions(3, "plain", sampling=law))
    options = DecodeOptions(3, "tree", nodes=5, depth=2, top_k=3, sampling=law)
    for proposals in ("coupled", "top"):
        few = replace(options, proposals=proposals)  # type: ignore[arg-type]
        drafted = engine.generate_many([prompt_ids] * BATCH, few, BATCH // 2)
        assert sum(sum(one.accepted) for one in drafted) > BATCH / 10
        assert [one.token_ids for one in drafted] == [one.token_ids for one in plain[:BATCH]], proposals
    drawn = draws(engine, prompt_ids, replace(options, proposals="drawn", sampling=replace(law, seed=2)))
    assert sum(sum(one.accepted) for one in drawn) > DRAWS / 10
    assert p_value(plain, drawn) > 1e-3
    colder = replace(law, temperature=law.temperature * 0.4, seed=3)
    wrong = draws(engine, prompt_ids, DecodeOptions(3, "plain", sampling=colder))
    assert p_value(plain, wrong) < BOUND
