"""vLLM with trees under 500 mixed requests, and its law of sampling against plain vLLM's.

    python -m benchmarks.vllm_soak --drafter checkpoints/smollm2-135m-instruct --out soak.json

First short requests of every kind, every seventh aborted: vLLM's own count of free KV blocks must come back to where it
began, with no error in the log. Then many draws at temperature 1 after a few prompts. Runner V2 draws by noise that hangs
on seed and position alone: with trees each request must say what it says without. Runner V1 draws by other noise: first
and second tokens are compared by a chi-square test of two samples. V2 runs through Triton's interpreter; some minutes.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write_json
from benchmarks.vllm_engine import Job, Round, run
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target

TEXTS = ("Name a colour.", "Tell me a story.", "Write a line of Python.")
SMALL_TREES = {"EAGLE3_TREE_TOP_K": "3", "EAGLE3_TREE_DEPTH": "3"}
MARKS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0, "logprobs": 1},
    {"temperature": 0, "repetition_penalty": 1.2},
    {"temperature": 0, "min_tokens": 2},
    {"temperature": 0, "structured_outputs": {"regex": "[a-z ]+"}},
    {"temperature": 0, "logit_bias": {"253": 2.0}},
)


def soak(target: Path, drafter: Path, requests: int) -> dict[str, Any]:
    chance = random.Random(0)
    prompts = [[chance.randrange(1000, 40000) for _ in range(chance.randrange(3, 12))] for _ in range(requests)]
    params = [{**chance.choice(MARKS), "max_tokens": chance.randrange(2, 6)} for _ in prompts]
    # about when each runs: some are aborted waiting, some in flight, some have just ended
    abort = {place: place // 6 + chance.randrange(1, 4) for place in range(0, requests, 7)}
    engine = {"max_num_seqs": 16, "max_model_len": 128, "max_num_batched_tokens": 256, "block_size": 32}
    begun = time.perf_counter()
    out = run(Job(target, [Round(prompts, params, abort)], drafter, 4, engine=engine, settings=SMALL_TREES))
    finished = [tokens for tokens in out["rounds"][0]["tokens"] if tokens is not None]
    fallbacks = {k.split("reason=")[1].split("}")[0]: v for k, v in out["metrics"].items() if "eagle3_fallbacks" in k}
    return {
        "requests": requests,
        "finished": len(finished),
        "free_blocks": out["blocks"],
        "errors_in_log": sum("ERROR" in line or "Traceback" in line for line in out["log"].splitlines()),
        "preemptions": out["metrics"].get("vllm:num_preemptions", 0),
        "fallbacks": fallbacks,
        "accepted_length": round(out["metrics"]["vllm:eagle3_accepted_length"], 3),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def law(target: Path, drafter: Path, draws: int) -> dict[str, Any]:
    """Whether first and second tokens of trees and of plain decoding come from one law, and whether they are the same
    tokens where both draw with the same noise."""
    tokenizer = load_tokenizer(target)
    engine = {"max_num_seqs": 64, "max_model_len": 128, "max_num_batched_tokens": 2048, "block_size": 32}
    engine["enable_prefix_caching"] = True  # the same prompt over and over
    params = {"temperature": 1.0, "max_tokens": 2, "ignore_eos": True}
    rounds = [Round([chat_ids(tokenizer, text)] * draws, params) for text in TEXTS]
    trees = run(Job(target, rounds, drafter, 3, engine=engine, settings=SMALL_TREES))
    same_noise = run(Job(target, rounds, engine=engine))
    other_noise = run(Job(target, rounds, runner=1, engine=engine))
    tests = []
    for text, one, other in zip(TEXTS, other_noise["rounds"], trees["rounds"], strict=True):
        for place in range(2):
            sides = [[tokens[place] for tokens in side["tokens"]] for side in (one, other)]
            p_value = round(two_samples(*sides), 4)
            tests.append({"prompt": text, "token": place + 1, "p_value": p_value, **often(*sides)})
    # the least of several p-values is small by chance: Bonferroni's correction
    least = min(1.0, len(tests) * min(test["p_value"] for test in tests))
    pairs = zip(trees["rounds"], same_noise["rounds"], strict=True)
    return {
        "draws": draws * len(TEXTS),
        "accepted": trees["metrics"]["vllm:eagle3_tokens_accepted"],
        "equal_with_the_same_noise": sum(
            a == b for one, other in pairs for a, b in zip(one["tokens"], other["tokens"], strict=True)
        ),
        "least_p_value_corrected": round(least, 4),
        "tests": tests,
    }


def often(plain: Sequence[int], trees: Sequence[int], most: int = 8) -> dict[str, Any]:
    """How often each side drew the tokens most drawn: token id to [plain, trees]."""
    counts = Counter(plain), Counter(trees)
    kept = (counts[0] + counts[1]).most_common(most)
    return {"counts": {str(token): [side[token] for side in counts] for token, _ in kept}}


def two_samples(one: Sequence[int], other: Sequence[int], least: int = 10) -> float:
    """The p-value of Pearson's chi-square test that both come from one law; tokens rarer than `least` are one class."""
    both, first = Counter(one) + Counter(other), Counter(one)
    classes = [(first[token], count) for token, count in both.items() if count >= least]
    rare = [(first[token], count) for token, count in both.items() if count < least]
    if rare:
        classes.append((sum(a for a, _ in rare), sum(n for _, n in rare)))
    share = len(one) / (len(one) + len(other))
    statistic = sum((a - n * share) ** 2 / (n * share * (1 - share)) for a, n in classes)
    freedom = torch.tensor((len(classes) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--draws", type=int, default=1000, help="of each prompt, 0 for none (default 1000)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = args.target or fetch_target()
    report: dict[str, Any] = {}
    if args.requests:
        report["soak"] = soak(target, args.drafter, args.requests)
        print(report["soak"], flush=True)
        write_json(args.out, report)
    if args.draws:
        report["law"] = law(target, args.drafter, args.draws)
        print(report["law"], flush=True)
        write_json(args.out, report)
    soaked = report.get("soak")
    whole = soaked is None or (soaked["free_blocks"][0] == soaked["free_blocks"][1] and not soaked["errors_in_log"])
    one_law = report.get("law", {}).get("least_p_value_corrected", 1.0) > 0.01
    return 0 if whole and one_law else 1


if __name__ == "__main__":
    raise SystemExit(main())
