"""Does acceptance fall with the length of the context? One question behind a little text, and behind much.

    python -m benchmarks.context_pairs --prompts EVAL... --filler gsm8k=MATH.jsonl humaneval=CODE.jsonl ... \\
        --drafter checkpoints/smollm2-135m-instruct --device cuda --work runs/pairs --out ...

Each prompt of `--prompts` is asked twice, behind `--short` and behind `--long` tokens of its family's filler, the text before
it the same as far as the short one goes. The target's greedy answers are made once (`--work`). A figure is tokens a target
pass of a chain of 5 begun at every place of an answer, the answer's own tokens fed: so both lengths are looked at in as many
places, and how sure the target is of itself (its mean top probability) stands beside.
"""

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.common import bootstrap, run_script, write_json
from eagle3_serving.drafter import Drafter
from eagle3_serving.engine import EmbeddedEngine, Target
from eagle3_serving.engine.pair import load_for
from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.files import write_whole
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.train.data import Answer
from eagle3_serving.train.features import FeatureBatch, extract_features
from eagle3_serving.train.replies import greedy_answers
from eagle3_serving.train.ttt import ttt_loss

CHAIN_K = 5
LENGTHS = ("short", "long")
ROOM = 40  # tokens that the chat template takes


class Asked(NamedTuple):
    """One answer of a pair."""

    family: str
    number: int
    length: str
    answer: Answer


def pairs(args: argparse.Namespace, directory: Path) -> list[tuple[str, int, str, list[int]]]:
    """(family, number, length, prompt), a family's questions in their order. Raises InputError where a filler is missing."""
    tokenizer, dice = load_tokenizer(directory), random.Random(7)
    texts: dict[str, list[str]] = {}
    for named in args.filler:
        family, _, file = named.partition("=")
        if not file:
            raise InputError(f"--filler {named!r}: it is written FAMILY=FILE")
        texts[family] = [prompt.turns[0] for prompt in read_prompts([Path(file)], family=family)]
    made = []
    for family, prompts in by_family(read_prompts(args.prompts, args.limit)).items():
        if family not in texts:
            raise InputError(f"--filler: no texts for the family {family}; give {family}=FILE")
        for number, prompt in enumerate(prompts):
            question = tokenizer(prompt.turns[0], add_special_tokens=False)["input_ids"]
            if len(question) + ROOM > args.short:
                continue
            before: list[int] = []
            while len(before) < args.long:
                before += tokenizer(dice.choice(texts[family]) + "\n\n", add_special_tokens=False)["input_ids"]
            for length in LENGTHS:
                room = getattr(args, length) - len(question) - ROOM
                text = tokenizer.decode(before[-room:]) if room > 0 else ""
                made.append((family, number, length, chat_ids(tokenizer, f"{text}\n\n{prompt.turns[0]}".strip())))
    return made


def answered(args: argparse.Namespace, directory: Path, target: Target) -> list[Asked]:
    """The greedy answers, in `--work`."""
    path = args.work / "pairs.jsonl"
    if not path.exists():
        asked = pairs(args, directory)
        said = greedy_answers(EmbeddedEngine(target), [ids for *_, ids in asked], args.max_tokens, args.batch)
        lines = []
        for answer in said:
            family, number, length, ids = asked[int(answer.id)]
            place = {"family": family, "number": number, "length": length}
            lines.append(json.dumps({**place, "prompt_ids": ids, "response_ids": list(answer.response_ids)}) + "\n")
        args.work.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(lines))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Asked(
            row["family"],
            row["number"],
            row["length"],
            Answer(str(n), tuple(row["prompt_ids"]), tuple(row["response_ids"])),
        )
        for n, row in enumerate(rows)
    ]


@torch.inference_mode()
def accepted(drafter: Drafter, batch: FeatureBatch, head_VH: torch.Tensor) -> tuple[float, int]:
    """Draft tokens that chains of 5 begun at every place of the answer have right, and how many began."""
    ids = drafter.vocabulary.target_ids
    found = ttt_loss(drafter, batch, head_VH[ids], drafter.vocabulary.to_draft(), CHAIN_K, 1.0)
    return float(found.accepted), found.chains


def measure(target: Target, drafters: Sequence[tuple[str, Drafter]], asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """A row an answer."""
    target.watch(drafters[0][1].config.aux_layers)
    head_VH = target.model.get_output_embeddings().weight.detach()
    rows = []
    for one in tqdm(asked, unit="answer", desc="teacher-forced"):
        batch = extract_features(target, [one.answer])
        with torch.inference_mode():
            sure = (batch.final_BRH[0].to(head_VH.dtype) @ head_VH.T).softmax(-1).max(-1).values.mean()
        row: dict[str, Any] = {"family": one.family, "number": one.number, "length": one.length}
        row |= {"prompt": len(one.answer.prompt_ids), "top": round(float(sure), 4), "accepted": {}}
        for name, drafter in drafters:
            row["accepted"][name], row["chains"] = accepted(drafter, batch, head_VH)
        rows.append(row)
    return rows


def _length(rows: Sequence[dict[str, Any]], name: str) -> float:
    hits: float = sum(row["accepted"][name] for row in rows)
    chains: int = sum(row["chains"] for row in rows)
    return 1 + hits / max(1, chains)


def _drawn_ratio(both: Sequence[dict[str, dict[str, Any]]], name: str, dice: random.Random) -> float:
    chosen = dice.choices(both, k=len(both))
    short, long = (_length([pair[length] for pair in chosen], name) for length in LENGTHS)
    return long / short


def summary(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """By drafter and family, and of all: tokens a pass at both lengths, their ratio with its error (bootstrap over
    questions), and the target's own certainty."""
    made = []
    for name in names:
        for family in [*dict.fromkeys(row["family"] for row in rows), "all"]:
            by_place: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
            for row in rows:
                if family in (row["family"], "all"):
                    by_place.setdefault((row["family"], row["number"]), {})[row["length"]] = row
            both = [pair for pair in by_place.values() if len(pair) == len(LENGTHS)]
            if not both:
                continue
            of = {length: [pair[length] for pair in both] for length in LENGTHS}
            figure = {length: round(_length(of[length], name), 4) for length in LENGTHS}
            made.append(
                {
                    "drafter": name,
                    "family": family,
                    "questions": len(both),
                    **figure,
                    "ratio": round(figure["long"] / figure["short"], 4),
                    "error": round(bootstrap(partial(_drawn_ratio, both, name)), 4) if len(both) > 1 else None,
                    **{f"top_{k}": round(statistics.mean(row["top"] for row in of[k]), 4) for k in LENGTHS},
                }
            )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--drafter", type=Path, nargs="+", required=True, help="one or more, of the same boundaries")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="questions, with families")
    parser.add_argument("--filler", nargs="+", default=[], metavar="FAMILY=FILE", help="texts to stand before them")
    parser.add_argument("--short", type=int, default=450, help="tokens of a short prompt (default 450)")
    parser.add_argument("--long", type=int, default=4096, help="tokens of a long one (default 4096)")
    parser.add_argument("--limit", type=int, default=40, help="questions of each family (default 40)")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of an answer (default 128)")
    parser.add_argument("--batch", type=int, default=8, help="prompts answered at once (default 8)")
    parser.add_argument("--device", default="cpu", help="of target and drafters (default cpu)")
    parser.add_argument("--work", type=Path, required=True, help="where the target's answers are kept")
    parser.add_argument("--out", type=Path, required=True, help="the figures (JSON)")
    args = parser.parse_args(arguments)
    directory = args.target or fetch_target()
    target = Target.load(directory, device=args.device)
    asked = answered(args, directory, target)
    drafters = [(path.name, load_for(target, path).eval()) for path in args.drafter]
    if len({name for name, _ in drafters}) < len(drafters):
        raise InputError("--drafter: two folders of one name; their figures bear the folders' names")
    rows = measure(target, drafters, asked)
    found = summary(rows, [name for name, _ in drafters])
    about = {"short": args.short, "long": args.long, "max_tokens": args.max_tokens, "chain": CHAIN_K}
    write_json(args.out, {"about": about, "summary": found, "rows": rows})
    table = Table(title="tokens a pass, chain of 5", title_justify="left")
    for heading in ("drafter", "family", "questions", "short", "long", "ratio", "±"):
        table.add_column(heading, justify="left" if heading in ("drafter", "family") else "right")
    for row in found:
        error = "" if row["error"] is None else f"{row['error']:.3f}"
        cells = (f"{row['short']:.3f}", f"{row['long']:.3f}", f"{row['ratio']:.3f}", error)
        table.add_row(row["drafter"], row["family"], str(row["questions"]), *cells)
    Console().print(table)
    return 0


if __name__ == "__main__":
    run_script(main)
