"""What it costs to draft with fp8 weights (`EAGLE3_DRAFTER_WEIGHTS=fp8` on vLLM): tokens a pass with and without.

    python -m benchmarks.fp8_drafter --drafter checkpoints/smollm2-135m-instruct --prompts EVAL --limit 6 \\
        --out benchmarks/results/fp8-drafter.json

The plugin's own rounding, applied to the embedded engine's drafter. Greedy answers are recorded once and drafted on as they
are and in fp8 (`eval/replay.py`); each must come out as it was recorded. Differences are taken prompt by prompt. What the
bytes saved are worth in time only a GPU can say.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from eagle3_vllm.fp8 import FP8, keep_in_fp8
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.common import accepted_length, replayed, write_json
from benchmarks.recording import add_replay, recorded
from eagle3_serving.drafter import Drafter
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine

CHAIN, TREE = "chain of 5", "tree of 60"
AS_IT_IS, HEAD_APART, WHOLE = "as it is", "fp8, the head as it is", "fp8"


class Fp8Linear(nn.Module):
    """A linear layer that is kept in fp8, as vLLM's layers call it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        method: Any = self.layer.quant_method
        out: Tensor = method.apply(self.layer, x, self.layer.bias)
        return out


def in_fp8(drafter: Drafter, head: bool = True) -> Drafter:
    """A copy whose linear layers are in fp8, `head` among them or not."""
    made = copy.deepcopy(drafter)
    layers = {
        name: module
        for name, module in made.named_modules()
        if isinstance(module, nn.Linear) and (head or name != "lm_head")
    }
    keep_in_fp8(layers.values())
    for name, layer in layers.items():
        made.set_submodule(name, Fp8Linear(layer))
    return made


def drafters(drafter: Drafter, target_head: Tensor) -> dict[str, Drafter]:
    """A head that is the target's stays as it is, on vLLM too."""
    made = {AS_IT_IS: drafter, HEAD_APART: in_fp8(drafter, head=False)}
    own = drafter.lm_head.weight
    if own.shape != target_head.shape or not (own == target_head).all():
        made[WHOLE] = in_fp8(drafter)
    return made


def against(mine: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    """The mean difference of pairs and its standard error."""
    differences = [a - b for a, b in zip(mine, plain, strict=True)]
    return {"mean": fmean(differences), "standard_error": stdev(differences) / len(differences) ** 0.5}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_replay(parser, limit=6)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    engine, target, answers = recorded(args)
    head = engine.target.model.get_output_embeddings().weight.detach()
    options = {CHAIN: DecodeOptions(args.max_tokens, "chain", k=5), TREE: DecodeOptions(args.max_tokens, "tree")}
    assert engine.drafter is not None
    plan = [(name, drafter, kind) for name, drafter in drafters(engine.drafter, head).items() for kind in options]
    rows: list[dict[str, Any]] = []
    plain: dict[str, list[float]] = {}
    for name, drafter, kind in tqdm(plan, unit="setting"):
        replay = EmbeddedEngine(target, drafter, engine.calibration)
        said = replayed(replay, answers, options[kind], args.batch)
        families = {family: accepted_length(part) for family, part in said.items()}
        each = [accepted_length([g]) for part in said.values() for g in part]
        row = {"weights": name, "draft": kind, "accepted_length": fmean(families.values()), "families": families}
        if name == AS_IT_IS:
            plain[kind] = each
        else:
            row["a_prompt_against_as_it_is"] = against(each, plain[kind])
        rows.append(row)
    table = Table(title="tokens a target pass, mean of the families", title_justify="left")
    for column in ("weights", CHAIN, TREE):
        table.add_column(column, justify="left" if column == "weights" else "right")
    for name in dict.fromkeys(row["weights"] for row in rows):
        table.add_row(name, *[f"{r['accepted_length']:.3f}" for r in rows if r["weights"] == name])
    Console().print(table)
    if args.out:
        about = {
            "limit": args.limit,
            "max_tokens": args.max_tokens,
            "prompts": sum(map(len, answers.values())),
            "calibrated": engine.calibration is not None,
            "fp8": str(FP8).removeprefix("torch."),
        }
        write_json(args.out, {"about": about, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
