"""What the steps on real engines share: from settings to a race, its results and its answers."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.live.contenders import Contender, Pair
from benchmarks.gpu.live.identity import add_identity
from benchmarks.gpu.live.pairs import pairs
from benchmarks.gpu.live.processes import ROOT, EngineProcess, interpreter, plugin_site
from benchmarks.gpu.live.race import Clock, Course, Race
from benchmarks.gpu.live.report import add_results
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.simulate import AcceptanceLaw
from benchmarks.gpu.sink import Sink, Unavailable

MARGIN_S = 15.0  # between the step's own end and the limit at which it is cut
KEPT_GIB = 2.0  # of the device's memory, free
START_S, EACH_S = 300.0, 150.0
DETAIL_AT = (1, 16)


@dataclass(frozen=True)
class Kind:
    """An engine: whom it races with what, and what its processes see in their environment beside a contender's own.
    `graph_memory` finds GiB of graphs in its log, where its process cannot be asked."""

    name: str
    contenders: Callable[[Pair, Settings], list[Contender]]
    environment: Callable[[Contender, Settings, Path], Mapping[str, str]]
    path: Callable[[Settings], list[str]] = lambda settings: []
    graph_memory: re.Pattern[str] | None = None
    details: bool = True


def course(settings: Settings, details: bool) -> Course:
    law = AcceptanceLaw(settings.rate, settings.siblings)
    detail_at = tuple(flight for flight in DETAIL_AT if flight in settings.in_flight) if details else ()
    if settings.tiny:
        return Course(settings.in_flight, 1, settings.tokens, detail_at[:1], 2, START_S, EACH_S, law)
    return Course(settings.in_flight, settings.rounds, settings.tokens, detail_at, 16, START_S, EACH_S, law)


def run_race(kind: Kind, settings: Settings, sink: Sink, out: Path) -> None:
    """Raises Unavailable where there is no such engine, and where the deadline left something to do."""
    clock = Clock(seconds_for(settings))
    python = interpreter(kind.name, settings.engine_python)
    work = out / "live"
    work.mkdir(exist_ok=True)
    (out / "logs").mkdir(exist_ok=True)
    site = plugin_site(work / "site")
    contenders = in_turn([kind.contenders(pair, settings) for pair in pairs(settings, work)])
    device = "cpu" if settings.torch_device.type == "cpu" else "cuda"

    def begin(contender: Contender) -> EngineProcess:
        slug = f"{kind.name}-{contender.key}".replace("/", "-").replace(" ", "-")
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
            **kind.environment(contender, settings, work / "cache" / kind.name),
            **contender.environment,
        }
        told = [*kind.path(settings), os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "plugins"), str(site)]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, told))
        spec = {"module": f"benchmarks.gpu.live.{kind.name}_engine", "device": device, "arguments": contender.arguments}
        return EngineProcess(python, spec, environment, work / f"{slug}.json", out / "logs" / f"{slug}.log")

    plan = course(settings, kind.details)
    race = Race(plan, sink, clock, work / "answers" / kind.name, begin, kind.graph_memory)
    left = race.run(contenders, free_gib(settings))
    if any(race.answers.glob("*.json")) and not clock.over:
        add_identity([c for c in contenders if not c.pair.dummy], plan.flights, race.answers, settings, sink)
    add_results(sink)
    if left:
        raise Unavailable(f"the deadline left {len(left)} rows ({left[0]}, ...): the same command goes on")


def in_turn(lists: list[list[Contender]]) -> list[Contender]:
    """The first of every pair, then the second: what comes last is what a deadline leaves out."""
    longest = max(map(len, lists))
    return [some[n] for n in range(longest) for some in lists if n < len(some)]


def seconds_for(settings: Settings) -> float:
    """Until the deadline, which is never after the limit that the step was given."""
    limit = float(os.environ.get("EAGLE3_STEP_MINUTES", "60")) * 60 - MARGIN_S
    return max(1.0, min(settings.deadline or limit, limit))


def free_gib(settings: Settings) -> float:
    """Memory that engines may share. On a CPU none: one at a time, since they share its cores."""
    if settings.torch_device.type != "cuda":
        return 0.0
    free: int = torch.cuda.mem_get_info(settings.torch_device)[0]
    return free / 2**30 - KEPT_GIB


def kv_gib(target: Path, positions: int, bytes_each: int) -> float:
    """Keys and values of so many positions of a target, with a tenth more for what the drafter keeps."""
    config: dict[str, Any] = json.loads((target / "config.json").read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    each: int = config["num_hidden_layers"] * 2 * kv_heads * size * bytes_each
    return 1.1 * positions * each / 2**30
