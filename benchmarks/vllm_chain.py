"""vLLM's own chain with our drafter and our schedule against plain vLLM, by requests in flight, both servers in one run.

    python -m eagle3_vllm.profile --model TARGET --drafter DRAFTER --dtype float32 --enforce-eager --out profile.json
    python -m benchmarks.vllm_chain --drafter DRAFTER --profile profile.json --prompts DIR --batches 1 4 16 --out chain.json

Prompts go in alternating order to both; tokens a second include the prefill. Model Runner V1, fp32, eager.
"""

import argparse
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import add_pair, write_json
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.eval.rounds import merge
from eagle3_serving.eval.vllm import measure
from eagle3_serving.serve.side_by_side import side_by_side
from eagle3_serving.serve.vllm import VllmOptions
from eagle3_serving.targets.smollm2 import fetch_target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--k", type=int, default=4, help="most draft tokens (default 4)")
    parser.add_argument("--limit", type=int, default=4, help="prompts a family at one request in flight (default 4)")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    os.environ["EAGLE3_PROFILE"] = str(args.profile.resolve())
    target = args.target or fetch_target()
    options = EvalOptions(
        "vllm", target, args.drafter, tuple(args.prompts), k=args.k, max_tokens=args.max_tokens, repeats=args.repeats
    )
    report: dict[str, Any] = {"drafter": args.drafter.name, "max_tokens": args.max_tokens, "batches": {}}
    server = VllmOptions(target, args.drafter, args.k, max_num_seqs=max(args.batches), max_model_len=1024)
    with side_by_side(server, "chain") as (plain, spec):
        for batch in args.batches:
            prompts = [
                p for f in by_family(read_prompts(args.prompts, 40)).values() for p in f if len(p.turns[0]) < 600
            ]
            # enough to keep the batch full, the families mixed
            count = max(args.limit * len({p.family for p in prompts}), 2 * batch)
            chosen = prompts[:: max(1, len(prompts) // count)][:count]
            rounds = measure(replace(options, batch=batch), {"all": chosen}, plain, spec)["all"]
            ratios = [(r.tokens / r.spec_s) / (r.plain_tokens / r.plain_s) for r in rounds]
            counters = merge(rounds).counters
            report["batches"][batch] = {
                "speedup": round(statistics.median(ratios), 3),
                "range": [round(min(ratios), 3), round(max(ratios), 3)],
                "identical": all(r.identical for r in rounds),
                "accepted_length": round(counters.accepted_length, 3),
                "plain_tokens_per_second": round(statistics.median(r.plain_tokens / r.plain_s for r in rounds), 1),
                "prompts": len(chosen),
            }
            print(batch, report["batches"][batch], flush=True)
            write_json(args.out, report)
    return 0 if all(figures["identical"] for figures in report["batches"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
