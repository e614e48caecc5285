"""What every test can ask for: the real small target, the drafter that ships, and a GPU or a reason to skip."""

from pathlib import Path

import pytest
import torch

from eagle3_serving.targets.smollm2 import fetch_target

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def target_dir() -> Path:
    """SmolLM2-135M-Instruct; made once in the user's cache."""
    return fetch_target()


@pytest.fixture(scope="session")
def drafter_dir() -> Path:
    return ROOT / "checkpoints" / "smollm2-135m-instruct"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        # not item.keywords, which hold the names of folders too
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
