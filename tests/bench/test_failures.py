"""Servers that are spoken to and fail."""

import json
import socket
from pathlib import Path

import pytest

from eagle3_serving.bench.http import open_servers
from eagle3_serving.bench.options import BenchOptions
from eagle3_serving.errors import CheckError
from eagle3_serving.serve.server import HOST


def options(folder: Path, port: int) -> BenchOptions:
    prompts = folder / "p.jsonl"
    prompts.write_text(json.dumps({"id": "1", "family": "f", "turns": ["a"]}))
    return BenchOptions(
        engine="vllm",
        target=folder,
        drafter=folder,
        prompts=(prompts,),
        out=folder / "out.jsonl",
        settings=("plain",),
        urls={"plain": f"http://{HOST}:{port}"},
        timeout_s=0.5,
    )


def test_a_server_that_answers_nothing_ends_after_the_timeout(tmp_path: Path) -> None:
    with socket.socket() as silent:  # takes connections, and says nothing
        silent.bind((HOST, 0))
        silent.listen()
        with (
            pytest.raises(CheckError, match="did not answer: Request timed out") as caught,
            open_servers(options(tmp_path, silent.getsockname()[1])),
        ):
            pass
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    with (
        pytest.raises(CheckError, match=f"{port} did not answer: Connection error"),
        open_servers(options(tmp_path, port)),
    ):
        pass
