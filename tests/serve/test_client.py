import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from eagle3_serving.errors import CheckError
from eagle3_serving.eval.counters import SpecCounters
from eagle3_serving.serve.client import ChatClient, parse_counters
from eagle3_serving.serve.server import HOST, claim_port

METRICS = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 10.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.7e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 20.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 9.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 6.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 3.0
"""


def test_counters_are_read_from_the_metrics() -> None:
    assert parse_counters(METRICS) == SpecCounters(10, 20, 9, (6, 3))


def test_a_plain_server_counts_nothing() -> None:
    assert parse_counters("process_cpu_seconds_total 3.0\n") == SpecCounters()


def test_counters_add_and_subtract() -> None:
    now, then = SpecCounters(10, 20, 9, (6, 3)), SpecCounters(4, 8, 3, (2, 1))
    assert now - then == SpecCounters(6, 12, 6, (4, 2))
    assert now - SpecCounters() == now
    assert (now - then) + then == now
    assert SpecCounters() + now == now


def test_a_server_that_is_gone_is_one_clear_line() -> None:
    with ChatClient(f"http://{HOST}:{claim_port()}") as client:
        with pytest.raises(CheckError, match="did not answer") as caught:
            client.ask("hello", 4)
        assert "\n" not in str(caught.value)
        with pytest.raises(CheckError, match="did not answer"):
            client.draw("hello", 2, 4, 1.0)
        with pytest.raises(CheckError, match="shows no metrics"):
            client.counters()


class Endpoint(BaseHTTPRequestHandler):
    """Streams two tokens in OpenAI's wire format, of whichever endpoint is asked."""

    asked: list[tuple[str, dict[str, Any]]]

    def do_POST(self) -> None:
        self.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        chat = "chat" in self.path
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for token in (5, 6):
            said = {"delta": {"content": f"<{token}>"}} if chat else {"text": f"<{token}>"}
            choice = {"index": 0, "token_ids": [token], "finish_reason": "length" if token == 6 else None, **said}
            chunk = {"id": "1", "object": "chunk", "created": 0, "model": "m", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.mark.parametrize("chat", [True, False])
def test_a_base_model_is_asked_to_continue_the_bare_text(chat: bool) -> None:
    handler = type("Asked", (Endpoint,), {"asked": []})
    server = ThreadingHTTPServer((HOST, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with ChatClient(f"http://{HOST}:{server.server_address[1]}", chat=chat) as client:
        answer = client.ask("Once", 2)
    server.shutdown()
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("<5><6>", (5, 6), "length")
    ((path, body),) = handler.asked
    assert path == ("/v1/chat/completions" if chat else "/v1/completions")
    assert body["max_tokens"] == 2 and body["return_token_ids"] is True
    assert body.get("prompt") == (None if chat else "Once")
