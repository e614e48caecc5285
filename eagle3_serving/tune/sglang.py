"""SGLang: a server that takes every tree in turn under each load, beside a plain one.

The plugin measures what a step of each tree costs while it serves, and counts what each gave: that is the profile, and
the acceptance. Whole requests are played through both, each step with the tree that the plugin would take.
"""

import json
import re
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from eagle3_serving.bench.sweep import count_for, requests_for
from eagle3_serving.errors import CheckError
from eagle3_serving.eval.context import ByContext
from eagle3_serving.serve.client import Answer
from eagle3_serving.serve.room import room_for
from eagle3_serving.serve.server import Server, log_directory
from eagle3_serving.serve.sglang import SglangOptions, sglang_command
from eagle3_serving.serve.sglang_client import SglangClient
from eagle3_serving.serve.shape import Shape
from eagle3_serving.tune.advice import NO_DRAFT, Advice, Tuned, shell_line
from eagle3_serving.tune.closed_loop import Course, between, rate
from eagle3_serving.tune.options import TuneOptions

if TYPE_CHECKING:
    from eagle3_sglang.costs import StepCosts

_COUNTER = re.compile(r'^eagle3:(\w+)_total\{[^}]*?steps="(\d+)"[^}]*\} (\S+)$', re.MULTILINE)
_LABEL = re.compile(r'(steps|tokens|top_k)="(\d+)"')
_MORE_ROUNDS = 3  # for trees that a load did not come to


@dataclass
class Observed:
    """Of one load. Seconds until all prompts of a full batch were taken in; `share`: each request's acceptance over the mean."""

    plain_rates: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    context: ByContext = field(default_factory=ByContext)


def tune_sglang(options: TuneOptions, prompts: Sequence[str], folder: Path) -> Tuned:
    """Writes the profile to `options.out`. Raises CheckError where a server fails."""
    part = folder / "profile.json"
    room = room_for(options.target, prompts, options.tokens, SglangOptions.context)
    common = replace(_options(options, part), context=room, kv_tokens=max(16384, 1024 * max(options.loads), room))
    commands = [sglang_command(replace(common, drafter=None)), sglang_command(replace(common, choice="survey"))]
    with ExitStack() as stack:
        logs = stack.enter_context(log_directory("tune"))
        urls = [
            stack.enter_context(Server(command, logs / log)).url
            for command, log in zip(commands, ("plain.log", "survey.log"), strict=True)
        ]
        plain, survey = (stack.enter_context(SglangClient(url, options.target)) for url in urls)
        for client in (plain, survey):
            client.ask(prompts[0], 8)
        seen = _measure(options, prompts, plain, survey, part)
        gains = read_gains(survey.metrics())
    costs, about = read_costs(part)
    costs.keep(options.loads)
    costs.save(options.out, about)
    context = ByContext()
    for of_load in seen.values():
        context += of_load.context
    return Tuned([advise(costs, gains, seen, load, options.tokens, options.limit) for load in options.loads], context)


def _measure(
    options: TuneOptions, prompts: Sequence[str], plain: SglangClient, survey: SglangClient, part: Path
) -> dict[int, Observed]:
    seen = {load: Observed() for load in options.loads}
    with tqdm(total=2 * options.repeats * len(seen), desc="measuring steps", unit="load") as bar:
        for turn in range(options.repeats):
            for load, of_load in seen.items():
                asked = requests_for(prompts, load, options.limit)
                for client in (plain, survey) if turn % 2 == 0 else (survey, plain):
                    bar.set_postfix_str(f"{load} in flight, {'plain' if client is plain else 'trees in turn'}")
                    answers, seconds = client.ask_all(asked, options.tokens, concurrency=load, natural_end=False)
                    if client is plain:
                        of_load.plain_rates.append(sum(len(answer.token_ids) for answer in answers) / seconds)
                    else:
                        _note(of_load, answers, load)
                    bar.update()
    for _ in range(_MORE_ROUNDS):
        missing = _missing(survey, options, part)
        for load in missing:
            asked = requests_for(prompts, load, options.limit)
            survey.ask_all(asked, options.tokens, concurrency=load, natural_end=False)
        if not missing:
            return seen
    if missing := _missing(survey, options, part):
        raise CheckError(
            f"at {missing[0]} in flight not every tree was measured: take longer answers (--tokens) or more --repeats"
        )
    return seen


def _note(seen: Observed, answers: Sequence[Answer], load: int) -> None:
    # later requests join one by one, as others end
    first = [answer.first_token_s for answer in answers]
    seen.prefill_s.append(max(first[:load]) if load > 1 else statistics.mean(first))
    accepted = [answer.counters.accepted / max(answer.counters.drafts, 1) for answer in answers]
    mean = statistics.mean(accepted)
    for answer in answers:
        seen.context.place(answer.prompt_tokens + 1, answer.accepted)
    seen.share += [one / mean if mean else 1.0 for one in accepted]


def _missing(survey: SglangClient, options: TuneOptions, part: Path) -> list[int]:
    """Loads at which a tree has no cost yet."""
    time.sleep(1.2)  # the server writes its file at most once a second, at a step
    survey.ask("Name three colours.", 32, natural_end=False)
    if not part.is_file():
        return list(options.loads)
    costs, _ = read_costs(part)
    return [load for load in options.loads if len(costs.measured(load)) < len(costs.shapes)]


def read_costs(path: Path) -> tuple["StepCosts", dict[str, str]]:
    """What the server wrote, and what it was measured with. Raises CheckError where that is no profile."""
    from eagle3_sglang.costs import StepCosts

    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        shapes = sorted({Shape(*shape) for _, shape, _ in raw["seconds"]}, key=lambda shape: shape.tokens)
        costs, about = StepCosts(shapes), dict(raw["about"])
        costs.read(path, about)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckError(f"the server wrote no profile ({error}): see its log") from None
    return costs, about


def read_gains(metrics: str) -> dict[Shape, float]:
    """Accepted tokens a request and step of each tree, from the text of `/metrics`."""
    totals: dict[str, dict[Shape, float]] = {}
    for line in metrics.splitlines():
        found = _COUNTER.match(line)
        labels = dict(_LABEL.findall(line))
        if found and len(labels) == 3:
            shape = Shape(int(labels["steps"]), int(labels["top_k"]), int(labels["tokens"]))
            of_name = totals.setdefault(found[1], {})
            of_name[shape] = of_name.get(shape, 0.0) + float(found[3])
    requests = totals.get("verified_requests", {})
    return {
        shape: totals.get("accepted_tokens", {}).get(shape, 0.0) / count for shape, count in requests.items() if count
    }


def choose(costs: "StepCosts", gains: dict[Shape, float], batch: int) -> Shape:
    """The tree that the plugin would take: the best rate, none where it is not ahead by the plugin's margin."""
    from eagle3_sglang.policy import ShapePolicy

    rates = _rates(costs, gains, batch)
    best = _best_drafting(rates)
    nothing = next((shape for shape in rates if not shape.drafts), None)
    return best if nothing is None or rates[best] > ShapePolicy.margin * rates[nothing] else nothing


def _best_drafting(rates: dict[Shape, float]) -> Shape:
    return max((shape for shape in rates if shape.drafts), key=rates.__getitem__)


def _rates(costs: "StepCosts", gains: dict[Shape, float], batch: int) -> dict[Shape, float]:
    """Tokens a second of a request with each tree."""
    return {shape: (1 + gains.get(shape, 0.0)) / (costs.seconds(batch, shape) or 1.0) for shape in costs.shapes}


def advise(
    costs: "StepCosts", gains: dict[Shape, float], seen: dict[int, Observed], load: int, tokens: int, least: int
) -> Advice:
    shares = [share for of_load in seen.values() for share in of_load.share]
    prefill = {0: 0.0} | {size: statistics.median(of_load.prefill_s) for size, of_load in seen.items()}

    def accepted_at(request: int, step: int, batch: int) -> int:
        each = 1 + gains.get(choose(costs, gains, batch), 0.0) * shares[request % len(shares)]
        return int((step + 1) * each) - int(step * each)

    course = Course(
        lambda joining: between(prefill, len(joining)),
        lambda batch: costs.seconds(batch, choose(costs, gains, batch)) or 0.0,
        accepted_at,
    )
    requests = count_for(load, least)
    expected = rate(course, requests, load, tokens)
    plain = statistics.median(seen[load].plain_rates)
    shape = choose(costs, gains, load)
    shown = shape if shape.drafts else _best_drafting(_rates(costs, gains, load))
    gain = 1 + gains.get(shown, 0.0)
    nothing = 1e3 * (costs.seconds(load, Shape.nothing(shape.top_k)) or 0.0)
    why = f"a step is {nothing:.1f} ms with no draft, {1e3 * (costs.seconds(load, shown) or 0.0):.1f} ms with the tree {shown} for {gain:.2f} tokens"
    return Advice(
        load, plain, expected, f"tree {shape}" if shape.drafts else NO_DRAFT, gain if shape.drafts else 1.0, why
    )


def _options(options: TuneOptions, profile: Path) -> SglangOptions:
    most = max(options.loads)
    return SglangOptions(
        options.target,
        options.drafter,
        dtype=options.dtype,
        max_requests=max(16, most),
        kv_tokens=max(16384, 1024 * most),
        profile=profile,
    )


def commands(options: TuneOptions) -> tuple[str, str]:
    """With the drafter and the profile; plain."""
    server = replace(_options(options, options.out), kv_tokens=None, radix_cache=True)
    plain = replace(server, drafter=None, profile=None)
    return shell_line(sglang_command(server), "sglang"), shell_line(sglang_command(plain), "sglang")
