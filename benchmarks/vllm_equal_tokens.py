"""Accepted length at equal verified tokens: vLLM's own chain of N beside our tree of N nodes.

    python -m benchmarks.vllm_equal_tokens --drafter checkpoints/smollm2-135m-instruct --prompts DIR --out equal.json

fp32, T = 0, the same prompts and answer lengths. The chain is vLLM's own EAGLE-3 (the plugin off) on Model Runner V1, the
tree runs on V2 through Triton's interpreter. Both verify N draft tokens a pass for each request.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import add_pair, write_json
from benchmarks.vllm_engine import Job, Round, run
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--verified", type=int, nargs="+", default=[2, 4, 8, 16], help="draft tokens a pass")
    parser.add_argument("--limit", type=int, default=10, help="prompts a family (default 10)")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = args.target or fetch_target()
    tokenizer = load_tokenizer(target)
    asked = [chat_ids(tokenizer, prompt.turns[0]) for prompt in read_prompts(args.prompts, args.limit)]
    rounds = [Round([ids for ids in asked if len(ids) < 400], {"temperature": 0, "max_tokens": args.max_tokens})]
    plain = run(Job(target, rounds, runner=1))["rounds"][0]["tokens"]
    report: dict[str, Any] = {"prompts": len(plain), "tokens": sum(map(len, plain)), "verified": {}}
    for verified in tqdm(args.verified, desc="draft tokens a pass", unit="pair"):
        chain = run(Job(target, rounds, args.drafter, verified, runner=1, settings={"EAGLE3_MODE": "vllm"}))
        tree = run(Job(target, rounds, args.drafter, verified))
        both = {"vLLM's own chain": _figures(chain, plain), "our tree": _figures(tree, plain)}
        report["verified"][verified] = both
        write_json(args.out, report)
        tqdm.write(f"{verified}: {both}")
    return 0


def _figures(out: dict[str, Any], plain: Sequence[Sequence[int]]) -> dict[str, Any]:
    metrics, tokens = out["metrics"], out["rounds"][0]["tokens"]
    # requests' passes that verified a draft; the plugin counts trees, vLLM its chains
    passes = metrics.get("vllm:eagle3_verify_passes") or metrics["vllm:spec_decode_num_drafts"]
    return {
        "tokens_per_pass": round(sum(len(t) - 1 for t in tokens) / passes, 3),
        "verify_passes": passes,
        "differing": sum(a != b for a, b in zip(tokens, plain, strict=True)),
    }


if __name__ == "__main__":
    raise SystemExit(main())
