"""The client against a server that speaks SGLang's wire format, without SGLang."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from eagle3_serving.errors import CheckError
from eagle3_serving.serve import sglang_client
from eagle3_serving.serve.sglang_client import SglangClient

ABOUT = {
    "finish_reason": {"type": "length", "length": 5},
    "spec_verify_ct": 3,
    "spec_num_proposed_drafts": 15,
    "spec_correct_drafts_histogram": [1, 1, 0, 1],
}


class Handler(BaseHTTPRequestHandler):
    metrics = ""  # none: as without --enable-metrics

    def do_GET(self) -> None:
        if not self.metrics:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.metrics.encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["input_ids"] == [0]:
            self.send_error(400, "no such token")
            return
        self.send_response(200)
        self.end_headers()
        for count in (1, 3, 5):
            piece = {"text": "abcde"[:count], "output_ids": list(range(count)), "meta_info": ABOUT}
            self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
        if asked["input_ids"] == [1]:
            self.wfile.write(b'data: {"error": {"message": "out of memory"}}\n\n')
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[SglangClient]:
    monkeypatch.setattr(sglang_client, "load_tokenizer", lambda target: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with SglangClient(f"http://127.0.0.1:{server.server_address[1]}", Path("target")) as made:
        yield made
    server.shutdown()
    server.server_close()


def test_pieces_add_up_and_speculation_is_counted(client: SglangClient) -> None:
    pieces: list[str] = []
    answer = client.generate({"input_ids": [7]}, pieces.append)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("abcde", (0, 1, 2, 3, 4), "length")
    assert pieces == ["a", "bc", "de"]
    counted = client.counters()
    assert (counted.drafts, counted.draft_tokens, counted.accepted) == (3, 15, 4)
    assert counted.accepted_by_position == (2, 1, 1)


def test_what_each_pass_accepted_is_told_where_a_piece_is_a_pass(
    client: SglangClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.generate({"input_ids": [7]}).accepted == ()  # two pieces behind the first, of three passes
    monkeypatch.setitem(ABOUT, "spec_verify_ct", 2)
    monkeypatch.setitem(ABOUT, "prompt_tokens", 40)
    answer = client.generate({"input_ids": [7]})
    assert (answer.accepted, answer.prompt_tokens) == ((1, 1), 40)


def test_draft_tokens_are_the_plugins_count_where_it_has_one(
    client: SglangClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.generate({"input_ids": [7]})
    page = (
        'eagle3:verified_nodes_total{steps="0",tokens="1"} 0.0\neagle3:verified_nodes_total{steps="3",tokens="6"} 4.0\n'
    )
    monkeypatch.setattr(Handler, "metrics", page)
    counted = client.counters()
    assert (counted.drafts, counted.draft_tokens, counted.accepted) == (3, 4, 4)


@pytest.mark.parametrize("prompt, why", [([0], "refused"), ([1], "out of memory")])
def test_a_failed_request_says_why(prompt: list[int], why: str, client: SglangClient) -> None:
    with pytest.raises(CheckError, match=why):
        client.generate({"input_ids": prompt})
    assert client.counters().drafts == 0


def test_a_server_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_client, "load_tokenizer", lambda target: None)
    with SglangClient("http://127.0.0.1:9", Path("target")) as gone, pytest.raises(CheckError, match="did not answer"):
        gone.generate({"input_ids": [1]})
