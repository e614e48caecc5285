"""Accepted length at equal verified tokens: vLLM's own chain of N beside our tree of N nodes.

    python -m benchmarks.vllm_equal_tokens --drafter checkpoints/smollm2-135m-instruct --prompts DIR --out equal.json

fp32, T = 0, the same prompts and answer lengths. The chain is vLLM's own EAGLE-3 (the plugin off) on Model Runner V1, the
tree runs on V2 through Triton's interpreter. Both verify N draft tokens a pass for each request.
"""

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import add_pair, write_json
from benchmarks.vllm_engine import Job, Round, run
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--verified", type=int, nargs="+", default=[2, 4, 8, 16], help="draft tokens a pass")
    parser.add_argument("--limit", type=int, default=6, help="prompts a family (default 6)")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = args.target or fetch_target()
    tokenizer = load_tokenizer(target)
    families = by_family(read_prompts(args.prompts, args.limit))
    params = {"temperature": 0, "max_tokens": args.max_tokens, "ignore_eos": True}
    # a round a family, so that each has its own figures
    rounds = {
        name: Round([ids for p in prompts if len(ids := chat_ids(tokenizer, p.turns[0])) < 400], params)
        for name, prompts in families.items()
    }
    plain = run(Job(target, list(rounds.values()), runner=1))["rounds"]
    report: dict[str, Any] = {"prompts": {name: len(r.prompts) for name, r in rounds.items()}, "verified": {}}
    for verified in tqdm(args.verified, desc="draft tokens a pass", unit="pair"):
        both: dict[str, Any] = {"vLLM's own chain": {}, "our tree": {}}
        for (name, part), expected in zip(rounds.items(), plain, strict=True):
            chain = run(Job(target, [part], args.drafter, verified, runner=1, settings={"EAGLE3_MODE": "vllm"}))
            tree = run(Job(target, [part], args.drafter, verified))
            for side, out in (("vLLM's own chain", chain), ("our tree", tree)):
                passes = _passes(out["metrics"])
                tokens = out["rounds"][0]["tokens"]
                both[side][name] = {
                    "tokens_per_pass": round(sum(len(t) - 1 for t in tokens) / passes, 3),
                    "differing": sum(a != b for a, b in zip(tokens, expected["tokens"], strict=True)),
                }
        for figures in both.values():
            lengths = [family["tokens_per_pass"] for family in figures.values()]
            figures["mean of families"] = round(sum(lengths) / len(lengths), 3)
        report["verified"][verified] = both
        write_json(args.out, report)
        tqdm.write(f"{verified}: " + ", ".join(f"{side} {f['mean of families']}" for side, f in both.items()))
    return 0


def _passes(metrics: dict[str, Any]) -> int:
    """Requests' passes that verified a draft."""
    own: int = metrics["vllm:spec_decode_num_drafts"]
    return metrics.get("vllm:eagle3_verify_passes") or own


if __name__ == "__main__":
    raise SystemExit(main())
