"""What the trainings that are held against each other share: answers, features, held-out answers, and the measure."""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.common import by_family_accepted
from eagle3_serving.checkpoint.aux_layers import default_aux_layers
from eagle3_serving.drafter import Drafter
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Target
from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.eval.replay import RecordedTarget
from eagle3_serving.files import write_whole
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.train.data import Answer, make_batches, read_answers
from eagle3_serving.train.features import FeatureSource
from eagle3_serving.train.replies import greedy_answers
from eagle3_serving.tree.calibrate import Calibration

CHAIN_K, NODES, SMALL_NODES, DEPTH, TOP_K = 5, 60, 8, 8, 10
MAX_LENGTH, MAX_PROMPT = 640, 400
EVAL_BATCH = 16
SPARE = 1.2  # answers a token that counts: those outside the draft vocabulary, and each answer's last, do not
CALIBRATION_ANSWERS = 80


class Place(NamedTuple):
    """The files of `--work`."""

    root: Path

    @property
    def answers(self) -> Path:
        return self.root / "answers.jsonl"

    @property
    def calibration(self) -> Path:
        return self.root / "calibration.jsonl"

    @property
    def held_out(self) -> Path:
        return self.root / "held-out.json"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def public(self) -> Path:
        """Answers and features as a public trainer reads them."""
        return self.root / "public"

    def public_run(self, name: str, seed: int) -> Path:
        return self.root / "public-runs" / f"{name}-{seed}"

    def run(self, name: str, seed: int) -> Path:
        return self.root / "runs" / f"{name.replace('/', '-of-')}-{seed}"


def boundaries(target: Target) -> tuple[int, ...]:
    """Low, middle, high and the top feature: what any variant reads."""
    return (*default_aux_layers(target.num_layers), target.num_layers)


def prepare(args: argparse.Namespace, directory: Path, place: Place, device: str = "cpu") -> None:
    """What all runs share: the answers in one order, held-out greedy answers, features. Skipped where it is there."""
    if not place.answers.exists():
        answers = read_answers(args.answers, MAX_LENGTH, MAX_PROMPT)
        random.Random(0).shuffle(answers)
        used = first_tokens(answers, round(args.tokens * SPARE))
        write_whole(place.calibration, "".join(map(answer_line, answers[len(used) : len(used) + CALIBRATION_ANSWERS])))
        write_whole(place.answers, "".join(map(answer_line, used)))
    target = Target.load(directory, device=device)
    if not place.held_out.exists():
        tokenizer = load_tokenizer(directory)
        families = by_family(read_prompts(args.prompts, args.limit))
        engine = EmbeddedEngine(target)
        held = {
            name: [
                json.loads(answer_line(a))
                for a in greedy_answers(
                    engine, [chat_ids(tokenizer, p.turns[0]) for p in prompts], args.max_tokens, EVAL_BATCH
                )
            ]
            for name, prompts in families.items()
        }
        write_whole(place.held_out, json.dumps(held))
    if not keeps_features(device):
        return
    source = FeatureSource(target, boundaries(target), place.features)
    batches = make_batches(read_answers([place.answers], MAX_LENGTH), 2048, 0)
    batches += [[answer] for family in held_out(place).values() for answer in family]
    with tqdm(
        total=sum(a.length for batch in batches for a in batch), desc="features", unit="tok", unit_scale=True
    ) as bar:
        for tokens in source.fill(batches):
            bar.update(tokens)


def keeps_features(device: str) -> bool:
    """On a GPU the target is faster than the disk."""
    return torch.device(device).type == "cpu"


def first_tokens(answers: Sequence[Answer], tokens: int) -> list[Answer]:
    """As many of the first answers as hold `tokens` answer tokens. Raises InputError where there are not so many."""
    kept, count = list[Answer](), 0
    for answer in answers:
        if count >= tokens:
            return kept
        kept.append(answer)
        count += len(answer.response_ids)
    if count < tokens:
        raise InputError(f"the answers hold {count} usable tokens, --tokens asks for {tokens}")
    return kept


def answer_line(answer: Answer) -> str:
    return json.dumps({"id": answer.id, "prompt_ids": answer.prompt_ids, "response_ids": answer.response_ids}) + "\n"


def held_out(place: Place) -> dict[str, list[Answer]]:
    families = json.loads(place.held_out.read_text(encoding="utf-8"))
    return {
        name: [Answer(a["id"], tuple(a["prompt_ids"]), tuple(a["response_ids"])) for a in family]
        for name, family in families.items()
    }


def settings(max_tokens: int) -> dict[str, DecodeOptions]:
    """What every drafter is measured with; the names are figures of the record."""
    return {
        "chain": DecodeOptions(max_tokens, "chain", k=CHAIN_K),
        "tree": DecodeOptions(max_tokens, "tree", nodes=NODES, depth=DEPTH, top_k=TOP_K),
        "small_tree": DecodeOptions(max_tokens, "tree", nodes=SMALL_NODES, depth=CHAIN_K, top_k=TOP_K),
    }


def measure(
    place: Place,
    target: Target,
    source: FeatureSource,
    drafter: Drafter,
    max_tokens: int,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Tokens a target pass on the held-out answers, by setting and family. `source` gives what `drafter` reads."""
    families = held_out(place)
    everything = [a for family in families.values() for a in family]
    recorded = RecordedTarget(target, drafter.config.aux_layers, everything, source)
    engine = EmbeddedEngine(recorded, drafter, calibration)
    figures = {kind: by_family_accepted(engine, families, o, EVAL_BATCH) for kind, o in settings(max_tokens).items()}
    means = {kind: round(sum(families.values()) / len(families), 4) for kind, families in figures.items()}
    return {**means, "families": figures}


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Arguments of every script that trains and compares; the last four are the setting of a `--work`."""
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--answers", type=Path, nargs="+", default=[], help="answers of the target, trained on")
    parser.add_argument("--prompts", type=Path, nargs="+", default=[], help="held-out prompts, measured on")
    parser.add_argument("--work", type=Path, required=True, help="directory of runs and features; resumed where it is")
    parser.add_argument("--out", type=Path, help="the figures (JSON)")
    parser.add_argument("--tokens", type=int, default=100_000, help="answer tokens a run (default 100000)")
    parser.add_argument("--limit", type=int, default=5, help="held-out prompts of each family (default 5)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of a held-out answer (default 64)")
    parser.add_argument("--draft-vocab-size", type=int, default=2048, help="of every drafter (default 2048)")


def check_setting(args: argparse.Namespace, place: Place) -> None:
    """Raises InputError where `--work` holds runs of another setting."""
    kept, now = place.root / "setting.json", {name: getattr(args, name) for name in _SETTING}
    if kept.exists() and (before := json.loads(kept.read_text(encoding="utf-8"))) != now:
        changed = [f"{name} {before.get(name)}, not {now[name]}" for name in now if before.get(name) != now[name]]
        raise InputError(f"{place.root} holds runs with {'; '.join(changed)}: give another --work")
    write_whole(kept, json.dumps(now))


_SETTING = ("tokens", "limit", "max_tokens", "draft_vocab_size")
