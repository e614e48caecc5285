"""From cells to the rows of a report: medians over the rounds, ratios to plain decoding within each round."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eagle3_serving.bench.floors import Floors
from eagle3_serving.bench.record import Row

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Point:
    """One setting under one load: medians over the rounds, with `[slowest, fastest]` where a range is given.

    `ratio`: to plain decoding of the same round. `floor_share`: of the tokens a second that memory bandwidth or matrix
    rate would allow at this accepted length (`bench.floors`). `identical`: every answer was plain decoding's; None where that cannot be said.
    `law`: that sampled answers are of the target's law, as tried; None where it was not.
    """

    engine: str
    mode: str
    concurrency: int
    temperature: float
    rounds: int
    tokens_per_second: float
    tokens_per_second_range: tuple[float, float]
    ratio: float
    ratio_range: tuple[float, float]
    tokens_per_second_per_user: float | None
    first_token_s: dict[str, float]
    token_s: dict[str, float] | None
    accepted_length: float
    nodes_per_step: float
    floor_share: float | None
    identical: bool | None
    gpu_memory_gib: float | None
    law: Row | None = None

    def to_json(self) -> Row:
        return asdict(self)


def laws(rows: Sequence[Row]) -> dict[tuple[float, str], Row]:
    """What was found of each temperature's and setting's law: `p_value`, `draws`, `lawful`."""
    return {(row["temperature"], row["setting"]): row["law"] for row in rows if "law" in row}


def summarise(head: Row, rows: list[Row]) -> list[Point]:
    """In the order in which settings and loads first appear; a load without plain decoding is left out, and so is a setting
    that samples by another law than the target's."""
    law = laws(rows)
    wrong = {key for key, found in law.items() if not found["lawful"]}
    rows = [row for row in rows if "law" not in row and (row["temperature"], row["setting"]) not in wrong]
    cells = {(r["temperature"], r["concurrency"], r["setting"], r["round"]): r for r in rows}
    groups: dict[tuple[float, int, str], list[Row]] = {}
    for row in rows:
        if (row["temperature"], row["concurrency"], "plain", row["round"]) in cells:
            groups.setdefault((row["temperature"], row["concurrency"], row["setting"]), []).append(row)
    return [
        _point(
            head,
            *key,
            law.get((key[0], key[2])),
            group,
            [cells[(key[0], key[1], "plain", row["round"])] for row in group],
        )
        for key, group in groups.items()
    ]


def _point(
    head: Row,
    temperature: float,
    concurrency: int,
    setting: str,
    law: Row | None,
    group: list[Row],
    plain: list[Row],
) -> Point:
    rates = [row["tokens_per_second"] for row in group]
    ratios = [rate / base["tokens_per_second"] for rate, base in zip(rates, plain, strict=True)]
    accepted = statistics.mean(row["accepted_length"] for row in group)
    nodes = statistics.mean(row["nodes_per_step"] for row in group)
    same = [row["identical"] == row["requests"] for row in group if row.get("identical") is not None]
    users = [row["tokens_per_second_per_user"] for row in group if row["tokens_per_second_per_user"]]
    memory = [row["gpu_memory_gib"] for row in group if row["gpu_memory_gib"] is not None]
    return Point(
        engine=head["about"]["engine"],
        mode=setting,
        concurrency=concurrency,
        temperature=temperature,
        rounds=len(group),
        tokens_per_second=statistics.median(rates),
        tokens_per_second_range=(min(rates), max(rates)),
        ratio=statistics.median(ratios),
        ratio_range=(min(ratios), max(ratios)),
        tokens_per_second_per_user=statistics.median(users) if users else None,
        first_token_s=_medians([row["first_token_s"] for row in group]),
        token_s=_medians([row["token_s"] for row in group]) if all(row["token_s"] for row in group) else None,
        accepted_length=accepted,
        nodes_per_step=nodes,
        floor_share=_floor_share(head, statistics.median(rates), concurrency, accepted, nodes),
        identical=all(same) if same else None,
        gpu_memory_gib=max(memory) if memory else None,
        law=law,
    )


def _medians(percentiles: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in percentiles) for name in percentiles[0]}


def _floor_share(head: Row, rate: float, concurrency: int, accepted: float, nodes: float) -> float | None:
    machine: dict[str, Any] = head["machine"]
    if "floors" not in machine:
        return None
    said = machine["floors"]
    floors = Floors(said["read_bytes_per_second"], said["operations_per_second"], said["device"])
    best = floors.tokens_per_second(
        machine["target_parameters"], _BYTES[head["about"]["dtype"]], concurrency, accepted, nodes
    )
    return rate / best


def loads(points: list[Point]) -> list[int]:
    return sorted({point.concurrency for point in points})


def modes(points: list[Point]) -> list[str]:
    """Plain first, then as measured."""
    return list(dict.fromkeys(["plain", *(point.mode for point in points)]))
