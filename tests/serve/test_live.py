"""What a server's metrics say of its drafting."""

from eagle3_serving.serve.live import Traffic, parse_traffic

VLLM = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="target"} 31.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="target"} 1.7955608903950052e+09
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="target"} 9.0
vllm:num_requests_running{engine="0",model_name="target"} 2.0
vllm:generation_tokens_total{engine="0",model_name="target"} 40.0
vllm:generation_tokens_total{engine="1",model_name="target"} 5.0
"""
SGLANG = """eagle3:verified_requests_total{steps="3",tokens="6",top_k="4"} 10.0
eagle3:verified_requests_total{steps="5",tokens="12",top_k="4"} 5.0
eagle3:accepted_tokens_total{steps="3",tokens="6",top_k="4"} 12.0
sglang:generation_tokens_total{model_name="target"} 3.7e+01
"""


def test_the_sums_of_all_labels_count() -> None:
    assert parse_traffic(VLLM, "vllm") == Traffic(31, 9, 45, 2)
    assert parse_traffic(SGLANG, "sglang") == Traffic(15, 12, 37, 0)
    assert parse_traffic("", "vllm") == Traffic()


def test_the_line_is_of_the_time_between_two_looks() -> None:
    line = Traffic(20, 25, 100, 3).since(Traffic(10, 10, 40, 1), seconds=2.0)
    assert line == "accepted length 2.50   30.0 tokens/s   3 running   100 tokens so far"
    assert Traffic(tokens=8).since(Traffic(), 1.0).startswith("accepted length -")
