"""Whether sampled answers with a drafter follow the law of those without: what a figure of speed at T > 0 stands on."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle3_serving.errors import CheckError

Answers = Sequence[Sequence[int]]  # token ids of one prompt's answers
Draw = Callable[
    [str, int, int, float], Answers
]  # (text, answers, tokens of each, temperature) -> so many fresh answers

# open and nearly settled continuations: a law is lost in either
PROMPTS = (
    "The best thing about",
    "Once upon a time, there was a",
    "Count to ten in words: one, two, three, four, five,",
)
DRAWS = 96  # of each prompt and side
TOKENS = 4  # of each; drafts come in from the second on
BOUND = 1e-6  # a side that is right is refused less often than this


@dataclass(frozen=True)
class LawTest:
    """`p_value`: a bound on how often two sides of one law differ as much. `draws`: answers of each side."""

    p_value: float
    draws: int

    @property
    def lawful(self) -> bool:
        return self.p_value >= BOUND

    def to_json(self) -> dict[str, object]:
        return {"p_value": self.p_value, "draws": self.draws, "lawful": self.lawful}

    def __str__(self) -> str:
        return f"p = {self.p_value:.2g} over {self.draws} answers of {TOKENS} tokens"


class LawError(CheckError):
    """A side samples by another law than plain decoding; `found` says how surely."""

    def __init__(self, side: str, found: LawTest) -> None:
        super().__init__(
            f"{side} does not sample by the target's law ({found}): no speed of wrong text is shown; use --temperature 0"
        )
        self.found = found


def sampled(draw: Draw, temperature: float) -> list[Answers]:
    """What one side says to `PROMPTS`."""
    return [draw(text, DRAWS, TOKENS, temperature) for text in PROMPTS]


def judge(plain: Sequence[Answers], other: Sequence[Answers]) -> LawTest:
    return LawTest(compare(plain, other), sum(map(len, plain)))


def hold_law(plain: Draw, other: Draw, temperature: float) -> LawTest | None:
    """Draw from both sides and compare; None at temperature 0. Raises LawError where the other side has another law."""
    if temperature == 0:
        return None
    found = judge(sampled(plain, temperature), sampled(other, temperature))
    if not found.lawful:
        raise LawError("the side with the drafter", found)
    return found


def compare(one: Sequence[Answers], other: Sequence[Answers]) -> float:
    """A bound on the p-value of "both sides' answers are of one law"; prompt by prompt, as many answers of each side.

    Answers are paired in the order given. Where both sides have one law, either of a pair could have come from either
    side, so the sign of a pair's difference d_i is a fair coin's, whatever the answers were: D = sum of +-d_i. Of the
    counts compared (at each place of each prompt: tokens among the commonest that make up half of both sides together)
    X = D' S^-1 D with
    S = sum d_i d_i' of rank k is Stuart's and Maxwell's statistic. Sums of fair signs have a smaller moment generating
    function than Gaussian ones, so that Chernoff's bound for chi-square holds for any number of answers:
    p <= (X / k)^(k / 2) exp((k - X) / 2). (Asymptotic p-values are wrong by far out there.)

    Raises ValueError where the sides have not as many answers.
    """
    blocks = [_differences(a, b) for a, b in zip(one, other, strict=True)]
    signed_NC = torch.block_diag(*blocks)
    total_C = signed_NC.sum(0)
    moments_CC = signed_NC.T @ signed_NC
    rank = int(torch.linalg.matrix_rank(moments_CC, hermitian=True))
    if rank == 0:
        return 1.0
    statistic = float(total_C @ torch.linalg.pinv(moments_CC, hermitian=True) @ total_C)
    if statistic <= rank:
        return 1.0
    logarithm = rank / 2 * torch.tensor(statistic / rank, dtype=torch.float64).log() + (rank - statistic) / 2
    return float(logarithm.exp())


def _differences(one: Answers, other: Answers) -> Tensor:
    """A row a pair, a column a (place, token) counted: 1, 0 or -1, fp64 [N, C]."""
    if len(one) != len(other):
        raise ValueError(f"{len(one)} answers against {len(other)}: there must be as many of each side")
    columns = []
    for place in range(max(map(len, [*one, *other]))):
        # an answer that has ended holds its own token here
        sides = [[answer[place] if place < len(answer) else -1 for answer in side] for side in (one, other)]
        # the commonest tokens up to half of all; of equals the lower id, for the choice must not know the sides
        seen = sorted(Counter(sides[0] + sides[1]).items(), key=lambda pair: (-pair[1], pair[0]))
        common, mass = set(), 0
        for token, count in seen:
            common.add(token)
            mass += count
            if mass >= len(one):
                break
        if len(common) < len(seen):
            columns.append([(a in common) - (b in common) for a, b in zip(*sides, strict=True)])
    return torch.tensor(columns, dtype=torch.float64).reshape(len(columns), len(one)).T
