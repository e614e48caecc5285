"""Every tree, and changing trees, on real SGLang against plain SGLang: every token, and tokens a pass beside the embedded engine.

    python -m benchmarks.sglang_identity --drafter checkpoints/smollm2-135m-instruct --prompts prompts.jsonl \\
        --out benchmarks/results/sglang-identity.json
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import accepted_length, add_pair, write_json
from benchmarks.sglang_cases import FEATURES, PENALTIES, Body, ask_all, ask_and_hang_up, body
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.serve.client import Answer
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.sglang import SglangOptions, sglang_command
from eagle3_serving.serve.sglang_client import SglangClient
from eagle3_serving.serve.shape import Shape
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target

TREES = (Shape(1, 4, 3), Shape(3, 4, 6), Shape(5, 4, 12))
CHOICE = "0;" + ";".join(map(str, TREES))


def cases(prompt_ids: Sequence[Sequence[int]], few: int, max_tokens: int) -> dict[str, tuple[list[Body], int]]:
    """Name -> requests and how many are in flight. Lengths differ, so that requests leave at different steps."""
    lengths = [max_tokens - index % 9 for index in range(len(prompt_ids))]
    made = {
        "batches of 8": ([body(ids, n) for ids, n in zip(prompt_ids, lengths, strict=True)], 8),
        "single": ([body(ids, max_tokens) for ids in prompt_ids[:few]], 1),
        "prefix cache hits": ([body([*prompt_ids[0], *ids[1:]], max_tokens) for ids in prompt_ids[:few]], 8),
    }
    features = {name: make for name, make in FEATURES.items() if name != "plain text"}
    return made | {name: ([make(ids, max_tokens) for ids in prompt_ids[:few]], 8) for name, make in features.items()}


def run(options: SglangOptions, work: dict[str, tuple[list[Body], int]], port: int, abort: bool) -> dict[str, Any]:
    """Answers of every case; tokens a pass over the batches of 8."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with (
            Server(sglang_command(options), log, port=port) as server,
            SglangClient(server.url, options.target) as client,
        ):
            said: dict[str, list[Answer]] = {}
            passes: dict[str, int] = {}
            for name, (bodies, concurrency) in work.items():
                if abort:  # strangers that leave in the middle of it
                    ask_and_hang_up(server.url, [body(b["input_ids"], 64) for b in bodies[:2]], after=2)
                before = client.counters()
                said[name] = ask_all(client, bodies, concurrency)
                passes[name] = (client.counters() - before).drafts
        text = log.read_text()
    errors = [line for line in text.splitlines() if "Traceback" in line or "memory leak" in line]
    return {"said": said, "passes": passes, "errors": errors}


def compare(plain: dict[str, list[Answer]], said: dict[str, list[Answer]]) -> dict[str, dict[str, int]]:
    return {
        name: {
            "requests": len(answers),
            "tokens": sum(len(a.token_ids) for a in answers),
            "identical": sum(
                (a.token_ids, a.text) == (b.token_ids, b.text) for a, b in zip(answers, plain[name], strict=True)
            ),
        }
        for name, answers in said.items()
    }


def embedded_lengths(target: Path, drafter: Path, bodies: Sequence[Body], trees: Sequence[Shape]) -> dict[Shape, float]:
    """Tokens a pass of the embedded engine, batches of 8, the same trees and prompts."""
    engine = EmbeddedEngine.load(target, drafter)
    by_length: dict[int, list[list[int]]] = {}
    for request in bodies:
        by_length.setdefault(request["sampling_params"]["max_new_tokens"], []).append(request["input_ids"])
    lengths = {}
    for shape in trees:
        tree = DecodeOptions(mode="tree", nodes=shape.tokens - 1, depth=shape.steps, top_k=shape.top_k)
        groups = [
            engine.generate_many(prompts, replace(tree, max_new_tokens=n), batch=8) for n, prompts in by_length.items()
        ]
        lengths[shape] = accepted_length([answer for group in groups for answer in group])
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--limit", type=int, default=12, help="prompts of each family (default 12)")
    parser.add_argument("--few", type=int, default=8, help="prompts of each feature but the first (default 8)")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--port", type=int, help="the servers' port (default: a free one)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = args.target or fetch_target()
    tokenizer = load_tokenizer(target)
    asked = [chat_ids(tokenizer, prompt.turns[0])[:400] for prompt in read_prompts(args.prompts, args.limit)]
    work = cases(asked, args.few, args.max_tokens)
    plainly = SglangOptions(target, radix_cache=True, max_requests=8)
    common = replace(plainly, drafter=args.drafter)
    begun = time.monotonic()
    plain = run(plainly, work, args.port, abort=False)["said"]
    serially = replace(plainly, extra=("--disable-overlap-schedule",))
    serial = run(serially, work, args.port, abort=False)["said"]
    # SGLang's penalties hang on whether its steps overlap, which those of speculation do not on a CPU
    reference = plain | {name: said for name, said in serial.items() if name in PENALTIES}
    servers = {
        **{str(shape): replace(common, shape=shape) for shape in TREES},
        "another tree every step, none among them": replace(common, trees=CHOICE, choice="cycle"),
        "the batch chooses": replace(common, trees=CHOICE),
    }
    rows: dict[str, Any] = {"plain, steps one after another": {"cases": compare(plain, serial)}}
    for name, options in servers.items():
        done = run(options, work, args.port, abort=True)
        answers = done["said"]["batches of 8"]
        tokens = sum(len(a.token_ids) - 1 for a in answers)
        rows[name] = {"cases": compare(reference, done["said"]), "errors": done["errors"]}
        rows[name]["tokens_a_pass"] = tokens / done["passes"]["batches of 8"]
        same = all(row["identical"] == row["requests"] for row in rows[name]["cases"].values())
        print(
            f"{name}: {'identical' if same else 'NOT identical'}, {rows[name]['tokens_a_pass']:.3f} tokens a pass",
            flush=True,
        )
        write_json(args.out, {"prompts": len(asked), "servers": rows, "seconds": time.monotonic() - begun})
    for shape, length in embedded_lengths(target, args.drafter, work["batches of 8"][0], TREES).items():
        rows[str(shape)]["embedded_tokens_a_pass"] = length
        print(f"{shape}: {length:.3f} tokens a pass on the embedded engine", flush=True)
    write_json(args.out, {"prompts": len(asked), "servers": rows, "seconds": time.monotonic() - begun})


if __name__ == "__main__":
    main()
