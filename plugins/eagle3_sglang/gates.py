"""Gates of single requests, where a step has one tree for its whole batch.

Where all of a batch are closed the step drafts nothing. A closed request among open ones is drafted and verified with
them, for its rows are computed anyway: it costs what it did before, and what is accepted of it is taken. So its tokens
tell whether it should be open again.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from eagle3_serving.serve.gates import Asked, Gate, Gates
from eagle3_serving.serve.shape import Shape


class BatchGates:
    """Every rank comes to the same: all that it looks at is the same for all."""

    def __init__(self, gates: Gates) -> None:
        self.gates = gates
        self.closed: Counter[tuple[str, str]] = Counter()  # requests' steps by (reason, rows), since they were taken

    def most(self, requests: Sequence[Any]) -> int | None:
        """Draft tokens a step that any of a batch may have: 0 where none is drafted, None where there is no bound."""
        open_gates = []
        reasons = []
        for request in requests:
            gate = gate_of(request, self.gates)
            reason = gate.closed_by(request.seqlen)
            if reason is None:
                open_gates.append(gate)
            else:
                reasons.append(reason)
        self.closed.update((reason, "kept" if open_gates else "own") for reason in reasons)
        if not open_gates:
            return 0
        bounds = [gate.most for gate in open_gates]
        return None if None in bounds else max(bound for bound in bounds if bound is not None)

    def verified(self, requests: Sequence[Any], accepted: Sequence[int]) -> None:
        """Drafts accepted of each request of a step that drafted."""
        for request, count in zip(requests, accepted, strict=True):
            gate_of(request, self.gates).verified(count)

    def take(self) -> Counter[tuple[str, str]]:
        """What was counted since the last time."""
        taken, self.closed = self.closed, Counter()
        return taken


def gate_of(request: Any, gates: Gates) -> Gate:
    """On the request itself: it goes with it."""
    gate = getattr(request, "eagle3_gate", None)
    if gate is None:
        params = request.sampling_params
        # SGLang makes the likeliest token of a temperature of 0: top-k 1 at a temperature of 1
        temperature = 0.0 if params.top_k == 1 else params.temperature
        asked = Asked.heard(params.custom_params)
        gate = request.eagle3_gate = Gate(gates, asked, temperature, request.grammar is not None)
    assert isinstance(gate, Gate)
    return gate


def within(shape: Shape, most: int | None, shapes: Sequence[Shape], nothing: Shape) -> Shape:
    """`shape`, or where it has more than `most` draft tokens the largest of `shapes` that has not."""
    if most is None or shape.tokens - 1 <= most:
        return shape
    return max((one for one in shapes if one.tokens - 1 <= most), key=lambda one: one.tokens, default=nothing)


def verify(original: Any, params: Any, *args: Any, **kwargs: Any) -> None:
    """SGLang asks whether sampling parameters can be served; a ValueError is HTTP 400 in one line."""
    original(params, *args, **kwargs)
    Asked.of(params.custom_params)
