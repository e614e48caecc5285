"""What a person types: the engines' own words for flags, slips of the finger, and what exit codes mean."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eagle3_serving import errors
from eagle3_serving.cli import exit_codes
from eagle3_serving.cli.convert import main as convert
from eagle3_serving.cli.convert import script_parser
from eagle3_serving.cli.main import build_parser, main
from eagle3_serving.cli.parser import Parser

SERVE = ["serve", "--engine", "vllm"]
PAIR = ["--target", "t", "--drafter", "d"]
EVAL = ["eval", "--engine", "sglang", "--prompts", "p"]


def commands() -> Iterator[Parser]:
    yield script_parser()
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([*SERVE, *PAIR], [*SERVE, "--model", "t", "--spec-model", "d"]),
        ([*SERVE, *PAIR], [*SERVE, "--model-path", "t", "--speculative-draft-model-path", "d"]),
        ([*SERVE, *PAIR, "--k", "5"], [*SERVE, *PAIR, "--spec-tokens", "5"]),
        ([*SERVE, *PAIR, "--context", "99"], [*SERVE, *PAIR, "--max-model-len", "99"]),
        ([*SERVE, *PAIR, "--context", "99"], [*SERVE, *PAIR, "--context-length", "99"]),
        ([*SERVE, *PAIR, "--max-requests", "7"], [*SERVE, *PAIR, "--max-num-seqs", "7"]),
        ([*SERVE, *PAIR, "--max-requests", "7"], [*SERVE, *PAIR, "--max-running-requests", "7"]),
        ([*SERVE, *PAIR, "--tensor-parallel-size", "2"], [*SERVE, *PAIR, "-tp", "2"]),
        ([*SERVE, *PAIR, "--tensor-parallel-size", "2"], [*SERVE, *PAIR, "--tp", "2"]),
        ([*SERVE, *PAIR, "--dtype", "bf16"], [*SERVE, *PAIR, "--dtype", "bfloat16"]),
        (
            [*EVAL, *PAIR, "--depth", "3", "--top-k", "4", "--nodes", "5"],
            [
                *EVAL,
                *PAIR,
                "--speculative-num-steps",
                "3",
                "--speculative-eagle-topk",
                "4",
                "--speculative-num-draft-tokens",
                "6",
            ],
        ),
        (
            ["tune", "--engine", "vllm", *PAIR, "--out", "o", "--concurrency", "1,2", "--tokens", "9"],
            ["tune", "--engine", "vllm", *PAIR, "--out", "o", "--max-concurrency", "1,2", "--max-tokens", "9"],
        ),
        (["demo", "--target", "t", "--k", "2"], ["demo", "--model", "t", "--num-speculative-tokens", "2"]),
    ],
)
def test_an_engines_word_is_ours(ours: list[str], theirs: list[str]) -> None:
    def parsed(argv: list[str]) -> dict[str, Any]:
        return {name: value for name, value in vars(build_parser().parse_args(argv)).items() if name != "root"}

    assert parsed(ours) == parsed(theirs)


def test_what_is_not_said_keeps_its_default() -> None:
    assert build_parser().parse_args([*EVAL, *PAIR]).nodes == 60


def test_help_shows_every_name_once() -> None:
    for parser in commands():
        shown = re.findall(
            r"(?<![\w-])--?[a-z][\w-]*", parser.format_help().partition("options:")[2].partition("examples:")[0]
        )
        for action in parser._actions:
            if "--target" in action.option_strings and len(action.option_strings) > 1:
                assert all(shown.count(name) == 1 for name in ("--model", "--model-path")), parser.prog
                assert f"--target, --model, --model-path {action.dest.upper()}\n" in parser.format_help()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["evl"], "eagle3: argument COMMAND: 'evl' is none of demo, .*: did you mean eval\\?; see eagle3 --help"),
        (["--verson"], "eagle3: there is no --verson: did you mean --version\\?"),
        (
            ["eval", "--engine", "vllm", "--traget", "t", "--drafer=d"],
            "eagle3 eval: there is no --traget: did you mean --target\\?; there is no --drafer: did you mean --drafter\\?; see",
        ),
        (
            [*SERVE, *PAIR, "--max-num-seq-len", "3"],
            "eagle3 serve: there is no --max-num-seq-len: did you mean --max-num-seqs",
        ),
        ([*SERVE, *PAIR, "--xyzzy", "3"], "eagle3 serve: there is no --xyzzy; see eagle3 serve --help"),
        (["serve", "--engine", "vlm", *PAIR], "argument --engine: 'vlm' is none of vllm, sglang: did you mean vllm"),
        (
            ["serve", "--engine", "vllm"],
            "the following arguments are required: --target/--model/--model-path, --drafter/",
        ),
        ([*SERVE, *PAIR, "--port", "x"], "argument --port: invalid int value: 'x'"),
        (["fetch-target", "gemma3-270m", "here"], "eagle3 fetch-target: unrecognized arguments: here"),
        (["fetch-target", "gemma-270m"], "'gemma-270m' is none of .*: did you mean gemma3-270m\\?"),
        (["check", "d", "--engine", "vllm", "--jsn"], "there is no --jsn: did you mean --json"),
        ([], "eagle3: the following arguments are required: COMMAND"),
    ],
)
def test_a_slip_is_one_line_with_the_nearest_word(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["eagle3", *argv])
    for given in (argv, None):  # None: what a console script is given
        with pytest.raises(SystemExit) as left:
            main(given)
        out, err = capsys.readouterr()
        assert left.value.code == exit_codes.USAGE and out == ""
        assert err.count("\n") == 1 and re.search(said, err), err


def test_what_is_the_engines_is_no_slip(capsys: pytest.CaptureFixture[str]) -> None:
    args = build_parser().parse_args([*SERVE, *PAIR, "--", "--traget", "--gpu-memory-utilization", "0.5"])
    assert args.engine_args == ["--traget", "--gpu-memory-utilization", "0.5"]
    with pytest.raises(SystemExit):
        main(["serve", *PAIR, "--", "--traget"])
    assert "the following arguments are required: --engine" in capsys.readouterr().err
    # argparse takes the beginning of a flag for it
    assert build_parser().parse_args([*SERVE, *PAIR, "--ready", "9"]).ready_timeout == 9


def test_the_script_of_its_own_speaks_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        convert(["--help"])
    assert capsys.readouterr().out.startswith("usage: eagle3-convert ")
    with pytest.raises(SystemExit):
        convert(["a", "b", "--t", "vllm", "--tagret", "c"])
    assert "eagle3-convert: there is no --tagret: did you mean --target?" in capsys.readouterr().err
    assert convert([str(tmp_path / "nowhere"), str(tmp_path / "out"), "--to", "vllm"]) == exit_codes.USAGE
    assert capsys.readouterr().err.startswith("eagle3-convert: ")


def test_every_help_ends_with_the_exit_codes() -> None:
    for parser in (build_parser(), *commands()):
        assert parser.format_help().endswith(exit_codes.table())


def test_the_table_says_what_errors_end_with() -> None:
    assert errors.InputError.exit_code == exit_codes.USAGE and errors.CheckError.exit_code == exit_codes.NOT_RIGHT
    assert {0, 1, 2, 3, 130} <= exit_codes.MEANINGS.keys()
