"""The prefix cache under speculation: what vLLM finds again of shared prompts and earlier turns, with trees, its own chain
and plainly.

    python -m benchmarks.vllm_prefix --drafter checkpoints/smollm2-135m-instruct --out vllm-prefix.json

Questions about the same documents, each asked again with its answer and a question more. Plain decoding's answers are part of
the second turn's prompts, so that every side is asked the same, and blocks of text that was drafted are found again. fp32,
T = 0; Model Runner V2 goes through Triton's interpreter, so seconds compare within one runner alone. Some minutes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import write_json
from benchmarks.vllm_engine import Job, Round, run
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("docs/how-it-works.md", "docs/operations.md")
QUESTIONS = ("What is this text about?", "Who would read this?")
AGAIN = "Thank you. And in one sentence?"
BLOCK = 32  # the smallest that this machine's attention takes; a GPU's is 16
HITS, QUERIES = "vllm:prefix_cache_hits", "vllm:prefix_cache_queries"


class Side(NamedTuple):
    runner: int
    nodes: int = 0
    mode: str = "auto"


SIDES = {
    "plain, V1": Side(1),
    "vLLM's own chain of 3, V1": Side(1, 3, "vllm"),
    "our chain of 3, V1": Side(1, 3),
    "vLLM's own chain of 3, V2": Side(2, 3, "vllm"),
    "trees of 16, V2": Side(2, 16),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--document-tokens", type=int, default=200, help="of each document (default 200)")
    parser.add_argument("--max-tokens", type=int, default=34, help="of each answer (default 34)")
    parser.add_argument("--only", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = args.target or fetch_target()
    first = first_turns(target, args.document_tokens)
    asked = {"temperature": 0, "max_tokens": args.max_tokens, "ignore_eos": True}
    engine = {"enable_prefix_caching": True, "block_size": BLOCK, "max_num_seqs": 4, "max_num_batched_tokens": 256}
    answers = run(Job(target, [Round(first, asked)], runner=1, engine=engine))["rounds"][0]["tokens"]
    rounds = [Round(first, asked), Round(second_turns(target, first, answers), asked)]
    report: dict[str, Any] = {"requests": 2 * len(first), "block_size": BLOCK, "sides": {}}
    expected: list[list[int]] = []
    for name in args.only:
        side = SIDES[name]
        said = run(
            Job(target, rounds, args.drafter, side.nodes, side.runner, engine, settings={"EAGLE3_MODE": side.mode})
        )
        tokens = [answer for part in said["rounds"] for answer in part["tokens"]]
        expected = expected or tokens
        report["sides"][name] = {
            **figures(said),
            "differing": sum(a != b for a, b in zip(tokens, expected, strict=True)),
        }
        print(name, report["sides"][name], flush=True)
        write_json(args.out, report)
    return 0 if not any(side["differing"] for side in report["sides"].values()) else 1


def first_turns(target: Path, document_tokens: int) -> list[list[int]]:
    """Every question about every document."""
    tokenizer = load_tokenizer(target)
    texts = [
        tokenizer.decode(tokenizer((ROOT / name).read_text())["input_ids"][:document_tokens]) for name in DOCUMENTS
    ]
    return [chat_ids(tokenizer, f"{text}\n\n{question}") for text in texts for question in QUESTIONS]


def second_turns(target: Path, first: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same conversations with their answers and one question more."""
    again: list[int] = load_tokenizer(target)(
        f"<|im_end|>\n<|im_start|>user\n{AGAIN}<|im_end|>\n<|im_start|>assistant\n"
    )["input_ids"]
    return [[*prompt, *answer, *again] for prompt, answer in zip(first, answers, strict=True)]


def figures(said: dict[str, Any]) -> dict[str, Any]:
    """Tokens found in the cache and looked for, tokens a pass, tokens and prompts' tokens a second."""
    metrics, tokens = said["metrics"], sum(len(one) for part in said["rounds"] for one in part["tokens"])
    seconds = sum(part["seconds"] for part in said["rounds"])
    drafts = metrics.get("vllm:spec_decode_num_drafts", 0)
    accepted = metrics.get("vllm:spec_decode_num_accepted_tokens", 0)
    return {
        "hits": metrics[HITS],
        "queries": metrics[QUERIES],
        "recomputed": metrics[QUERIES] - metrics[HITS],
        "hit_rate": round(metrics[HITS] / metrics[QUERIES], 4),
        "tokens_a_pass": round(1 + accepted / drafts, 3) if drafts else 1.0,
        "steps": sum(part["steps"] for part in said["rounds"]),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 2),
    }


if __name__ == "__main__":
    raise SystemExit(main())
