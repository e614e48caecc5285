"""Speed by batch size on the embedded engine: plain, chains, trees and auto, interleaved in one run.

    python -m benchmarks.embedded_sweep --drafter checkpoints/smollm2-135m-instruct --prompts EVAL \\
        --out benchmarks/results/embedded-sweep.json

Every request is decoded to the same length (end tokens are passed over), so that the batch stays full; only decoding is
timed, from the moment when all prompts are in. The ratio is to plain decoding of the same round; the median of the
rounds is reported with their spread. All tokens are held against plain decoding's (fp32). What auto has learned stays
with the engine from round to round, as in a server. The same command goes on where it was stopped, one with other
--settings adds them; plain is measured again beside them. A plot stands beside OUT.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common import add_pair, write_json
from benchmarks.redraw.by_load import embedded_png
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.engine.profile import costs_for
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.files import write_whole
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target

SETTINGS = ("plain", "chain-3", "chain-5", "tree-16", "tree-60", "auto", "auto-lookup")


def options_of(name: str, tokens: int) -> DecodeOptions:
    """`plain`, `chain-K`, `tree-NODES[-lookup]` or `auto[-lookup]`."""
    mode, *rest = name.split("-")
    lookup = rest[-1:] == ["lookup"]
    if mode == "chain":
        return DecodeOptions(tokens, "chain", k=int(rest[0]), eos_ids=())
    if mode == "tree":
        nodes = int(rest[0])
        return DecodeOptions(tokens, "tree", nodes=nodes, depth=min(8, nodes), top_k=10, eos_ids=(), lookup=lookup)
    if mode == "auto":
        return DecodeOptions(tokens, "auto", nodes=60, depth=8, top_k=10, eos_ids=(), lookup=lookup)
    return DecodeOptions(tokens, "plain", eos_ids=())


def decode(engine: EmbeddedEngine, prompts: list[list[int]], options: DecodeOptions) -> dict[str, Any]:
    """Decoding seconds and tokens, the prefill's own left out."""
    tokens: list[list[int]] = [[] for _ in prompts]
    begun = end = 0.0
    passes = nodes = 0
    for place, step in engine.serve(prompts, options, len(prompts)):
        if not tokens[place]:
            begun = step.seconds  # the last prompt's comes last
        else:
            passes += 1
            nodes += step.nodes
        tokens[place].extend(step.token_ids)
        end = step.seconds
    decoded = sum(len(said) - 1 for said in tokens)
    return {
        "tokens_per_second": decoded / (end - begun),
        "accepted_length": decoded / passes,
        "nodes_per_pass": nodes / passes,
        "tokens": tokens,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--settings", type=lambda text: text.split(","), default=list(SETTINGS))
    parser.add_argument("--tokens", type=int, default=48, help="tokens a request (default 48)")
    parser.add_argument("--least", type=int, default=8, help="requests a round at small batches (default 8)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--out", type=Path, required=True, help="JSON of all rows; FILE.png beside it")
    args = parser.parse_args(arguments)
    directory = args.target or fetch_target()
    engine = EmbeddedEngine.load(directory, args.drafter)
    engine.costs = costs_for(engine, directory, max(args.batches))
    tokenizer = load_tokenizer(directory)
    families = list(by_family(read_prompts(args.prompts)).values())
    mixed = [family[n] for n in range(max(map(len, families))) for family in families if n < len(family)]
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    done = {(row["batch"], row["setting"]) for row in rows}
    bar = tqdm(total=len(args.batches) * len(args.settings) * args.repeats, unit="run")
    for batch in args.batches:
        if all((batch, name) in done for name in args.settings if name != "plain"):
            bar.update(len(args.settings) * args.repeats)
            continue
        count = max(batch, args.least)
        prompts = [chat_ids(tokenizer, p.turns[0]) for p in mixed[: count - count % batch]]
        pieces = [prompts[at : at + batch] for at in range(0, len(prompts), batch)]
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in args.settings}
        wanted: list[list[int]] = []
        for turn in range(args.repeats):
            ordered = args.settings[turn % len(args.settings) :] + args.settings[: turn % len(args.settings)]
            totals: dict[str, list[dict[str, Any]]] = {name: [] for name in ordered}
            for piece in pieces:  # every setting on the same prompts, one after the other
                for name in ordered:
                    totals[name].append(decode(engine, piece, options_of(name, args.tokens)))
            for name in ordered:
                parts = totals[name]
                said = [tokens for part in parts for tokens in part.pop("tokens")]
                wanted = wanted or said
                seconds = sum(1 / part["tokens_per_second"] for part in parts)
                seen[name].append(
                    {
                        "tokens_per_second": len(parts) / seconds,
                        "accepted_length": len(parts) / sum(1 / part["accepted_length"] for part in parts),
                        "nodes_per_pass": statistics.mean(part["nodes_per_pass"] for part in parts),
                        "identical": said == wanted,
                    }
                )
                bar.update()
                bar.set_postfix_str(f"batch {batch} {name}")
        plain = [one["tokens_per_second"] for one in seen["plain"]]
        rows = [row for row in rows if row["batch"] != batch or row["setting"] not in seen]
        for name, runs in seen.items():
            ratios = [one["tokens_per_second"] / base for one, base in zip(runs, plain, strict=True)]
            rows.append(
                {
                    "batch": batch,
                    "setting": name,
                    "repeats": args.repeats,
                    "ratio": statistics.median(ratios),
                    "ratio_range": [min(ratios), max(ratios)],
                    "tokens_per_second": statistics.median(one["tokens_per_second"] for one in runs),
                    "accepted_length": statistics.mean(one["accepted_length"] for one in runs),
                    "nodes_per_pass": statistics.mean(one["nodes_per_pass"] for one in runs),
                    "identical": all(one["identical"] for one in runs),
                }
            )
            print(
                f"batch {batch:2d} {name:8s} {rows[-1]['ratio']:.2f}x {rows[-1]['ratio_range']} "
                f"accepted {rows[-1]['accepted_length']:.2f} identical {rows[-1]['identical']}",
                flush=True,
            )
        about = {"tokens": args.tokens, "threads": torch.get_num_threads(), "dtype": "fp32"}
        write_json(args.out, {"about": about, "rows": rows})
        write_whole(args.out.with_suffix(".png"), embedded_png(rows))
    bar.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
