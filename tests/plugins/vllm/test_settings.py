from pathlib import Path

import pytest
from eagle3_vllm.settings import Settings

from eagle3_serving.errors import InputError
from eagle3_serving.serve.shape import Shape


def test_without_variables_the_defaults_hold() -> None:
    assert Settings.read({}) == Settings()


def test_every_variable_is_read(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text("{}")
    read = Settings.read(
        {
            "EAGLE3_MODE": "chain",
            "EAGLE3_TREE_DEPTH": "5",
            "EAGLE3_TREE_TOP_K": "4",
            "EAGLE3_BATCH_NODES": "48",
            "EAGLE3_CALIBRATED": "0",
            "EAGLE3_PROFILE": str(profile),
            "EAGLE3_FALLBACK_TOKENS": "2",
            "EAGLE3_TREES": "5,4,9; 0;3,1,4",
            "EAGLE3_ATTENTION": "split",
            "EAGLE3_KERNELS": "0",
            "EAGLE3_DRAFTER_WEIGHTS": "fp8",
            "EAGLE3_ASSUMED_GAINS": "4:1.5;9:2",
            "EAGLE3_PROPOSALS": "top",
        }
    )
    trees = Shape.nothing(1), Shape(3, 1, 4), Shape(5, 4, 9)
    assert read == Settings(
        "chain", trees, 5, 4, 48, False, profile, 2, "split", "0", ((4, 1.5), (9, 2.0)), "fp8", "top"
    )


@pytest.mark.parametrize(
    "name, value",
    [
        ("EAGLE3_MODE", "trees"),
        ("EAGLE3_TREE_DEPTH", "0"),
        ("EAGLE3_TREE_TOP_K", "ten"),
        ("EAGLE3_BATCH_NODES", "-1"),
        ("EAGLE3_PROFILE", "nowhere.json"),
        ("EAGLE3_TREES", "8,10,5"),  # deeper than it has nodes
        ("EAGLE3_TREES", "3,4"),
        ("EAGLE3_TREES", "0"),
        ("EAGLE3_TREES", "3,1,4;2,2,4"),  # the same number of tokens
        ("EAGLE3_ATTENTION", "fast"),
        ("EAGLE3_KERNELS", "2"),
        ("EAGLE3_PROPOSALS", "drawn"),
        ("EAGLE3_ASSUMED_GAINS", "4"),
        ("EAGLE3_ASSUMED_GAINS", "4:nan"),
        ("EAGLE3_ASSUMED_GAINS", "4:5"),
        ("EAGLE3_DRAFTER_WEIGHTS", "int8"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    with pytest.raises(InputError, match=name):
        Settings.read({name: value})
