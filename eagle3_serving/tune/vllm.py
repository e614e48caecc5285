"""vLLM: step costs and acceptance from engines without a server, what the server adds from a plain one.

The profile is `python -m eagle3_vllm.profile`'s, which the plugin reads. Whole requests are played through it: the
acceptance that was seen, the schedule that the plugin makes of the profile, and the measured steps.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from eagle3_serving.bench.http import PROFILED_K, open_servers
from eagle3_serving.bench.load import Load
from eagle3_serving.bench.sweep import count_for, mixed_prompts, requests_for
from eagle3_serving.dtypes import TORCH
from eagle3_serving.eval.context import ByContext
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.serve.room import room_for
from eagle3_serving.serve.vllm import VllmOptions, on_cpu, vllm_command
from eagle3_serving.tune.advice import NO_DRAFT, Advice, Tuned, shell_line
from eagle3_serving.tune.child import run_child
from eagle3_serving.tune.closed_loop import Course, between, play, rate
from eagle3_serving.tune.options import TuneOptions

if TYPE_CHECKING:
    from eagle3_vllm.schedule import Profile, Watched


def tune_vllm(options: TuneOptions, prompts: Path, folder: Path) -> Tuned:
    """Writes the profile to `options.out`. Raises CheckError where an engine fails."""
    from eagle3_vllm.profile import MAX_MODEL_LEN, ROOM
    from eagle3_vllm.schedule import Profile

    part = folder / "profile.json"
    server = VllmOptions(options.target, options.drafter, dtype=options.dtype)
    vllm_command(server)  # what it would refuse, it refuses now
    argv = [sys.executable, "-m", "eagle3_vllm.profile", "--model", str(options.target)]
    argv += ["--drafter", str(options.drafter), "--out", str(part), "--prompts", str(prompts)]
    argv += ["--dtype", TORCH[options.dtype], "--repeats", str(options.repeats), "--batches"]
    argv += [*map(str, options.loads), "--tokens", *map(str, range(1, PROFILED_K + 1)), "--answer", str(options.tokens)]
    texts = [prompt.turns[0] for prompt in read_prompts([prompts])]
    argv += ["--max-model-len", str(room_for(options.target, texts, options.tokens + ROOM, MAX_MODEL_LEN))]
    if on_cpu():  # as the server that `eagle3 serve` starts
        argv.append("--enforce-eager")
    run_child(argv)
    profile = Profile.read(part)
    plain = _plain(options, prompts)
    profile.save(options.out)
    context = ByContext()
    for one in profile.watched:
        context.place(one.prompt_tokens + 1, one.accepted)
    advice = [advise(profile, load, options.tokens, options.limit, plain.get(load)) for load in options.loads]
    return Tuned(advice, context)


def _plain(options: TuneOptions, prompts: Path) -> dict[int, float]:
    """Tokens a second of a plain server under each load, the median of the rounds."""
    bench = options.bench(prompts, options.out, ("plain",))
    texts = mixed_prompts(bench)
    seen: dict[int, list[float]] = {load: [] for load in options.loads}
    with open_servers(bench) as sides, tqdm(total=len(options.loads) * options.repeats, desc="plain server") as bar:
        for _ in range(options.repeats):
            for load in options.loads:
                asked = requests_for(texts, load, options.limit)
                seen[load].append(sides["plain"].run(asked, Load(load, options.tokens)).tokens_per_second)
                bar.update()
    return {load: statistics.median(rates) for load, rates in seen.items()}


@dataclass(frozen=True)
class Played:
    """A profile as courses of whole requests. `beside`: seconds a step that a server adds to the engine's own."""

    profile: "Profile"
    beside: float = 0.0

    def plain(self) -> Course:
        return Course(
            lambda joining: self.prefill(joining, "plain"),
            lambda batch: between(self._steps(0), batch) + self.beside,
            lambda *_: 1,
        )

    def drafting(self) -> Course:
        schedule = self.profile.schedule(PROFILED_K)

        def k_at(batch: int) -> int:
            return next((k for _, last, k in schedule if batch <= last), schedule[-1][2])

        def tokens(request: int, step: int, batch: int) -> int:
            seen = self._watched(request).accepted
            return 1 + min(seen[step % len(seen)], k_at(batch))

        return Course(
            lambda joining: self.prefill(joining, "drafting"),
            lambda batch: self.step_seconds(batch, k_at(batch)),
            tokens,
        )

    def prefill(self, joining: Sequence[int], side: str) -> float:
        once, each = self.profile.prefill[side]
        return once + each * sum(self._watched(request).prompt_tokens for request in joining)

    def step_seconds(self, batch: int, k: int) -> float:
        """Of a server with a drafter, that drafts `k` tokens."""
        idle = {int(b): share for b, share in self.profile.about.get("idle_drafter", {}).items()}
        slower = between(idle, batch) if idle and k == 0 else 1.0
        return between(self._steps(k), batch) / slower + self.beside

    def _steps(self, k: int) -> dict[int, float]:
        return {batch: row[k] for batch, row in self.profile.step_seconds.items()}

    def _watched(self, request: int) -> "Watched":
        return self.profile.watched[request % len(self.profile.watched)]


def advise(profile: "Profile", load: int, tokens: int, least: int, measured: float | None = None) -> Advice:
    """`measured`: a plain server's tokens a second at this load; what it takes beyond the engine's own steps counts for
    both sides. `profile` holds watched requests."""
    requests = count_for(load, least)
    engine = Played(profile)
    beside = 0.0
    if measured is not None:
        rounds = requests // load
        seconds = requests * tokens / measured - play(engine.plain(), requests, load, tokens)
        beside = max(0.0, seconds / (rounds * tokens))
    played = Played(profile, beside)
    plain, drafting = (rate(course, requests, load, tokens) for course in (played.plain(), played.drafting()))
    k = profile.best(load, PROFILED_K)
    row = profile.step_seconds[load]
    shown = k or max((one for one in row if one), key=lambda one: profile.speed(load, one))
    accepted = 1 + sum(profile.acceptance[:shown])
    why = (
        f"a step is {1e3 * row[0]:.1f} ms plain, {1e3 * row[shown]:.1f} ms with {shown} draft token{'s' * (shown > 1)} "
        f"for {accepted:.2f} tokens"
    )
    setting = f"{k} draft token{'s' * (k > 1)}" if k else NO_DRAFT
    return Advice(load, plain, drafting, setting, accepted if k else 1.0, why)


def commands(options: TuneOptions) -> tuple[str, str]:
    """With the drafter and the profile; plain."""
    server = VllmOptions(
        options.target,
        options.drafter,
        k=PROFILED_K,
        dtype=options.dtype,
        max_num_seqs=max(16, *options.loads),
        compiled=not on_cpu(),
        prefix_cache=True,
        profile=options.out,
    )
    plain = replace(server, drafter=None, profile=None)
    return shell_line(vllm_command(server), "vllm"), shell_line(vllm_command(plain), "vllm")
