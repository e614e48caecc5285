"""The race: waves of engines that fit the device together, started side by side, measured one at a time in turns.

Each contender's rows, by key: `PAIR/NAME/start`, `PAIR/NAME/at N/round R`, `PAIR/NAME/detail at N`. What failed is a row
with its error, and the others go on; the next run tries it again. What the deadline cut off is measured by the next run.
"""

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.gpu.live.contenders import Contender, waves
from benchmarks.gpu.live.load import Load, figures
from benchmarks.gpu.live.processes import EngineError, EngineProcess, EngineUnavailable
from benchmarks.gpu.simulate import AcceptanceLaw
from benchmarks.gpu.sink import Sink

WARM_TOKENS = 12
LEAST_S = 10.0  # with less than that left nothing is begun


@dataclass(frozen=True)
class Course:
    """Requests in flight, how often each is measured, tokens a request, and where a step is taken apart. `least_prompts`
    of a load. `start_s` and `each_s` limit a wave's start and an order."""

    flights: tuple[int, ...]
    rounds: int
    tokens: int
    detail_at: tuple[int, ...]
    least_prompts: int
    start_s: float
    each_s: float
    law: AcceptanceLaw


class Clock:
    """Seconds until the deadline."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    @property
    def over(self) -> bool:
        return self.left() < LEAST_S


class Race:
    """`begin` starts a contender's process. `graph_memory` finds, in an engine's log, GiB that its graphs took."""

    def __init__(
        self,
        course: Course,
        sink: Sink,
        clock: Clock,
        answers: Path,
        begin: Callable[[Contender], EngineProcess],
        graph_memory: re.Pattern[str] | None = None,
    ) -> None:
        self.course, self.sink, self.clock, self.answers = course, sink, clock, answers
        self.begin, self.graph_memory = begin, graph_memory
        self.failed: set[str] = set()

    def run(self, contenders: Sequence[Contender], gib: float) -> list[str]:
        """Keys of what the deadline left unmeasured."""
        # answers that were wrong stay wrong
        self.sink.forget(lambda row: row.get("ok") is False and "why" in row)
        self.failed = {f"{row['pair']}/{row['contender']}" for row in self.sink.rows if "why" in row}
        todo = [c for c in contenders if c.key not in self.failed and self.missing(c)]
        for wave in waves(todo, gib):
            if self.clock.over:
                break
            self.wave(wave)
        return [key for c in contenders if c.key not in self.failed for key in self.missing(c)]

    def missing(self, contender: Contender) -> list[str]:
        return [key for key, _ in self.orders(contender) if not self.sink.has(key)]

    def orders(self, contender: Contender) -> Iterator[tuple[str, tuple[str, int, int]]]:
        """All rows' keys but the start's, with what is asked: load or detail, requests in flight, round."""
        for turn in range(self.course.rounds):
            for flight in self.course.flights:
                yield f"{contender.key}/at {flight}/round {turn}", ("load", flight, turn)
        for flight in self.course.detail_at:
            yield f"{contender.key}/detail at {flight}", ("detail", flight, 0)

    def wave(self, wave: Sequence[Contender]) -> None:
        print(f"starting {', '.join(c.key for c in wave)}; {self.clock.left():.0f} s left", flush=True)
        running: dict[str, EngineProcess] = {}
        try:
            for contender in wave:
                running[contender.key] = self.begin(contender)
            for contender in self.started(wave, running):
                running[contender.key].end()
                del running[contender.key]
            alive = [c for c in wave if c.key in running]
            warm: set[tuple[str, int]] = set()
            todo = {c.key: dict(self.orders(c)) for c in alive}
            for kind, flight, turn in dict.fromkeys(what for orders in todo.values() for what in orders.values()):
                # each turn another order, so that none is always the one behind another
                random.Random(f"{turn} {flight}").shuffle(alive)
                for contender in list(alive):
                    key = next(k for k, what in todo[contender.key].items() if what == (kind, flight, turn))
                    if self.sink.has(key):
                        continue
                    if self.clock.over:
                        return
                    if not self.measure(contender, running[contender.key], key, (kind, flight, turn), warm):
                        running.pop(contender.key).end()
                        alive.remove(contender)
        finally:
            for process in running.values():
                process.end()

    def started(self, wave: Sequence[Contender], running: dict[str, EngineProcess]) -> Iterator[Contender]:
        """Writes every contender's start; gives those that did not."""
        waiting = list(wave)
        begun = time.monotonic()
        while waiting:
            if self.clock.over:  # the deadline's doing, not theirs
                yield from waiting
                return
            late = time.monotonic() - begun > self.course.start_s
            for contender in [c for c in waiting if late or running[c.key].poll()]:
                waiting.remove(contender)
                process, key = running[contender.key], f"{contender.key}/start"
                try:
                    if late and not process.poll():
                        raise EngineError(process.last_words(f"not ready in {self.course.start_s:.0f} s"))
                    about = process.answer(5.0)
                except EngineError as error:
                    self.fail(contender, key, error)
                    yield contender
                    continue
                if not self.sink.has(key):
                    seconds = round(time.monotonic() - process.started, 1)
                    beside = len(wave) - 1
                    if about.get("graph_gib") is None:
                        about["graph_gib"] = self.graphs_in(process.log)
                    about |= {"start_s": seconds, "started_beside": beside}
                    self.sink.add(key, **self.labels(contender), **about)
            time.sleep(0.05)

    def graphs_in(self, log: Path) -> float | None:
        if self.graph_memory is None:
            return None
        found = [float(text) for text in self.graph_memory.findall(log.read_text(errors="replace"))]
        return round(sum(found), 3) if found else None

    def measure(
        self,
        contender: Contender,
        process: EngineProcess,
        key: str,
        what: tuple[str, int, int],
        warm: set[tuple[str, int]],
    ) -> bool:
        """False where the contender is lost."""
        kind, flight, turn = what
        prompts = self.prompts(contender, flight)

        def ask(**order: Any) -> dict[str, Any]:
            return process.ask(min(self.course.each_s, self.clock.left()), **order)

        try:
            if kind == "load" and (contender.key, flight) not in warm:
                ask(do="load", prompts=prompts[:flight], in_flight=flight, tokens=WARM_TOKENS)
                warm.add((contender.key, flight))
            if kind == "detail":
                answer = ask(do="detail", prompts=prompts[:flight], in_flight=flight)
                self.sink.add(key, **self.labels(contender), in_flight=flight, **answer)
                return True
            answer = ask(do="load", prompts=prompts, in_flight=flight, tokens=self.course.tokens)
        except EngineError as error:
            if self.clock.over:
                return False  # the deadline's doing, not the engine's
            self.fail(contender, key, error)
            return False
        load = Load(**answer)
        if turn == 0 and not contender.pair.dummy:
            self.answers.mkdir(parents=True, exist_ok=True)
            answers_file(self.answers, contender, flight).write_text(json.dumps(load.answers))
        self.sink.add(key, **self.labels(contender), in_flight=flight, round=turn, **figures(load, flight))
        return True

    def prompts(self, contender: Contender, flight: int) -> list[list[int]]:
        wanted = flight if contender.pair.dummy else max(flight, self.course.least_prompts)
        return [list(prompt) for prompt in islice(cycle(contender.pair.prompts), wanted)]

    def labels(self, contender: Contender) -> dict[str, Any]:
        made: dict[str, Any] = {"pair": contender.pair.name, "contender": contender.name}
        made["shape"] = None if contender.shape is None else list(asdict(contender.shape).values())
        made["simulated"] = contender.pair.dummy
        return made | ({"law": asdict(self.course.law)} if contender.pair.dummy else {})

    def fail(self, contender: Contender, key: str, error: EngineError) -> None:
        self.failed.add(contender.key)
        ok = None if isinstance(error, EngineUnavailable) else False
        self.sink.add(key, **self.labels(contender), ok=ok, why=str(error))


def answers_file(folder: Path, contender: Contender, flight: int) -> Path:
    return folder / f"{contender.pair.name}-{contender.name}-{flight}.json"
