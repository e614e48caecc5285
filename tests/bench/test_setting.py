"""Names of settings, and what an engine cannot do."""

import pytest

from eagle3_serving.bench.setting import DEFAULTS, Setting, parse_setting
from eagle3_serving.errors import InputError


@pytest.mark.parametrize(
    "name, engine, expected",
    [
        ("plain", "vllm", Setting("plain", "plain")),
        ("own-chain-3", "vllm", Setting("own-chain-3", "chain", True, (3,))),
        ("tree-16", "embedded", Setting("tree-16", "tree", False, (16,))),
        ("own-tree-5-4-8", "sglang", Setting("own-tree-5-4-8", "tree", True, (5, 4, 8))),
        ("auto", "sglang", Setting("auto", "auto")),
    ],
)
def test_a_name_says_what_is_run(name: str, engine: str, expected: Setting) -> None:
    assert parse_setting(name, engine) == expected


@pytest.mark.parametrize(
    "name, engine",
    [
        ("fast", "vllm"),
        ("chain", "vllm"),
        ("chain-0", "vllm"),
        ("own-plain", "vllm"),
        ("own-chain-3", "embedded"),
        ("own-tree-8", "vllm"),
        ("own-auto", "vllm"),
        ("tree-16", "sglang"),
        ("tree-5-4-8", "embedded"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_by_name(name: str, engine: str) -> None:
    with pytest.raises(InputError, match=name):
        parse_setting(name, engine)


@pytest.mark.parametrize("engine", DEFAULTS)
def test_the_usual_settings_are_ones(engine: str) -> None:
    assert [parse_setting(name, engine).kind for name in DEFAULTS[engine]].count("plain") == 1
