"""From rows to results: a contender beside plain decoding at one number of requests in flight, and the table of all."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.live.bars import PAIR, bars
from benchmarks.gpu.live.contenders import CHAIN, USUAL
from benchmarks.gpu.simulate import AcceptanceLaw, expected_length
from benchmarks.gpu.sink import Sink
from eagle3_serving.engine.draft import TreeShape

Row = dict[str, Any]


def results(rows: Sequence[Row]) -> list[Row]:
    """Of every contender and number in flight: medians over the rounds with their range, accepted length, and the ratio to
    plain decoding of the same round. Where acceptance is simulated, the length is the law's for the shape that was drafted,
    and None where that is not known."""
    loads: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if "round" in row and row.get("ok") is not False:
            loads.setdefault((row["pair"], row["contender"], row["in_flight"]), []).append(row)
    starts = {(row["pair"], row["contender"]): row for row in rows if row["key"].endswith("/start")}
    made = []
    for (pair, name, flight), mine in loads.items():
        plain = {row["round"]: row for row in loads.get((pair, "plain", flight), ())}
        times = [row["step_ms"] for row in mine if row["step_ms"] is not None]
        one: Row = {"pair": pair, "contender": name, "in_flight": flight, "simulated": mine[0]["simulated"]}
        if mine[0]["simulated"]:
            one["law"] = mine[0]["law"]
        one["step_ms"] = round(statistics.median(times), 3) if times else None
        one["step_ms_range"] = [min(times), max(times)] if times else None
        one["rounds"] = len(mine)
        lengths = [accepted(row, starts.get((pair, name), {})) for row in mine]
        known = [length for length in lengths if length is not None]
        one["accepted_length"] = round(statistics.median(known), 3) if len(known) == len(lengths) else None
        found = []
        for row, length in zip(mine, lengths, strict=True):
            base = plain.get(row["round"])
            if base and length and row["step_ms_mean"] and base["step_ms_mean"]:
                found.append(length * base["step_ms_mean"] / row["step_ms_mean"])
        one["to_plain"] = round(statistics.median(found), 3) if found else None
        one["to_plain_range"] = [round(min(found), 3), round(max(found), 3)] if found else None
        made.append(one)
    return made


def accepted(row: Row, start: Row) -> float | None:
    """Tokens a pass: measured, or by the law for what was drafted."""
    if not row["simulated"]:
        length: float | None = row["measured_accepted_length"]
        return length
    if row["contender"] == "plain" or row["drafts"] == 0:
        return 1.0
    shape = None if row["shape"] is None else TreeShape(*row["shape"])
    if row["contender"] == "load":
        nodes = round(row["nodes"])
        shape = (
            TreeShape.chain(CHAIN) if nodes == CHAIN else TreeShape(nodes, *USUAL[nodes]) if nodes in USUAL else None
        )
    if shape is None and start.get("drafts_chains"):
        shape = TreeShape.chain(max(1, round(row["nodes"])))
    return None if shape is None else expected_length(AcceptanceLaw(**row["law"]), shape)


def add_results(sink: Sink) -> None:
    """A row `PAIR/NAME/at N` of every result, those of an earlier run made anew."""
    sink.forget(lambda row: "to_plain" in row)
    for one in results(sink.rows):
        sink.add(f"{one['pair']}/{one['contender']}/at {one['in_flight']}", **one)


def table(rows: Sequence[Row], engine: str) -> list[list[str]]:
    """A block a pair, a line a figure: engines down, requests in flight across; then the bars, where their pair ran."""
    made = {(one["pair"], one["contender"], one["in_flight"]): one for one in results(rows)}
    flights = sorted({flight for _, _, flight in made})
    lines = [["engine, figure", *map(str, flights), "start s", "graphs", "graphs GiB"]]
    for pair in dict.fromkeys(row["pair"] for row in rows):
        of_pair = [row for row in rows if row["pair"] == pair]
        lines.append([f"-- {title(of_pair)}"])
        for name in dict.fromkeys(row["contender"] for row in of_pair if "contender" in row):
            mine = [row for row in of_pair if row.get("contender") == name]
            start: Row = next((row for row in mine if row["key"].endswith("/start")), {})
            told = [start.get("start_s"), start.get("graphs"), start.get("graph_gib")]
            cells = [made.get((pair, name, flight)) for flight in flights]
            lines.append([f"{name}: ms a step", *[_cell(c, "step_ms", 2) for c in cells], *map(_text, told)])
            if name != "plain":
                kind = "SIMULATED" if of_pair[0]["simulated"] else "measured"
                lines.append([f"{name}: accepted, {kind}", *[_cell(c, "accepted_length", 2) for c in cells]])
                lines.append([f"{name}: x plain, {kind}", *[_cell(c, "to_plain", 2) for c in cells]])
            lines += _more(name, mine, flights)
        lines += [
            [f"{row['contender']}: {'FAILED' if row['ok'] is False else 'not here'}: {row['why']}"]
            for row in of_pair
            if row.get("why")
        ]
    if any(pair == PAIR for pair, _, _ in made):
        details = [row for row in rows if row.get("pair") == PAIR and "/detail at " in row["key"]]
        lines += [[str(bar)] for bar in bars(list(made.values()), details, engine)]
    return lines


def title(rows: Sequence[Row]) -> str:
    row = rows[0]
    if row["simulated"]:
        law = row["law"]
        return (
            f"{row['pair']}: random weights, SIMULATED acceptance (best child {law['rate']:g}, siblings "
            f"{law['siblings']:g} of the rest): the law's length over the step's measured time"
        )
    ties = next((r for r in rows if r["key"].endswith("/near ties")), None)
    return f"{row['pair']}: real acceptance" + (
        f"; {ties['share']:.1%} of all places have two tokens within {ties['below']:g}" if ties else ""
    )


def _more(name: str, rows: Sequence[Row], flights: Sequence[int]) -> list[list[str]]:
    lines = []
    details = {row["in_flight"]: row for row in rows if "/detail at " in row["key"] and "parts_ms" in row}
    if any(row.get("launches") is not None for row in details.values()):
        shown = [details.get(flight) for flight in flights]
        counts = [
            "-" if row is None else "/".join(f"{row[key]:g}" for key in ("launches", "memcpys", "syncs"))
            for row in shown
        ]
        lines.append([f"{name}: launches/copies/syncs", *counts])
    for flight, row in details.items():
        parts = ", ".join(f"{part} {ms:g}" for part, ms in row["parts_ms"].items())
        lines.append([f"{name}: parts at {flight}, synchronised ms: {parts}"])
    answers = {row["in_flight"]: row for row in rows if "/answers at " in row["key"]}
    if answers:
        shown = [answers.get(flight) for flight in flights]
        cells = ["-" if row is None else f"{row['differing']}/{row['answers']}" for row in shown]
        gaps = [row["largest_gap"] for row in answers.values() if row["largest_gap"] is not None]
        widest = f" (largest gap {max(gaps):.2f})" if gaps else ""
        lines.append([f"{name}: answers that differ from plain's{widest}", *cells])
    return lines


def _cell(row: Row | None, key: str, digits: int) -> str:
    return "-" if row is None or row[key] is None else f"{row[key]:.{digits}f}"


def _text(value: object) -> str:
    return "-" if value is None else str(value)
