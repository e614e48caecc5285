"""The law of simulated acceptance, and the engine's work as graphs (without graphs: on a CPU the replay is the call)."""

import torch

from benchmarks.gpu.correctness import _toy
from benchmarks.gpu.graphs import GraphedTarget, bucketed
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.simulate import SHAPES, AcceptanceLaw, expected_lengths
from eagle3_serving.engine import DecodeOptions, Sampling
from eagle3_serving.tree import NO_PARENT, PADDING, DraftTree

TOY = Settings(device="cpu", tiny=True)


def test_the_best_child_has_the_stated_rate_and_no_sibling_more() -> None:
    torch.manual_seed(0)
    for rate in (0.3, 0.8):
        chance_BKC = AcceptanceLaw(rate, 0.75).log_chances(400, 50, 6, torch.device("cpu")).exp()
        assert abs(float(chance_BKC[..., 0].mean()) - rate) < 0.01
        assert bool((chance_BKC[..., :-1] >= chance_BKC[..., 1:]).all())
        assert bool((chance_BKC.sum(-1) <= 1.0001).all())
    none_BKC = AcceptanceLaw(0.5, 0.0).log_chances(4, 3, 2, torch.device("cpu"))
    assert float(none_BKC[..., 1].max()) < -20


def test_a_child_is_said_with_exactly_its_chance() -> None:
    torch.manual_seed(0)
    many = 40_000
    parents_N, chances_N = [NO_PARENT, NO_PARENT, 0, 0, PADDING], [0.5, 0.3, 0.6, 0.1, 0.0]
    above_N = [1.0, 1.0, 0.5, 0.5, 1.0]
    scores_N = torch.tensor([c * a for c, a in zip(chances_N, above_N, strict=True)]).log()
    tokens_N = torch.tensor([5, 6, 7, 8, 0])
    tree = DraftTree(*(x.expand(many, 5) for x in (tokens_N, torch.tensor(parents_N), scores_N, torch.zeros(5))))
    said_BR = AcceptanceLaw(0.8, 0.75).choices(tree, (100, 110))
    assert said_BR.shape == (many, 6)
    for row, token, chance in ((0, 5, 0.5), (0, 6, 0.3), (1, 7, 0.6), (1, 8, 0.1)):
        assert abs(float((said_BR[:, row] == token).float().mean()) - chance) < 0.012
    # else what is never drafted, and nothing but that after a node without children
    assert abs(float((said_BR[:, 0] >= 100).float().mean()) - 0.2) < 0.012
    assert bool((said_BR[:, 2:] >= 100).all())


def test_wider_trees_and_higher_rates_accept_more() -> None:
    low, high = (expected_lengths(AcceptanceLaw(rate, 0.75)) for rate in (0.5, 0.8))
    for lengths in (low, high):
        assert lengths["chain-3"] < lengths["tree-16"] < lengths["tree-60"] <= SHAPES["tree-60"].depth + 1
    assert all(low[name] < high[name] for name in SHAPES)
    # the chain's is known: 1 + a + a^2 + a^3
    assert abs(high["chain-3"] - (1 + 0.8 + 0.8**2 + 0.8**3)) < 0.15
    # the default is near what the paper measured for a tree of 60: 6.13
    assert abs(high["tree-60"] - 6.13) < 0.3


def test_rounded_batches_and_lengths_change_no_token() -> None:
    engine, _ = _toy(TOY)
    prompts = [[n % 8, (n // 8) % 8, 3][: 1 + n % 3] for n in range(25)]
    for sampling in (Sampling(), Sampling(0.8, seed=4)):
        options = DecodeOptions(24, "plain", eos_ids=(5,), sampling=sampling)
        plain = engine.generate_many(prompts, options, 16)
        target, engine.target = engine.target, GraphedTarget(engine.target, bucket=16)
        graphed = engine.generate_many(prompts, options, 16)
        sizes = {batch for _, batch, _, _ in engine.target.passes}
        engine.target = target
        assert [said.token_ids for said in graphed] == [said.token_ids for said in plain]
        assert sizes and all(size % 2 == 0 for size in sizes)
    assert len({said.token_ids for said in plain}) > 5


def test_prompts_wait_for_each_other_where_told() -> None:
    engine, _ = _toy(TOY)
    prompts = [[n % 8, 3] for n in range(20)]
    options = DecodeOptions(16, "plain", eos_ids=(5,))
    plain = engine.generate_many(prompts, options, 8)
    groups: list[int] = []
    target = engine.target

    class Counting(GraphedTarget):
        def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            if kwargs.get("logits_rows") is not None:
                groups.append(len(kwargs["logits_rows"]))
            return super().forward(*args, **kwargs)

    engine.target, engine.admit_least = Counting(target), 4
    waited = engine.generate_many(prompts, options, 8)
    assert [said.token_ids for said in waited] == [said.token_ids for said in plain]
    assert sum(groups) == 20 and min(groups[:-1]) >= 4


def test_buckets() -> None:
    assert [bucketed(n, 64, 200) for n in (1, 64, 65, 150, 199)] == [64, 64, 128, 192, 200]
    assert bucketed(3, 0, 200) == 200
