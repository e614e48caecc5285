"""SGLang's EAGLE worker, with a tree chosen anew for every decoding step."""

import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch

from eagle3_serving.notice import in_a_line, stop
from eagle3_serving.patches import Patches
from eagle3_serving.serve.shape import Shape
from eagle3_serving.targets.cache import cache_directory
from eagle3_serving.tree.calibrate import Calibration
from eagle3_sglang import compat, compat_graphs
from eagle3_sglang.backends import window_problem
from eagle3_sglang.catch_up import Backlog, absorb
from eagle3_sglang.costs import StepCosts, measured_with
from eagle3_sglang.draft import DraftWorker
from eagle3_sglang.fallback import fall_back
from eagle3_sglang.gates import BatchGates, within
from eagle3_sglang.host import StepClock, timed
from eagle3_sglang.metrics import Metrics
from eagle3_sglang.policy import Cycle, ShapePolicy, Survey
from eagle3_sglang.replays import replay_all, sizes_to_time
from eagle3_sglang.reserve import Reserve
from eagle3_sglang.settings import read_settings
from eagle3_sglang.states import Limits, build_states
from eagle3_sglang.transfer import GainTransfer

log = logging.getLogger(__name__)

SAVE_EVERY_S = 20.0


class TreeWorker(compat.EAGLEWorkerV2):  # type: ignore[misc]
    """One runtime state (attention backends, CUDA graphs) a tree, built at start; each step activates one.

    A step that drafts nothing is a plain decoding step in SGLang's verify path, and the draft does not even catch up.
    Before drafting goes on, one such step does let it catch up, so that the draft starts from true features. A batch with
    penalised requests (repetition, presence, frequency, minimum length) drafts nothing: only so is its text plain decoding's.
    """

    speculative_num_steps: int  # SGLang's own: the state that is active

    def __init__(self, server_args: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(server_args, *args, **kwargs)
        self._patches = Patches()
        try:
            self._prepare(server_args)
        except Exception as error:
            self._give_back(error)

    def _give_back(self, error: Exception) -> None:
        """From here on this is SGLang's own worker: nothing of ours is left in it."""
        fall_back(in_a_line(error))
        self._patches.undo()
        self.__class__ = compat.EAGLEWorkerV2

    def _prepare(self, server_args: Any) -> None:
        if self.device == "cpu" and (problem := compat.sample_on_cpu(self._patches)):
            log.warning("eagle3: sampled requests get the likeliest tokens on a CPU, as SGLang has it: %s", problem)
        if problem := compat.whole_features(self, self._patches):
            log.warning("eagle3: Gemma 3's features lack their residual, as SGLang has them: %s", problem)
        self.settings = read_settings()
        self.shape = Shape(self.speculative_num_steps, self.topk, self.speculative_num_draft_tokens)
        self.shapes = compat.shapes_of(self, self.settings)
        self.nothing = Shape.nothing(self.topk)
        # whoever surveys waits for the file
        self._save_every_s = 1.0 if self.settings.choice == "survey" else SAVE_EVERY_S
        self.metrics = Metrics.when(compat.reports_metrics(server_args))
        self.states: dict[Shape, Any] = {}
        self._caught_up = self._has_penalties = False
        self._cold = False  # the draft has not seen the last tokens
        self._clock = StepClock(torch.device(self.device))
        # trees whose acceptance has not reached the host, and the requests they were drafted for
        self._in_flight: deque[tuple[Shape, list[Any]]] = deque()
        self._saved = time.monotonic()
        self._server_args = server_args
        self._batch: Any = None  # the one in hand
        self.backlog = Backlog()

    def init_cuda_graphs(self) -> None:
        """The last of SGLang's steps at start: pools and backends are there, so each tree's state can be built."""
        try:
            self._build_states()
        except Exception as error:
            self._give_back(error)
            self.init_cuda_graphs()  # SGLang's own

    def _build_states(self) -> None:
        arguments = self._server_args
        backends, page_size, windowed = compat.attention_of_server(self)
        if problem := window_problem(self.topk, backends, page_size, windowed):
            stop(problem)
        if (
            windowed
            and self.topk > 1
            and "intel_amx" in backends
            and (problem := compat.windows_by_depth(self._patches))
        ):
            stop(f"trees over a sliding window cannot be verified here: {problem}")
        calibration = _calibration(Path(arguments.speculative_draft_model_path))
        theirs = type(self._draft_worker)
        self._patches.undone_by(lambda: setattr(self._draft_worker, "__class__", theirs))
        draft = DraftWorker.adopt(self._draft_worker, self.shapes, calibration, compat.max_requests(self))
        super().init_cuda_graphs()
        given = compat.current_state(self)
        reserve = Reserve(compat_graphs.graph_buffers(given))
        built = build_states(
            {*self.shapes, self.nothing} - {self.shape},
            lambda shape: compat.build_state(self, shape, reserve),
            lambda: compat.free_bytes(self),
            Limits(self.settings.graph_gb, self.settings.graph_seconds),
            compat.all_ranks_agree,
        )
        self.states = {**built.states, self.shape: given}
        self.shapes = tuple(shape for shape in self.shapes if shape in self.states)
        # tests and surveys take every tree
        self.gates = BatchGates(self.settings.gates.settled(plain_steps=not self.settings.choice))
        say = log.warning if built.left_out else log.info
        say("eagle3: beside %s, which SGLang built: %s", self.shape, built.line())
        # what is captured tells of all trees that were wanted
        self.transfer = GainTransfer(draft.expected_SB, [draft.shapes.index(shape) for shape in self.shapes])
        self._init_costs()
        log.info("eagle3: trees %s (steps,top-k,tokens); costs in %s", "; ".join(map(str, self.shapes)), self._kept)

    def _init_costs(self) -> None:
        """From the profile; else, where graphs were captured, by replaying them."""
        sizes, choice = compat_graphs.captured_sizes(self.states[self.shape]), self.settings.choice
        # a survey takes each tree by itself for some steps, again and again: medians over those are its answer
        self.costs = StepCosts(self.shapes, paced=choice != "survey", sizes=sizes)
        self.policy = ShapePolicy(self.shapes, self.costs)
        choosers: dict[str, ShapePolicy | Cycle | Survey] = {"cycle": Cycle(self.shapes), "survey": Survey(self.shapes)}
        self.chooser = choosers.get(choice, self.policy)
        self._about = compat.about(self, self._server_args)
        name = f"sglang-{compat.digest(self._about)}.json"
        self._kept = self.settings.profile or cache_directory() / "profiles" / name
        self._read_costs()
        if not sizes or compat.all_ranks_agree(self.costs.graphs_known):
            return
        begun = time.monotonic()
        graphs = {shape: compat_graphs.replays(self.states[shape]) for shape in self.shapes}
        device = torch.device(self.device)
        # ranks must replay as often: what a graph reduces over all of them waits for each
        most = 30.0 if compat.ranks() == 1 else float("inf")
        found = replay_all(graphs, sizes_to_time(sizes), lambda work: timed(work, device), most)
        self.costs.replay(found)
        log.info("eagle3: graphs of %d trees timed in %.1f s", len({s for _, s in found}), time.monotonic() - begun)
        if found:
            self._save_costs()

    # ---- one step

    def forward_batch_generation(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            self._clock.interrupt()
            return super().forward_batch_generation(batch, *args, **kwargs)
        size = batch.seq_lens.shape[0]
        self._batch, self._has_penalties = batch, compat.has_penalties(batch)
        self._measure(size, compat.after_a_gap(batch))
        result = super().forward_batch_generation(batch, *args, **kwargs)
        if size:
            self._in_flight.append((self.shape, list(batch.reqs)))
            if self.shape.drafts and self.topk > 1:
                self.transfer.enqueue(size, self.shape)
            # a step that let the draft catch up costs more than one that drafts nothing
            if not self._caught_up:
                self._clock.report(size, self.shape)
        self._batch = None
        return result

    def _stub_skipped_draft_extend(self, batch: Any, batch_output: Any) -> None:
        """SGLang calls it in place of the draft's catching up."""
        # copies: a graph writes the next step's into the same place
        features_BF, tokens_B = batch_output.logits_output.hidden_states.clone(), batch_output.next_token_ids.clone()
        self.backlog.add([request.rid for request in batch.reqs], features_BF, tokens_B)
        super()._stub_skipped_draft_extend(batch, batch_output)

    def activate_step_by_batch(self, batch_size: int) -> None:
        """SGLang calls it before each decoding step."""
        if not self.states or batch_size == 0:
            return
        # SGLang counts a penalty once a step, so that more than one token a step changes the text
        most = 0 if self._has_penalties else self.gates.most(self._batch.reqs)
        shape = self.nothing
        if most != 0:
            shape = within(
                compat.broadcast_choice(self.chooser.choose(batch_size), self.shapes), most, self.shapes, shape
            )
        catch_up = self._cold and shape.drafts
        if catch_up:
            shape = self.nothing
            absorb(self.backlog, self, self._batch)
        self._cold = not shape.drafts and not catch_up
        self._caught_up = catch_up
        compat.skip_catching_up(self._cold)
        if shape != self.shape:
            # SGLang takes equal steps for an equal state; ours may differ in tokens alone
            self.speculative_num_steps = -1
            with compat.quiet():
                self.apply_runtime_state(self.states[shape])
            self.shape = shape

    def on_verify_complete_cpu(self, num_correct_drafts_per_req: list[int], batch_size: int = 0) -> None:
        """Acceptance reaches the host with the tokens themselves, a step later where steps overlap."""
        shape, asking = self._in_flight.popleft() if self._in_flight else (self.shape, [])
        if shape.drafts and len(asking) == len(num_correct_drafts_per_req):
            self.gates.verified(asking, num_correct_drafts_per_req)
        for expected, drafted, requests in self.transfer.arrivals():
            self.policy.gains.report_expected(expected, drafted, requests)
        if num_correct_drafts_per_req:
            if self.topk == 1:
                self.policy.gains.report_chain(num_correct_drafts_per_req, shape)
            else:
                self.policy.gains.report_accepted(
                    sum(num_correct_drafts_per_req) / len(num_correct_drafts_per_req), shape
                )
            if self.metrics is not None:
                self.metrics.verified(shape, num_correct_drafts_per_req)
                self.metrics.closed(self.gates.take())

    # ---- costs

    def _measure(self, size: int, after_a_gap: bool) -> None:
        """The last step lasted until this one begins, where nothing came between them."""
        if after_a_gap:
            self._clock.interrupt()
        self._clock.mark(size)
        if not self.states:
            return
        for batch, shape, seconds in self._clock.durations():
            self.costs.add(batch, shape, seconds)
        if time.monotonic() - self._saved > self._save_every_s:
            self._save_costs()

    def _read_costs(self) -> None:
        if not self._kept.is_file():
            return
        try:
            if not self.costs.read(self._kept, self._about):
                log.warning("eagle3: %s was measured with %s: measured anew", self._kept, self._other(self._kept))
        except ValueError as error:
            log.warning("eagle3: %s", error)

    def _other(self, profile: Path) -> str:
        theirs = measured_with(profile)
        other = [
            f"{name} {theirs.get(name, 'unknown')}, not {own}"
            for name, own in self._about.items()
            if theirs.get(name) != own
        ]
        return "; ".join(other) or "more than is told here"

    def _save_costs(self) -> None:
        self._saved = time.monotonic()
        try:
            self.costs.save(self._kept, self._about)
        except OSError as error:
            log.warning("eagle3: the costs are not kept: %s", error)


def _calibration(drafter: Path) -> Calibration | None:
    try:
        found = Calibration.beside(drafter)
    except ValueError as error:
        log.warning("eagle3: %s; trees are ranked by the drafter's own probabilities", error)
        return None
    if found is None:
        log.info("eagle3: no calibration beside the drafter; trees are ranked by its own probabilities")
    return found
