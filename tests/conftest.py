"""What every test can ask for: the real small target, the drafter that ships, and a GPU or a reason to skip."""

import os
from pathlib import Path

import pytest
import torch

from eagle3_serving.targets import gemma3
from eagle3_serving.targets.cache import cache_directory
from eagle3_serving.targets.smollm2 import fetch_target

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """A worker beside others keeps to one core, its engines too: threads that spin for each other cost both more."""
    mark = "supports(engine, way, *features): what the test shows to work; the support matrix is made of these"
    config.addinivalue_line("markers", mark)
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not hasattr(os, "sched_getaffinity"):
        return
    cpus = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(cpus[int(worker.removeprefix("gw")) % len(cpus)]))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def target_dir() -> Path:
    """SmolLM2-135M-Instruct; made once in the user's cache."""
    return fetch_target()


@pytest.fixture(scope="session")
def gemma_dir() -> Path:
    """Gemma 3 270M, where `eagle3 fetch-target gemma3-270m` made it: tests fetch no 253 MB."""
    directory = cache_directory() / gemma3.RECIPE.name
    if not gemma3.RECIPE.is_whole(directory):
        pytest.skip("Gemma 3 270M is not here: eagle3 fetch-target gemma3-270m makes it (253 MB, Gemma's terms)")
    return directory


@pytest.fixture(scope="session")
def drafter_dir() -> Path:
    return ROOT / "checkpoints" / "smollm2-135m-instruct"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # the long files first, or one process waits for the other's last server, and at the end for the laws of tree/
    items.sort(key=lambda item: [folder not in item.path.parts for folder in ("engines", "tree")])
    if torch.cuda.is_available():
        return
    for item in items:
        # not item.keywords, which hold the names of folders too
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
