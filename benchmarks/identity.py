"""Every mode at every batch size against plain decoding one request at a time: the same tokens, on all prompts, fp32.

    python -m benchmarks.identity --drafter checkpoints/smollm2-135m-instruct --prompts EVAL --tokens 16 \\
        --out benchmarks/results/identity.json
    python -m benchmarks.identity ... --temperature 1 --limit 10 --out benchmarks/results/identity-T1.json

At a temperature plain decoding draws by noise that is a request's own, and so must every mode, whatever is drafted beside it.
The same command goes on where it was stopped. Exit code 1 where any token differs.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import accepted_length, add_pair, write_json
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Sampling
from eagle3_serving.engine.profile import costs_for
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target

BATCHES = (16, 4, 1)


def modes(tokens: int, sampling: Sampling) -> dict[str, DecodeOptions]:
    made = {
        "plain": DecodeOptions(tokens, "plain"),
        "chain-5": DecodeOptions(tokens, "chain", k=5),
        "tree-60": DecodeOptions(tokens, "tree", nodes=60, depth=8, top_k=10),
        "tree-16-lookup": DecodeOptions(tokens, "tree", nodes=16, depth=6, top_k=10, lookup=True),
        "auto-lookup": DecodeOptions(tokens, "auto", nodes=60, depth=8, top_k=10, lookup=True),
    }
    if sampling.temperature > 0:
        made["tree-60-top"] = DecodeOptions(tokens, "tree", nodes=60, depth=8, top_k=10, proposals="top")
    return {name: replace(options, sampling=sampling) for name, options in made.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--tokens", type=int, default=16, help="tokens a request, end tokens obeyed (default 16)")
    parser.add_argument("--limit", type=int, help="only the first N prompts of each family")
    parser.add_argument("--temperature", type=float, default=0.0, help="of every mode (default 0)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    directory = args.target or fetch_target()
    engine = EmbeddedEngine.load(directory, args.drafter)
    engine.costs = costs_for(engine, directory, max(BATCHES))
    tokenizer = load_tokenizer(directory)
    families = by_family(read_prompts(args.prompts, args.limit)).values()
    # of like length together: a short prompt does not wait for a long one
    ids = sorted((chat_ids(tokenizer, p.turns[0]) for family in families for p in family), key=len)
    about = {"tokens": args.tokens, "prompts": len(ids), "dtype": "fp32", "temperature": args.temperature}
    tested = modes(args.tokens, Sampling(args.temperature))
    kept: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"about": about, "rows": []}
    rows = kept["rows"]
    done = {(row["batch"], row["mode"]) for row in rows}
    wanted = engine.generate_many(ids, tested["plain"])
    with tqdm(total=len(BATCHES) * len(tested), unit="setting") as bar:
        for batch in BATCHES:
            for name, options in tested.items():
                if (batch, name) not in done and (batch, name) != (1, "plain"):
                    said = engine.generate_many(ids, options, batch)
                    same = sum(a.token_ids == b.token_ids for a, b in zip(said, wanted, strict=True))
                    row = {"batch": batch, "mode": name, "identical": same, "of": len(ids)}
                    rows.append(
                        {**row, "accepted_length": accepted_length(said), "tokens": sum(len(g.token_ids) for g in said)}
                    )
                    write_json(args.out, {"about": about, "rows": rows})
                    tqdm.write(f"batch {batch:2d} {name:15s} identical {same} of {len(ids)}")
                bar.update()
    return int(any(row["identical"] != row["of"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
