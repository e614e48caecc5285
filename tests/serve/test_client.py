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
