"""vLLM with trees against plain vLLM, token for token, and against the embedded engine's tokens a pass.

    python -m benchmarks.vllm_trees --drafter checkpoints/smollm2-135m-instruct --prompts DIR --out trees.json

fp32, T = 0, Model Runner V2 through Triton's interpreter. Every setting is one engine: trees of 16 and of 60 nodes, one
and eight requests in flight (answers of different length, so that they join and leave), a KV cache so small that requests
are preempted, prefix caching, prompts cut into chunks, a budget over the batch. It takes tens of minutes on two cores.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import add_pair, write_json
from benchmarks.vllm_engine import Job, Round, run
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target

SETTINGS: dict[str, tuple[int, dict[str, Any], dict[str, str]]] = {
    "tree of 16, one request": (16, {"max_num_seqs": 1}, {}),
    "tree of 60, one request": (60, {"max_num_seqs": 1}, {}),
    "tree of 16, eight requests": (16, {}, {}),
    "tree of 60, eight requests": (60, {}, {}),
    "tree of 16, a budget of 48 over eight requests": (16, {}, {"EAGLE3_BATCH_NODES": "48"}),
    "tree of 16, preemption (16 blocks)": (
        16,
        {"num_gpu_blocks_override": 16, "block_size": 32, "max_model_len": 448},
        {},
    ),
    "tree of 16, prefix caching": (16, {"enable_prefix_caching": True, "block_size": 32}, {}),
    "tree of 16, chunks of 64 tokens": (16, {"max_num_seqs": 3, "max_num_batched_tokens": 64}, {}),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--limit", type=int, default=10, help="prompts a family (default 10)")
    parser.add_argument("--max-tokens", type=int, default=24, help="tokens of the longest answers (default 24)")
    parser.add_argument("--only", nargs="+", choices=sorted(SETTINGS), help="only these settings")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = args.target or fetch_target()
    tokenizer = load_tokenizer(target)
    families = by_family(read_prompts(args.prompts, args.limit))
    prompts = [chat_ids(tokenizer, prompt.turns[0]) for family in families.values() for prompt in family]
    prompts = [prompt for prompt in prompts if len(prompt) < 400]
    # lengths differ, so that requests leave and others take their places
    lengths = [args.max_tokens - (place * 7) % 11 for place in range(len(prompts))]
    params = [{"temperature": 0, "max_tokens": n, "ignore_eos": True} for n in lengths]
    rounds = [Round(prompts, params)]
    plain = run(Job(target, rounds, runner=1))["rounds"][0]
    report: dict[str, Any] = {"prompts": len(prompts), "tokens": sum(lengths), "settings": {}}
    for name in tqdm(args.only or list(SETTINGS), desc="settings", unit="engine"):
        nodes, engine, settings = SETTINGS[name]
        begun = time.perf_counter()
        # asked twice, the second answers' prefixes come out of the cache
        asked = rounds * 2 if engine.get("enable_prefix_caching") else rounds
        out = run(Job(target, asked, args.drafter, nodes, engine=engine, settings=settings))
        figures = _figures(out, plain["tokens"])
        figures["seconds"] = round(time.perf_counter() - begun, 1)
        if engine.get("max_num_seqs") == 1:
            figures["embedded"] = _embedded(target, args.drafter, prompts, lengths, nodes)
        report["settings"][name] = figures
        write_json(args.out, report)
        tqdm.write(f"{name}: {figures}")
    return 0 if all(s["differing"] == 0 for s in report["settings"].values()) else 1


def _figures(out: dict[str, Any], plain: Sequence[Sequence[int]]) -> dict[str, Any]:
    metrics = out["metrics"]
    tokens = [answer for part in out["rounds"] for answer in part["tokens"]]
    passes = metrics["vllm:eagle3_verify_passes"]
    return {
        "differing": sum(a != b for a, b in zip(tokens, [*plain] * len(out["rounds"]), strict=True)),
        "verify_passes": passes,
        "tokens_per_pass": round(sum(len(t) - 1 for t in tokens) / passes, 4),
        "nodes_per_pass": round(metrics["vllm:eagle3_nodes_verified"] / passes, 2),
        "preemptions": metrics.get("vllm:num_preemptions", 0),
        "prefix_hits": metrics.get("vllm:prefix_cache_hits", 0),
        "leaked_blocks": out["blocks"][0] - out["blocks"][1],
    }


def _embedded(target: Path, drafter: Path, prompts: Sequence[Sequence[int]], lengths: Sequence[int], nodes: int) -> Any:
    """The same trees on the embedded engine; as there, a prompt's own first token is not counted."""
    engine = EmbeddedEngine.load(target, drafter)
    said: list[Generation] = []
    for prompt, length in zip(prompts, lengths, strict=True):
        said.append(engine.generate(prompt, DecodeOptions(length, "tree", nodes=nodes, eos_ids=())))
    passes = sum(g.steps for g in said)
    return {"verify_passes": passes, "tokens_per_pass": round(sum(len(g.token_ids) - 1 for g in said) / passes, 4)}


if __name__ == "__main__":
    raise SystemExit(main())
