"""The sweep: every setting at every concurrency, round by round, each on the same prompts one after the other."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from tqdm import tqdm

from eagle3_serving.bench.floors import count_parameters, measure_floors
from eagle3_serving.bench.load import Load, Outcome, Side, figures
from eagle3_serving.bench.machine import machine
from eagle3_serving.bench.options import BenchOptions
from eagle3_serving.bench.record import Record, Row
from eagle3_serving.bench.summary import laws
from eagle3_serving.eval import law
from eagle3_serving.eval.prompts import by_family, read_prompts

_WARM_TOKENS = 8


@dataclass(frozen=True)
class Cell:
    """One measurement: a setting under a load, in a round."""

    round: int
    concurrency: int
    temperature: float
    setting: str


def run_sweep(options: BenchOptions) -> Record:
    """Measures what the file does not hold yet. Every cell is written as it ends; the same call goes on after a stop.

    A setting whose sampled answers are not of the target's law is not measured: its row says so (`laws`).
    Raises InputError for what cannot be used, CheckError where a server fails; what was measured stays.
    """
    prompts = mixed_prompts(options)
    done = Record(options.out, options.about(prompts), machine(options)) if options.out.exists() else None
    known = laws(done.rows if done else ())
    untried = [key for key in sampled(options) if key not in known]
    cells = [cell for cell in all_cells(options) if done is None or not done.has(**cell.__dict__)]
    if done is not None and not untried and not any(_lawful(cell, known) for cell in cells):
        return done
    # measured before a server is up, and once a file
    record = done or Record(options.out, options.about(prompts), {**machine(options), **_floors(options)})
    with _open(options) as sides:
        warm: set[tuple[int, str]] = set()
        wanted: dict[int, list[tuple[int, ...]]] = {}
        plain: dict[float, list[law.Answers]] = {}
        with tqdm(total=len(cells), unit="cell", desc=options.engine) as bar:
            for temperature, setting in untried:
                bar.set_postfix_str(f"{setting}: is T={temperature:g} the target's law")
                if temperature not in plain:
                    plain[temperature] = law.sampled(sides["plain"].draw, temperature)
                found = law.judge(plain[temperature], law.sampled(sides[setting].draw, temperature))
                record.add({"law": found.to_json(), "setting": setting, "temperature": temperature})
            known = laws(record.rows)
            cells = [cell for cell in cells if _lawful(cell, known)]
            bar.reset(len(cells))
            for cell in cells:
                bar.set_postfix_str(f"{cell.concurrency} in flight, {cell.setting}")
                asked = requests_for(prompts, cell.concurrency, options.least)
                side = sides[cell.setting]
                if (cell.concurrency, cell.setting) not in warm:
                    side.run(asked[: cell.concurrency], Load(cell.concurrency, _WARM_TOKENS))
                    warm.add((cell.concurrency, cell.setting))
                load = Load(cell.concurrency, options.tokens, cell.temperature, options.natural_end)
                outcome = side.run(asked, load)
                row: Row = {**cell.__dict__, **figures(outcome), "gpu_memory_gib": _gpu_memory()}
                if options.exact and cell.temperature == 0:
                    row["identical"] = _identical(outcome, cell, wanted)
                record.add(row)
                bar.update()
    return record


def sampled(options: BenchOptions) -> list[tuple[float, str]]:
    """Temperatures and settings whose answers' law is tried before they are measured; what is simulated has none."""
    if options.simulate is not None:
        return []
    names = [setting.name for setting in options.chosen if setting.name != "plain"]
    return [(temperature, name) for temperature in options.temperatures if temperature > 0 for name in names]


def _lawful(cell: Cell, known: dict[tuple[float, str], Row]) -> bool:
    found = known.get((cell.temperature, cell.setting))
    return found is None or bool(found["lawful"])


def all_cells(options: BenchOptions) -> Iterator[Cell]:
    """Plain first at each load of a round, for the others are held against its answers; the rest take turns."""
    names = [setting.name for setting in options.chosen if setting.name != "plain"]
    for turn, temperature, concurrency in itertools.product(
        range(options.repeats), options.temperatures, options.concurrency
    ):
        shift = turn % len(names) if names else 0
        for name in ["plain", *names[shift:], *names[:shift]]:
            yield Cell(turn, concurrency, temperature, name)


def mixed_prompts(options: BenchOptions) -> list[str]:
    """First turns, the families taking turns, so that any number of them is a mix."""
    families = by_family(read_prompts(options.prompts, options.limit)).values()
    return [p.turns[0] for row in itertools.zip_longest(*families) for p in row if p is not None]


def requests_for(prompts: Sequence[str], concurrency: int, least: int) -> list[str]:
    """What a load asks: at least `least`, and as many as fill its last round."""
    return [prompts[place % len(prompts)] for place in range(count_for(concurrency, least))]


def count_for(concurrency: int, least: int) -> int:
    """How many requests that is."""
    count = max(concurrency, least)
    return count - count % concurrency


def _floors(options: BenchOptions) -> Row:
    floors = measure_floors(options.dtype)
    return {"floors": floors.to_json(), "target_parameters": count_parameters(options.target)}


def _open(options: BenchOptions) -> AbstractContextManager[dict[str, Side]]:
    opener: Callable[[BenchOptions], AbstractContextManager[dict[str, Side]]]
    if options.engine == "embedded":
        from eagle3_serving.bench.embedded import open_embedded as opener
    else:
        from eagle3_serving.bench.http import open_servers as opener
    return opener(options)


def _identical(outcome: Outcome, cell: Cell, wanted: dict[int, list[tuple[int, ...]]]) -> int | None:
    """How many answers are plain decoding's, token for token; None where a resumed run did not see plain's."""
    said = [answer.token_ids for answer in outcome.answers]
    if cell.setting == "plain":
        wanted.setdefault(cell.concurrency, said)
    if cell.concurrency not in wanted:
        return None
    return sum(a == b for a, b in zip(said, wanted[cell.concurrency], strict=True))


def _gpu_memory() -> float | None:
    """GiB in use on the first GPU, everybody's; None without one."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return float(total - free) / 2**30
