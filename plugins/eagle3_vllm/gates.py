"""Gates of single requests in vLLM's scheduler, on both runners: a request that is not drafted has one row in the next pass.

The scheduler knows every request's sampling parameters, length and what was accepted, and says how many drafts of each are
verified. It says so for the next step, so the worker is asked nothing and waits for nothing. Where all are closed it
asks the worker for no draft at all.

In full CUDA graphs of uniform batches every request has the same rows. There a closed request among open ones keeps them,
and is drafted: they are computed anyway, and leaving the graph for the others' sake would cost all of them.
"""

import atexit
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from eagle3_serving.serve.gates import Asked, Gate, Gates
from eagle3_vllm.compat import CUDAGraphMode, SamplingParams, VLLMValidationError
from eagle3_vllm.metrics import FOLDER, WRITE_EVERY_S, write_counts
from eagle3_vllm.settings import Settings


class GateTally:
    """Requests' steps that were not drafted, by reason, in a file of the scheduler's process: see `metrics`."""

    def __init__(self) -> None:
        self.closed: Counter[str] = Counter()  # "reason rows"
        folder = os.environ.get(FOLDER)
        self.file = Path(folder) / f"{os.getpid()}-gates.json" if folder else None
        self._written = 0.0
        atexit.register(self.write)

    def write(self, after_s: float = 0.0) -> None:
        """Unless it was written less than `after_s` seconds ago."""
        now = time.monotonic()
        if self.file is None or not self.closed or now - self._written < after_s:
            return
        self._written = now
        write_counts(self.file, {"sums": {}, "fallbacks": {}, "closed": self.closed})


class Gating:
    """The gates of one scheduler. `uniform`: its passes are CUDA graphs in which all requests have as many rows.

    A step looks at those requests alone that are not drafted as all others are. An open gate becomes one of them by what was
    accepted, which is told here, or by its length, which is looked at when it may have come to the bound.
    """

    def __init__(self, scheduler: Any, gates: Gates, uniform: bool, alone: bool = True) -> None:
        self.scheduler, self.gates, self.uniform = scheduler, gates, uniform
        self.alone = alone  # ranks of data parallelism draft together, each with requests of its own
        self.tally = GateTally()
        self._most: dict[str, int] = {}  # draft tokens of the next step, where fewer than the others have
        self._apart: dict[str, Any] = {}  # requests that are closed, or bounded in their drafts
        self._due: dict[int, list[str]] = {}  # step -> requests that may be of the bounded length then
        self._steps = 0

    def scheduled(self, output: Any) -> None:
        """A step was scheduled: who is drafted in it, for the next one?"""
        self._come_and_go(output)
        wanted = output.num_spec_tokens_to_schedule
        self._most = {}
        if not wanted or not self._apart:
            return  # nothing is drafted at this load, or all are drafted alike
        there, closed = output.num_scheduled_tokens, {}
        for name, request in list(self._apart.items()):
            if name not in there or request.is_prefill_chunk:
                continue
            gate = request.eagle3_gate
            reason = gate.closed_by(request.num_tokens)
            if reason is not None:
                closed[name] = reason
                self._most[name] = 0
            elif gate.most is not None and gate.most < wanted:
                self._most[name] = gate.most
            elif not gate.apart:
                del self._apart[name]
        requests = self.scheduler.requests
        drafting = any(name not in closed and not requests[name].is_prefill_chunk for name in there)
        kept = self.uniform and drafting
        self.tally.closed.update(f"{reason} {'kept' if kept else 'own'}" for reason in closed.values())
        self.tally.write(WRITE_EVERY_S)
        if kept:
            self._most = {}
        elif closed and not drafting and self.alone:
            output.num_spec_tokens_to_schedule = 0
        self.trim()  # placeholders, where scheduling does not wait for drafts

    def _come_and_go(self, output: Any) -> None:
        self._steps += 1
        for name in output.finished_req_ids:
            self._apart.pop(name, None)
        for name in (*(new.req_id for new in output.scheduled_new_reqs), *self._due.pop(self._steps, ())):
            request = self.scheduler.requests.get(name)
            if request is None:
                continue
            gate = self._gate(request)
            left = None if gate.context is None else gate.context - request.num_tokens
            if gate.apart or (left is not None and left <= 0):
                self._apart[name] = request
            elif left is not None:
                steps = max(1, left // (self.scheduler.num_spec_tokens + 1))  # it grows by no more a step
                self._due.setdefault(self._steps + steps, []).append(name)

    def trim(self) -> None:
        """The drafts that the scheduler holds for the next step."""
        for name, most in self._most.items():
            request = self.scheduler.requests.get(name)
            if request is not None and len(request.spec_token_ids) > most:
                request.spec_token_ids = request.spec_token_ids[:most]

    def verified(self, name: str, accepted: int) -> None:
        request = self.scheduler.requests.get(name)
        if request is None:
            return
        gate = self._gate(request)
        gate.verified(accepted)
        if gate.apart:
            self._apart[name] = request

    def _gate(self, request: Any) -> Gate:
        gate = getattr(request, "eagle3_gate", None)  # on the request itself: it goes with it
        if gate is None:
            params = request.sampling_params
            asked = Asked.heard(getattr(params, "extra_args", None))
            temperature = getattr(params, "temperature", 0.0)
            gate = request.eagle3_gate = Gate(self.gates, asked, temperature, request.use_structured_output)
        assert isinstance(gate, Gate)
        return gate


def uniform_graphs(config: Any, settings: Settings) -> bool:
    """Whether steps of decoding alone are full CUDA graphs in which every request has as many rows."""
    mode = config.compilation_config.cudagraph_mode
    if mode is None or mode.decode_mode() != CUDAGraphMode.FULL or mode.mixed_mode() == CUDAGraphMode.FULL:
        return False
    return settings.batch_nodes is None


def plain_steps(scheduler: Any, settings: Settings, uniform: bool) -> bool:
    """Whether a step that drafts nothing is as well served as one that does: no graphs at all, or one for it too."""
    scheduled = 0 in (scheduler.dynamic_sd_lookup or [])[1:]
    return not uniform or scheduled or any(not shape.drafts for shape in settings.trees)


def check(params: SamplingParams) -> None:
    """Raises vLLM's own error of a request, which its server makes HTTP 400, where one asks for what cannot be meant."""
    try:
        Asked.of(params.extra_args)
    except ValueError as error:
        raise VLLMValidationError(str(error)) from None
