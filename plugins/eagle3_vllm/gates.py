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

from eagle3_serving.patches import Patches
from eagle3_serving.serve.gates import Asked, Gate, Gates
from eagle3_vllm.compat import CUDAGraphMode, SamplingParams, Scheduler, VLLMValidationError
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
    """The gates of one scheduler. `uniform`: its passes are CUDA graphs in which all requests have as many rows."""

    def __init__(self, scheduler: Any, gates: Gates, uniform: bool, alone: bool = True) -> None:
        self.scheduler, self.gates, self.uniform = scheduler, gates, uniform
        self.alone = alone  # ranks of data parallelism draft together, each with requests of its own
        self.tally = GateTally()
        self._most: dict[str, int] = {}  # draft tokens of the next step, where fewer than the others have

    def scheduled(self, output: Any) -> None:
        """A step was scheduled: who is drafted in it, for the next one?"""
        wanted = output.num_spec_tokens_to_schedule
        self._most = {}
        if not wanted:
            return  # nothing is drafted at this load
        closed: dict[str, str] = {}
        drafting = 0
        for name in output.num_scheduled_tokens:
            request = self.scheduler.requests[name]
            if request.is_prefill_chunk:
                continue
            gate = self._gate(request)
            reason = gate.closed_by(request.num_tokens)
            if reason is not None:
                closed[name] = reason
                self._most[name] = 0
                continue
            drafting += 1
            if gate.most is not None and gate.most < wanted:
                self._most[name] = gate.most
        kept = self.uniform and drafting > 0
        self.tally.closed.update(f"{reason} {'kept' if kept else 'own'}" for reason in closed.values())
        self.tally.write(WRITE_EVERY_S)
        if kept:
            self._most = {}
        elif closed and not drafting and self.alone:
            output.num_spec_tokens_to_schedule = 0
        self.trim()  # placeholders, where scheduling does not wait for drafts

    def trim(self) -> None:
        """The drafts that the scheduler holds for the next step."""
        for name, most in self._most.items():
            request = self.scheduler.requests.get(name)
            if request is not None and len(request.spec_token_ids) > most:
                request.spec_token_ids = request.spec_token_ids[:most]

    def verified(self, name: str, accepted: int) -> None:
        request = self.scheduler.requests.get(name)
        if request is not None:
            self._gate(request).verified(accepted)

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


def register_gates(patches: Patches, settings: Settings) -> None:
    """Every scheduler made from now on in this process."""
    made, schedule, update = Scheduler.__init__, Scheduler.schedule, Scheduler.update_draft_token_ids
    told = Scheduler.make_spec_decoding_stats

    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        made(self, vllm_config, *args, **kwargs)
        speculative = vllm_config.speculative_config
        if speculative is not None and speculative.method == "eagle3":
            uniform = uniform_graphs(vllm_config, settings)
            gates = settings.gates.settled(plain_steps(self, settings, uniform))
            alone = vllm_config.parallel_config.data_parallel_size == 1
            self.eagle3_gating = Gating(self, gates, uniform, alone)

    def schedule_gated(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = schedule(self, *args, **kwargs)
        if (gating := getattr(self, "eagle3_gating", None)) is not None:
            gating.scheduled(output)
        return output

    def update_gated(self: Any, draft_token_ids: Any) -> None:
        update(self, draft_token_ids)
        if (gating := getattr(self, "eagle3_gating", None)) is not None:
            gating.trim()

    def stats(
        self: Any,
        spec_decoding_stats: Any,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: Any,
        request_id: str,
    ) -> Any:
        if num_draft_tokens and (gating := getattr(self, "eagle3_gating", None)) is not None:
            gating.verified(request_id, num_accepted_tokens)
        return told(
            self,
            spec_decoding_stats,
            num_draft_tokens=num_draft_tokens,
            num_accepted_tokens=num_accepted_tokens,
            num_invalid_spec_tokens=num_invalid_spec_tokens,
            request_id=request_id,
        )

    patches.attribute(Scheduler, "__init__", init)
    patches.attribute(Scheduler, "schedule", schedule_gated)
    patches.attribute(Scheduler, "update_draft_token_ids", update_gated)
    patches.attribute(Scheduler, "make_spec_decoding_stats", stats)
