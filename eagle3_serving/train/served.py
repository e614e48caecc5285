"""What a drafter in training would gain if it were served now: calibrated, chain and tree, on recorded answers.

The target's greedy answers to held-out prompts are recorded once; at temperature 0 what is drafted changes no token, so
that each measurement costs drafting alone.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Target
from eagle3_serving.eval.replay import RecordedTarget
from eagle3_serving.files import write_whole
from eagle3_serving.train.calibration import calibrate
from eagle3_serving.train.data import Answer
from eagle3_serving.train.features import Extract, FeatureBatch
from eagle3_serving.train.mixture import Families
from eagle3_serving.train.replies import greedy_answers
from eagle3_serving.tree.calibrate import Calibration

Lengths = dict[str, dict[str, float]]
CHAIN_K = 5
BATCH = 8
# a measurement replays at most one token for so many trained on: on CPU cores a replayed one was seen to cost as much as nine
PART = 100


@dataclass(frozen=True)
class Served:
    """`accepted_length` by mode and family: tokens a target pass, bonus included; plain decoding has 1. `own`: the families
    that the run is for, where others are mixed in that nothing be forgotten."""

    accepted_length: Lengths
    calibration: Calibration
    own: tuple[str, ...] = ()

    def mean(self, mode: str) -> float:
        """Over the families, each counted alike; those that the run is for count for a half, the others for the other half."""
        families = self.accepted_length[mode]
        parts = [[v for name, v in families.items() if (name in self.own) == mine] for mine in (True, False)]
        means = [statistics.fmean(part) for part in parts if part]
        return statistics.fmean(means)

    @property
    def score(self) -> float:
        """What the best is chosen by: the geometric mean of chain and tree, so that each counts by its relative gain."""
        return math.sqrt(self.mean("chain") * self.mean("tree"))

    def state(self) -> dict[str, Any]:
        """Plain values, for a run's state."""
        return {"accepted_length": self.accepted_length, "calibration": asdict(self.calibration), "own": list(self.own)}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Served":
        own = tuple(state.get("own", ()))
        return cls(state["accepted_length"], Calibration(**state["calibration"]), own)


@dataclass(frozen=True)
class Recording:
    """Greedy answers: `measured` by family, and others that the calibration is fitted on."""

    measured: Families
    calibrated: list[Answer]

    @property
    def tokens(self) -> int:
        return sum(len(a.response_ids) for family in self.measured.values() for a in family)

    def save(self, path: Path) -> None:
        measured = {name: [asdict(answer) for answer in family] for name, family in self.measured.items()}
        write_whole(path, json.dumps({"measured": measured, "calibrated": [asdict(a) for a in self.calibrated]}))

    @classmethod
    def read(cls, path: Path) -> "Recording | None":
        """None where it is not there, or damaged: it is made anew then."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            measured = {name: [_answer(row) for row in family] for name, family in raw["measured"].items()}
            return cls(measured, [_answer(row) for row in raw["calibrated"]])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def record(target: Target, held_out: Families, budget: int, max_tokens: int) -> Recording:
    """Half of each family's prompts are measured, as far as `budget` tokens go, and as many others calibrated on; a family of
    one prompt, or no others at all, serves for both."""
    each = max(1, budget // (max_tokens * max(1, len(held_out))))
    engine = EmbeddedEngine(target)
    measured, calibrated = Families(), list[Answer]()
    for name, family in held_out.items():
        count = min(each, max(1, len(family) // 2))
        prompts = [answer.prompt_ids for answer in family[: 2 * count]]
        said = greedy_answers(engine, prompts, max_tokens, BATCH)
        if said:
            # by id, which is the place: answers of hardly a token are left out
            measured[name] = [a for a in said if int(a.id) < count] or said
            calibrated += [a for a in said if int(a.id) >= count]
    return Recording(measured, calibrated or [a for family in measured.values() for a in family])


def accepted_lengths(engine: EmbeddedEngine, families: Families, settings: dict[str, DecodeOptions]) -> Lengths:
    """Tokens a target pass of recorded answers, by setting and family; the prefill's own token is not counted."""
    prompts = [answer.prompt_ids for family in families.values() for answer in family]
    lengths: Lengths = {}
    for mode, options in settings.items():
        said = iter(engine.generate_many(prompts, options, BATCH))
        lengths[mode] = {}
        for name, family in families.items():
            part = [next(said) for _ in family]
            passes = sum(one.passes - 1 for one in part)
            lengths[mode][name] = round(sum(len(one.token_ids) - 1 for one in part) / max(1, passes), 4)
    return lengths


class ServedMeasure:
    """Measures one drafter after the other on one recording, with the chain and the tree (depth, top-k, nodes) that are
    served."""

    def __init__(
        self,
        target: Target,
        aux_layers: Sequence[int],
        recording: Recording,
        tree: tuple[int, int, int],
        extract: Extract,
        own: Sequence[str] = (),
    ) -> None:
        """`extract`: where the target's features come from. `own`: see `Served`."""
        self.target, self.recording, self.own = target, recording, tuple(own)
        # asked for again at every measurement, and a cache on disk may be off
        kept = cache(lambda answers: extract(answers).to(target.device))
        self.extract: Extract = lambda answers: _copied(kept(tuple(answers)))
        everything = [answer for family in recording.measured.values() for answer in family]
        self.recorded = RecordedTarget(target, aux_layers, everything, self.extract)
        longest = max(len(answer.response_ids) for answer in everything)
        self.settings = settings(longest, tree)

    def __call__(self, drafter: Drafter) -> Served:
        fitted = calibrate(drafter, self.target, self.recording.calibrated, progress=False, extract=self.extract)
        engine = EmbeddedEngine(self.recorded, drafter, fitted.calibration)
        return Served(accepted_lengths(engine, self.recording.measured, self.settings), fitted.calibration, self.own)


def settings(max_tokens: int, tree: tuple[int, int, int]) -> dict[str, DecodeOptions]:
    """The chain of 5 and a tree of so many depths, children and nodes."""
    depth, top_k, nodes = tree
    return {
        "chain": DecodeOptions(max_tokens, "chain", k=CHAIN_K),
        "tree": DecodeOptions(max_tokens, "tree", nodes=nodes, depth=depth, top_k=top_k),
    }


def _answer(row: dict[str, Any]) -> Answer:
    return Answer(str(row["id"]), tuple(row["prompt_ids"]), tuple(row["response_ids"]))


def _copied(batch: FeatureBatch) -> FeatureBatch:
    """Another record of the same tensors: who scales its features replaces them in the record."""
    return FeatureBatch(batch.tokens_BL, batch.aux_BLF, batch.final_BRH, batch.start_B, batch.rows_B)
