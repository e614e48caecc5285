"""Twenty prompts of our own, a small random pair, and servers whose engine is not as known."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.small_pair import save_pair
from eagle3_serving.engine import EmbeddedEngine
from eagle3_serving.serve.server import ServerCommand

PROMPTS = (
    "Why is the sky blue?",
    "Name four animals that live in the desert.",
    "Write a Python function that reverses a string.",
    "What is 17 + 26? Explain each step.",
    "Give me a recipe for pancakes.",
    "Summarize: The bridge was closed on Monday because a ship had hit one of its pillars. It opens again on Friday.",
    "Write a short poem about winter.",
    "Explain how a kite flies.",
    "List three reasons to drink water.",
    "Write a SQL query that counts the rows of a table named orders.",
    "A box holds 8 pens. How many pens are in 9 boxes?",
    "Tell me a story about a fox and a clock.",
    "What should I pack for a walk in the mountains?",
    "Translate to French: Good morning, my friend.",
    "Write a Python loop that prints the even numbers below 20.",
    "Who was Marie Curie?",
    "Rewrite politely: Send me the report now.",
    "What is the difference between a lake and a pond?",
    "If a shirt costs 20 euros and is 25% cheaper today, what does it cost?",
    "Give me three names for a small bakery.",
)


@pytest.fixture(scope="session")
def prompts() -> tuple[str, ...]:
    return PROMPTS


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small random target and its drafter."""
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def one(pair: tuple[Path, Path]) -> EmbeddedEngine:
    """Both on the embedded engine: what an engine shall say, and accept."""
    return EmbeddedEngine.load(*pair)


@pytest.fixture
def doctored() -> Callable[[ServerCommand, str], ServerCommand]:
    """The command with a function of the engine's doctored in all of its processes: see `doctored/sitecustomize.py`."""
    folder = Path(__file__).with_name("doctored")

    def doctor(command: ServerCommand, function: str) -> ServerCommand:
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        return replace(command, environment={**command.environment, "DOCTORED": function, "PYTHONPATH": path})

    return doctor
