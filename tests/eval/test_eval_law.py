"""The test of a law: what is right passes however often it is tried, what is wrong is found, and no speed of it is shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eagle3_serving.cli.main import main
from eagle3_serving.engine import EmbeddedEngine, speculate
from eagle3_serving.eval import embedded
from eagle3_serving.eval.law import BOUND, DRAWS, PROMPTS, TOKENS, Answers, compare
from eagle3_serving.tree import Acceptance, accept_greedy, accept_sampled
from tests.engine.tiny import VOCAB, tiny_engine
from tests.json_contract import contract

LAWS = [torch.tensor([0.4, 0.2, 0.2, 0.1, 0.1]), torch.tensor([0.9, 0.05, 0.05]), torch.ones(50) / 50]


def draws(laws: list[Tensor], seed: int, count: int = DRAWS) -> list[Answers]:
    random = torch.Generator().manual_seed(seed)
    return [torch.multinomial(law.expand(count, -1), TOKENS, True, generator=random).tolist() for law in laws]


def argmax(law: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(law.argmax(), len(law)).float()


def keeps_rejected(law: Tensor) -> Tensor:
    """The likeliest token is drafted, and drawn again where it was rejected."""
    return (1 - law.max()) * law + law.max() * argmax(law)


def half_temperature(law: Tensor) -> Tensor:
    return law.square() / law.square().sum()


def test_one_law_is_one_law() -> None:
    for size in (1, 3, DRAWS):  # the bound holds for any number of answers
        found = [compare(draws(LAWS, 2 * n, size), draws(LAWS, 2 * n + 1, size)) for n in range(50)]
        assert min(found) > 1e-3
    same = draws(LAWS, 0)
    assert compare(same, same) == 1.0


@pytest.mark.parametrize("wrong", [argmax, keeps_rejected, half_temperature])
def test_a_wrong_law_is_found(wrong: Callable[[Tensor], Tensor]) -> None:
    sides = (LAWS, list(map(wrong, LAWS)))
    found = sorted(
        compare(*(draws(laws, 2 * n + side, 3 * DRAWS) for side, laws in enumerate(sides))) for n in range(20)
    )
    assert found[17] < BOUND


def test_the_bound_is_one() -> None:
    """Of all signs that two pairs could have had, no more show a statistic than the bound allows."""
    pairs = [(1, 2), (1, 2), (1, 2), (1, 1), (1, 2), (1, 2), (1, 2), (1, 2)]
    found = []
    for signs in range(2 ** len(pairs)):
        sides = [pair if signs >> place & 1 else pair[::-1] for place, pair in enumerate(pairs)]
        found.append(compare([[[a] for a, _ in sides]], [[[b] for _, b in sides]]))
    for value in set(found):
        assert sum(other <= value for other in found) / len(found) <= value + 1e-12


def test_as_many_answers_of_each_side_or_none() -> None:
    with pytest.raises(ValueError, match="2 answers against 1"):
        compare([[[1], [2]]], [[[1]]])


def test_answers_that_end_early_are_compared_as_ended() -> None:
    assert compare([[[1, 2]] * 60], [[[1]] * 60]) < BOUND


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`eagle3 eval` on the real engine with a tiny target; only loading from a directory is replaced."""

    class Tokenizer:
        def __call__(self, text: str) -> dict[str, Any]:
            return {"input_ids": [ord(letter) % VOCAB for letter in text]}

    engine = tiny_engine(3)
    monkeypatch.setattr(EmbeddedEngine, "load", classmethod(lambda cls, *_: engine))
    monkeypatch.setattr(embedded, "load_tokenizer", lambda _: Tokenizer())
    monkeypatch.setattr(embedded, "chat_ids", lambda tokenizer, text: tokenizer(text)["input_ids"])
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"id": "1", "family": "f", "turns": ["some prompt"]}))
    (tmp_path / "config.json").write_text("{}")
    options = ["--target", str(tmp_path), "--drafter", str(tmp_path), "--prompts", str(prompts), "--max-tokens", "8"]
    return ["eval", "--engine", "embedded", *options]


def greedy_acceptance(
    tokens_BR: Tensor, layout: Any, logits_BRV: Tensor, params: Any, depth: int, *_: Any, **__: Any
) -> Acceptance:
    return accept_greedy(tokens_BR, layout, logits_BRV.argmax(-1), depth)


def rejects_nothing(tokens_BR: Tensor, layout: Any, logits_BRV: Tensor, *rest: Any, **more: Any) -> Acceptance:
    """The first draft is always taken."""
    found = accept_sampled(tokens_BR, layout, logits_BRV, *rest, **more)
    refused_B = found.count_B == 0
    return found._replace(
        bonus_B=torch.where(refused_B, tokens_BR[:, 1], found.bonus_B) if tokens_BR.shape[1] > 1 else found.bonus_B
    )


def test_eval_tells_the_law_of_what_it_measures(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--temperature", "1", "--json"]) == 0
    said = contract("eval", capsys.readouterr().out)
    assert said["law"]["p_value"] > BOUND and said["law"]["draws"] == DRAWS * len(PROMPTS) and said["speedup"] > 0
    assert main([*command, "--json"]) == 0
    assert contract("eval", capsys.readouterr().out)["law"] is None


def test_sampled_tokens_are_compared_with_plain_decodings(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*command, "--temperature", "1", "--json"]
    assert main(asked) == 0
    assert contract("eval", capsys.readouterr().out)["identical"] is True
    assert main([*asked, "--proposals", "drawn"]) == 0
    assert contract("eval", capsys.readouterr().out)["identical"] is None
    # of the same law, and so past its test, but other tokens
    monkeypatch.setattr(speculate, "accept_sampled", lambda *given, noise, **more: accept_sampled(*given, **more))
    assert main(asked) == 1
    assert contract("eval", capsys.readouterr().out)["identical"] is False


@pytest.mark.parametrize("wrong", [greedy_acceptance, rejects_nothing])
@pytest.mark.parametrize("json_asked", [False, True])
def test_eval_shows_no_speed_of_another_law(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: Callable[..., Acceptance],
    json_asked: bool,
) -> None:
    monkeypatch.setattr(speculate, "accept_sampled", wrong)
    # top tokens, for coupled ones are nearly of the law themselves: there tokens are compared one by one
    assert main([*command, "--temperature", "1", "--proposals", "top", *["--json"] * json_asked]) == 1
    out, error = capsys.readouterr()
    assert "does not sample by the target's law (p = " in error.splitlines()[-1]
    assert "speedup" not in out and "tokens_per_second" not in out
    if json_asked:
        assert contract("eval", out)["law"]["lawful"] is False
    else:
        assert not out
