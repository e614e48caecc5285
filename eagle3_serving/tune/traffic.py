"""The prompts that a tuner asks: the user's own, or a dozen of ours."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.files import write_whole

OURS = (
    "Explain how a kite flies, step by step, to a curious child.",
    "Write a Python function that returns the prime numbers below n, with a short docstring.",
    "A shop sells pens at 3 for 2 euros. What do 27 pens cost? Show each step.",
    "Write a friendly letter to a neighbour who looked after the garden in summer.",
    "List five ways to save water at home, with a reason for each.",
    "Write a SQL query that finds the three customers with the most orders in the last month.",
    "A train leaves at 9:40 and needs 2 hours and 35 minutes. When does it arrive? Explain.",
    "Summarize in two sentences: The old bridge was closed on Monday after a barge had hit one of its pillars. Engineers "
    "found no crack, but will put sensors on it before cars may cross again. The ferry runs twice an hour until then.",
    "What is the difference between a virus and a bacterium?",
    "Write a Python class for a bank account with deposit, withdraw and balance.",
    "Tell a short story about a lighthouse keeper who finds a letter.",
    "If 3 workers paint a fence in 8 hours, how long do 4 workers need? Think step by step.",
)


def traffic_prompts(traffic: Sequence[Path], limit: int) -> list[str]:
    """First turns, the families taking turns, `limit` of them. Raises InputError as `read_prompts` does."""
    if not traffic:
        return list(OURS[:limit])
    families = by_family(read_prompts(traffic)).values()
    mixed = [p.turns[0] for row in itertools.zip_longest(*families) for p in row if p is not None]
    return mixed[:limit]


def write_prompts(path: Path, prompts: Sequence[str]) -> None:
    """As every command here reads them, in this order."""
    lines = (json.dumps({"id": str(n), "family": "traffic", "turns": [text]}) for n, text in enumerate(prompts))
    write_whole(path, "\n".join(lines) + "\n")
