"""What is asked in vLLM's scheduler at every step: how many tokens to draft at this load, and for whom (`gates`).

The scheduler's process may be another than the worker's. What steps cost comes in a file (`EAGLE3_PROFILE`, or what the
worker measured when it had captured its graphs); what was accepted the scheduler counts itself.
"""

import os
import time
from pathlib import Path
from typing import Any

from eagle3_serving.notice import in_a_line
from eagle3_serving.patches import Patches
from eagle3_vllm.choice import Choice, Costs, read_costs
from eagle3_vllm.gates import Gating, plain_steps, uniform_graphs
from eagle3_vllm.metrics import FOLDER
from eagle3_vllm.schedule import Profile
from eagle3_vllm.settings import Settings
from eagle3_vllm.shapes import shapes_of

COSTS = "step-costs"  # in the folder that the server's processes share


class ByLoad(list[int]):
    """In the place of vLLM's table of draft tokens by batch size: the first table until costs are known, then the choice."""

    def __init__(self, table: list[int], choice: Choice) -> None:
        super().__init__(table)
        self.choice = choice
        self._step: tuple[int, int] | None = None
        self._begun, self._alike = 0.0, 0

    def scheduled(self, output: Any) -> None:
        """A step lasts until the next one is scheduled, where the three around it are alike: vLLM schedules ahead."""
        if not self.choice.learn:
            return
        step, now = decode_step(output), time.perf_counter()
        self._alike = self._alike + 1 if step is not None and step == self._step else 0
        if self._alike > 1 and step is not None:
            self.choice.report_step(*step, 1e3 * (now - self._begun))
        self._step, self._begun = step, now

    def __getitem__(self, batch: Any) -> Any:
        return self.choice.choose(batch).tokens - 1 if isinstance(batch, int) and batch else super().__getitem__(batch)


def decode_step(output: Any) -> tuple[int, int] | None:
    """Requests and rows of each in a step that was scheduled; None where it reads prompts, or they differ."""
    rows = set(output.num_scheduled_tokens.values())
    drafts = output.scheduled_spec_decode_tokens
    if len(rows) != 1 or any(1 + len(drafts.get(name, ())) not in rows for name in output.num_scheduled_tokens):
        return None
    return len(output.num_scheduled_tokens), rows.pop()


def choose_by_load(scheduler: Any, settings: Settings, logger: Any) -> None:
    """Give a `Scheduler` that was just made its choice, where there are trees to choose from and costs to choose by."""
    try:
        if scheduler.dynamic_sd_lookup is None:
            return
        costs = _costs(settings)
        if costs is None:
            logger.info("eagle3: trees by batch size alone: no costs were measured; EAGLE3_PROFILE may name some")
            return
        learn = settings.profile is None  # whose costs are whole steps'
        choice = Choice(shapes_of(settings, scheduler.num_spec_tokens), costs, dict(settings.assumed_gains), learn)
    except Exception as error:  # no costs to choose by, or a scheduler that we do not know
        logger.warning("eagle3: trees by batch size alone: %s", in_a_line(error))
        return
    scheduler.dynamic_sd_lookup = ByLoad(scheduler.dynamic_sd_lookup, choice)
    for batch in sorted(costs):
        row = ", ".join(f"{shape} {choice.cost(batch, shape):.2f}" for shape in choice.shapes)
        logger.info("eagle3: ms a step at %d in flight: %s", batch, row)


def _costs(settings: Settings) -> Costs | None:
    if settings.profile is not None:
        seconds = Profile.read(settings.profile).step_seconds
        return {batch: {k + 1: 1000 * s for k, s in row.items()} for batch, row in seconds.items()}
    path = costs_file()
    return read_costs(path) if path is not None and path.is_file() else None


def costs_file() -> Path | None:
    """What the worker measured; None in a process that shares no folder with others."""
    return Path(os.environ[FOLDER]) / COSTS if FOLDER in os.environ else None


def register_scheduling(patches: Patches, settings: Settings, logger: Any) -> None:
    """Every scheduler made from now on in this process, of a server with EAGLE-3: its gates, and its choice of a tree."""
    from eagle3_vllm.compat import Scheduler
    from eagle3_vllm.fallback import server_reasons

    made, schedule, update = Scheduler.__init__, Scheduler.schedule, Scheduler.update_draft_token_ids
    told = Scheduler.make_spec_decoding_stats

    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        made(self, vllm_config, *args, **kwargs)
        self.eagle3_gating = None
        speculative = vllm_config.speculative_config
        if speculative is None or speculative.method != "eagle3":
            return
        if len(settings.trees) > 1 and not server_reasons(vllm_config, settings):
            choose_by_load(self, settings, logger)
        uniform = uniform_graphs(vllm_config, settings)
        gates = settings.gates.settled(plain_steps(self, settings, uniform))
        alone = vllm_config.parallel_config.data_parallel_size == 1
        self.eagle3_gating = Gating(self, gates, uniform, alone)

    def schedule_gated(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = schedule(self, *args, **kwargs)
        if isinstance(self.dynamic_sd_lookup, ByLoad):
            self.dynamic_sd_lookup.scheduled(output)
        if self.eagle3_gating is not None:
            self.eagle3_gating.scheduled(output)
        return output

    def update_gated(self: Any, draft_token_ids: Any) -> None:
        update(self, draft_token_ids)
        if self.eagle3_gating is not None:
            self.eagle3_gating.trim()

    def stats(
        self: Any,
        spec_decoding_stats: Any,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: Any,
        request_id: str,
    ) -> Any:
        if num_draft_tokens and self.eagle3_gating is not None:
            self.eagle3_gating.verified(request_id, num_accepted_tokens)
        if isinstance(self.dynamic_sd_lookup, ByLoad):
            self.dynamic_sd_lookup.choice.report_accepted(num_draft_tokens + 1, num_accepted_tokens)
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
