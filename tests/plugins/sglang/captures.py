"""Run by SGLang's interpreter: what our worker does inside SGLang's captures, captured and replayed on a pretended device.

Prints one JSON line: how many replays were held against an eager draft on the CPU, what differed, what a capture would
have refused, which of the faults planted in it were found; and of the step around it, what made the host wait.
"""

import json
from types import SimpleNamespace
from typing import Any

import torch
from drafting_on import Drafting, Inputs
from eagle3_sglang import compat
from eagle3_sglang.draft import DraftWorker
from eagle3_sglang.settings import DEFAULT_TREES_ON_GPU, read_trees
from pretend_device import NAME, CaptureError, capture, pretend_device
from stepping_on import Uploading as UploadingStep
from stepping_on import Waiting, serve
from torch import Tensor

from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree import Children

compat.spec_config = lambda: SimpleNamespace(speculative_use_rejection_sampling=False)
BATCHES = (1, 2, 3, 4, 8, 16, 32, 64)
SHAPES = read_trees(DEFAULT_TREES_ON_GPU)


def hold(shape: Shape, batch: int, worker: type[DraftWorker] = DraftWorker) -> str:
    """What is wrong with a captured draft, replayed on other inputs, "" where nothing is."""
    inputs, other = (Inputs.drawn(batch, shape, seed) for seed in range(2))
    drafting = Drafting(shape, SHAPES, inputs, NAME, worker)
    try:
        with capture() as graph:
            captured = drafting.draft()
    except CaptureError as error:
        return f"refused: tree {shape}, batch {batch}: {error}"
    for place, new in zip(drafting.inputs, other, strict=True):
        place.held.copy_(new)
    graph.replay()
    expected = Drafting(shape, SHAPES, other, "cpu").draft()
    same = all(torch.allclose(x.held.float(), y.float()) for x, y in zip(captured, expected, strict=True))
    return "" if same else f"differs: tree {shape}, batch {batch}"


class Uploading(DraftWorker):
    """As a calibration that makes its table where it is used."""

    def _ranked(self, children: Children, depth: int) -> Children:
        shift_C = torch.tensor([0.0, -0.1, -0.2, -0.3], device=self.expected_SB.device)
        return super()._ranked(children._replace(log_chance_BKC=children.log_chance_BKC + shift_C), depth)


class Reading(DraftWorker):
    """A value read on the host becomes part of the graph."""

    def _follow_parents(self, slots_DX: Tensor, parents_BK: Tensor) -> None:
        if int(parents_BK.max()) > 0:
            super()._follow_parents(slots_DX, parents_BK)


class ByData(DraftWorker):
    """A size that hangs on values."""

    def _target_ids(self, draft_ids: Tensor) -> Tensor:
        ids = super()._target_ids(draft_ids)
        return ids[ids >= 0].view(ids.shape)


class Baking(DraftWorker):
    """A tensor that the graph does not write: it keeps what it was when captured."""

    def draft_forward(self, forward_batch: Any) -> Any:
        parents, chosen, tokens, probabilities = super().draft_forward(forward_batch)
        return parents, chosen, type(tokens)(tokens.held.clone()), probabilities


with pretend_device(), torch.no_grad():
    held = [hold(shape, batch) for shape in SHAPES if shape.drafts for batch in BATCHES]
    planted = {fault.__name__: hold(SHAPES[-1], 3, fault) for fault in (Uploading, Reading, ByData, Baking)}
    steps = [serve(batch, 60, choice) for batch in (1, 8, 64) for choice in ("cycle", "")]
    waiting = [serve(8, 20, "cycle", fault)["waits"] for fault in (Waiting, UploadingStep)]
found = {"held": len(held), "wrong": [wrong for wrong in held if wrong], "planted": planted}
print(json.dumps({**found, "steps": steps, "waiting": waiting}))
