"""Step 4: what drafting costs: a whole draft as one graph, the tree's own arithmetic as one graph, beside the verify pass.

`tree_us` is expansion, pooling, selection, layout, positions and the greedy walk over canned logits, as in
`benchmarks/tree_ops.py`; `draft_us` the drafter's passes with the expansion; `verify_us` the target's pass over the
tree. Shares are of draft, tree and verify together (expansion is in two of them: the shares are upper bounds).
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.curve import World, kernels_ms
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.simulate import SHAPES
from benchmarks.gpu.sink import Sink
from benchmarks.gpu.timing import Captured, measure
from benchmarks.tree_ops import Case, Ours, target_logits


def run(settings: Settings, sink: Sink, out: Path) -> None:
    world = World(settings)
    for batch in world.batches:
        for name in SHAPES:
            key = f"{name}-{batch}"
            if sink.has(key):
                continue
            tree = _tree(settings, world, name, batch)
            requests, speculator = world.start(name, batch)
            assert speculator is not None
            world.decode(requests, speculator, 2)
            captured = list(speculator.draft.drafts.values())[-1]  # type: ignore[attr-defined]
            draft = measure(captured.replay, world.device)
            verify = (kernels_ms(world, requests) or 0.0) * 1e3
            whole = tree["us"] + draft.median + verify
            sink.add(
                key,
                batch=batch,
                setting=name,
                draft_us=round(draft.median, 2),
                draft_us_p90=round(draft.p90, 2),
                tree_us=tree["us"],
                tree_us_p90=tree["us_p90"],
                verify_us=round(verify, 2),
                draft_share=round(draft.median / whole, 4),
                tree_share=round(tree["us"] / whole, 4),
                graph=captured.why or "captured",
            )
            world.target.drop()


@torch.inference_mode()
def _tree(settings: Settings, world: World, name: str, batch: int) -> dict[str, Any]:
    shape = SHAPES[name]
    args = argparse.Namespace(
        seed=settings.seed,
        nodes=shape.nodes,
        depth=shape.depth,
        top_k=shape.top_k,
        draft_vocab=world.shape.draft_vocab,
        target_vocab=world.shape.vocab,
        device=settings.torch_device,
    )
    case = Case.make(args, batch)
    ours = Ours(case)
    tokens_BR, layout = ours.build()
    logits_BRV = target_logits(case, tokens_BR, layout)
    captured = Captured(lambda: ours.round(logits_BRV), world.device, settings.graphs)
    return measure(captured.replay, world.device).figures()


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    table = [["batch", "setting", "draft us", "tree us", "verify us", "draft share", "tree share"]]
    for row in rows:
        figures = [f"{row[name]:.0f}" for name in ("draft_us", "tree_us", "verify_us")]
        table.append(
            [str(row["batch"]), row["setting"], *figures, *[f"{row[n]:.1%}" for n in ("draft_share", "tree_share")]]
        )
    return table
