"""Continuous batches: every request gets the tokens that it gets alone, in every mode."""

from dataclasses import replace

import pytest
import torch
from tiny import VOCAB, tiny_drafter, tiny_engine, tiny_target

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Sampling
from eagle3_serving.tree.budget import CostModel, Curve
from eagle3_serving.tree.calibrate import Calibration

PROMPTS = [
    torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (3, 17, 5, 1, 9, 12, 2, 30, 4)
]
CALIBRATION = Calibration(bias=(0.2, -0.1), slope=(0.8, 0.7), rank=(0.0, -0.2, -0.4))
OPTIONS = [
    DecodeOptions(40, "plain"),
    DecodeOptions(40, "chain", k=3),
    DecodeOptions(40, "tree", nodes=9, depth=3, top_k=3),
    DecodeOptions(40, "tree", nodes=9, depth=3, top_k=3, calibrated=False, lookup=True),
    DecodeOptions(40, "tree", nodes=30, depth=4, top_k=4, lookup=True),
    DecodeOptions(40, "auto", nodes=30, depth=4, top_k=4),
    DecodeOptions(40, "auto", nodes=30, depth=4, top_k=4, lookup=True),
]


def costs(target: float = 1.0, row: float = 0.01, step: float = 0.05) -> CostModel:
    """A machine whose pass costs `target` and `row` for each row, whose draft step costs `step`."""
    line = Curve({1: ((1.0, target + row), (100.0, target + 100 * row))})
    flat = Curve({1: ((1.0, step), (100.0, step))})
    return CostModel(line, flat, flat, {})


def engine_with(seed: int, model: CostModel) -> EmbeddedEngine:
    return EmbeddedEngine(tiny_target(seed), tiny_drafter(seed), CALIBRATION, model)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.mode}-{o.nodes}-{'lookup' if o.lookup else ''}")
@pytest.mark.parametrize("batch", [1, 4, 9])
def test_tokens_are_those_of_plain_decoding_alone(options: DecodeOptions, batch: int) -> None:
    engine = engine_with(1, costs())
    # ends at different lengths: slots are freed and taken again
    plain = [engine.generate(prompt, DecodeOptions(40, "plain", eos_ids=[0])) for prompt in PROMPTS]
    assert len({len(one.token_ids) for one in plain}) > 3
    together = engine.generate_many(PROMPTS, replace(options, eos_ids=[0]), batch)
    assert [one.token_ids for one in together] == [one.token_ids for one in plain]
    if options.mode != "plain":
        assert sum(sum(one.accepted) for one in together) > 0


def test_auto_verifies_nothing_where_a_row_costs_a_pass() -> None:
    engine = engine_with(1, costs(target=1e-3, row=1.0, step=0.05))
    said = engine.generate_many(PROMPTS * 2, DecodeOptions(40, "auto"), batch=4)
    assert sum(one.nodes for one in said) == 0
    # once seen to lose, nothing is drafted any more
    assert sum(one.steps for one in said) == 0


def test_auto_verifies_many_nodes_where_rows_are_free() -> None:
    engine = engine_with(1, costs(target=1.0, row=1e-6, step=1e-6))
    said = engine.generate_many(PROMPTS, DecodeOptions(40, "auto", nodes=40, depth=4, top_k=6), batch=3)
    assert sum(one.nodes for one in said) / sum(one.steps for one in said) > 20


def test_auto_gives_the_likelier_request_more_nodes() -> None:
    """Half of the batch repeats itself, and the lookup sees it."""
    engine = engine_with(2, costs(target=1.0, row=0.1, step=0.3))
    said = engine.generate_many(PROMPTS, DecodeOptions(40, "auto", lookup=True), batch=4)
    shares = {one.nodes for one in said}
    assert len(shares) > 1


@pytest.mark.parametrize("proposals, mode", [("top", "tree"), ("drawn", "tree"), ("drawn", "chain"), ("top", "chain")])
def test_sampled_tokens_follow_plain_samplings_law(proposals: str, mode: str) -> None:
    """The first two drafted tokens of many requests: two samples of one law, told apart by chi-square where they are not."""
    engine = tiny_engine(1)
    count, prompt = 3000, [5, 2, 9]
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=3)
    plain = engine.generate_many([prompt] * count, DecodeOptions(3, "plain", sampling=sampling), batch=500)
    options = DecodeOptions(
        3,
        mode,
        k=2,
        nodes=6,
        depth=2,
        top_k=3,
        sampling=replace(sampling, seed=4),
        proposals=proposals,  # type: ignore[arg-type]
    )
    drafted = engine.generate_many([prompt] * count, options, batch=500)
    assert sum(sum(one.accepted) for one in drafted) > count / 8
    assert two_sample_p(plain, drafted) > 1e-3
    skewed = engine.generate_many(
        [prompt] * count, DecodeOptions(3, "plain", sampling=replace(sampling, temperature=0.9, seed=5)), batch=500
    )
    assert two_sample_p(plain, skewed) < 1e-3


SAMPLED = [
    DecodeOptions(24, "chain", k=4),
    DecodeOptions(24, "tree", nodes=12, depth=4, top_k=3),
    DecodeOptions(24, "tree", nodes=12, depth=4, top_k=3, proposals="top"),
    DecodeOptions(24, "tree", nodes=12, depth=4, top_k=3, lookup=True),
    DecodeOptions(24, "auto", nodes=20, depth=4, top_k=4),
]


@pytest.mark.parametrize("options", SAMPLED, ids=lambda o: f"{o.mode}-{o.proposals}-{o.lookup}")
def test_sampled_tokens_are_plain_decodings_own(options: DecodeOptions) -> None:
    """A request's noise is its own: neither the draft nor who else is in the batch changes a token."""
    engine = engine_with(1, costs(target=1.0, row=1e-6, step=1e-6))
    for sampling in (Sampling(1.0, seed=7), Sampling(0.6, top_p=0.9, top_k=20, seed=8), Sampling(1.3, min_p=0.05)):
        sampling = replace(sampling, seed=sampling.seed or 5)
        asked = replace(options, sampling=sampling)
        plain = [one.token_ids for one in engine.generate_many(PROMPTS, replace(asked, mode="plain", lookup=False), 1)]
        drafted = engine.generate_many(PROMPTS, asked, 3)
        assert [one.token_ids for one in drafted] == plain
        assert sum(sum(one.accepted) for one in drafted) > 0
        other = engine.generate_many(PROMPTS, replace(asked, sampling=replace(sampling, seed=99)), 3)
        assert [one.token_ids for one in other] != plain


def test_a_drafter_that_reads_the_noise_meets_more_of_a_flat_law() -> None:
    """The very target as its own drafter would hit each draw; one that is near it hits more than its best tokens do."""
    engine, sampling = tiny_engine(1), Sampling(1.0, seed=3)
    met = {
        proposals: [
            sum(one.accepted)
            for one in engine.generate_many(
                [[5, 2, 9]] * 200, DecodeOptions(12, "chain", k=2, sampling=sampling, proposals=proposals), 100
            )
        ]
        for proposals in ("coupled", "top", "drawn")
    }
    assert sum(met["coupled"]) > 1.5 * sum(met["top"]), {name: sum(counts) for name, counts in met.items()}


def two_sample_p(one: list, other: list) -> float:  # type: ignore[type-arg]
    """Chi-square of two samples over the cells of tokens two and three; rare cells are joined."""
    cells = torch.zeros(2, VOCAB * VOCAB, dtype=torch.double)
    for side, sample in enumerate((one, other)):
        for generation in sample:
            cells[side, generation.token_ids[1] * VOCAB + generation.token_ids[2]] += 1
    total = cells.sum(0)
    rare = total < 10
    cells = torch.cat([cells[:, ~rare], cells[:, rare].sum(1, keepdim=True)], dim=1)
    cells = cells[:, cells.sum(0) > 0]
    expected = cells.sum(0) / 2
    statistic = float(((cells - expected) ** 2 / expected).sum())
    degrees = torch.tensor((cells.shape[1] - 1) / 2)
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2)))
