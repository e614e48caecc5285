"""What must come out at 8B shape on an H100, held against what did: met, MISSED, or unproven where it was not measured."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
PAIR = "8B shape"
# milliseconds a step by nodes of a vLLM tree, by SGLang's name, by requests in flight
VLLM_MS = {16: {1: 9.5, 4: 10.2, 16: 12.5}, 60: {1: 12.0}}
SGLANG_MS = {1: 8.6, 8: 9.6}
LAUNCHES, SYNCS = 25, 0
OVER_CHAIN, OVER_PLAIN = 1.15, 2.9
CHAINS = ("vllm-chain-3", "chain-3")
OWN = ("own:3:4:8", "own-adaptive")


class Bar(NamedTuple):
    """`found` None: unproven. `most`: it may be that much at most, else that much at least."""

    what: str
    found: float | None
    bound: float
    most: bool

    def __str__(self) -> str:
        sign = "<=" if self.most else ">="
        if self.found is None:
            return f"bar, on an H100: {self.what} {sign} {self.bound:g}: unproven"
        met = self.found <= self.bound if self.most else self.found >= self.bound
        return f"bar, on an H100: {self.what} {sign} {self.bound:g}: {self.found:g}, {'met' if met else 'MISSED'}"


def bars(results: Sequence[Row], details: Sequence[Row], engine: str) -> Iterator[Bar]:
    """Of `engine`'s step: `results` as `report.results` makes them, `details` the rows of steps taken apart."""
    found = {(one["contender"], one["in_flight"]): one for one in results if one["pair"] == PAIR}

    def figure(names: Sequence[str], flight: int, key: str, best: Any = max) -> float | None:
        values = [found[name, flight][key] for name in names if (name, flight) in found]
        known = [value for value in values if value is not None]
        return best(known) if known else None

    if engine == "sglang":
        for flight, bound in SGLANG_MS.items():
            yield Bar(f"SGLang, 3:4:8, ms at {flight}", figure(["3:4:8"], flight, "step_ms"), bound, True)
        others: tuple[str, ...] = OWN
    else:
        yield from _vllm(found, details, figure)
        others = CHAINS[:1]
    for flight in (1, 4, 16, 64):
        chosen = "auto" if engine == "sglang" else "load"
        best, auto = figure(["plain", *others], flight, "to_plain"), figure([chosen], flight, "to_plain")
        what = f"{chosen}, x the better of plain and {' or '.join(others)} at {flight}"
        yield Bar(what, round(auto / best, 3) if auto and best else None, 1.0, False)


def _vllm(found: dict[tuple[str, int], Row], details: Sequence[Row], figure: Any) -> Iterator[Bar]:
    trees = {nodes: trees_of(nodes, found) for nodes in VLLM_MS}
    for nodes, bounds in VLLM_MS.items():
        for flight, bound in bounds.items():
            yield Bar(f"a tree of {nodes}, ms at {flight}", figure(trees[nodes], flight, "step_ms", min), bound, True)
    for key, bound in (("launches", LAUNCHES), ("syncs", SYNCS)):
        counts = [row[key] for row in details if row["contender"] in trees[16] and row.get(key) is not None]
        yield Bar(f"a tree of 16, {key} a step", max(counts) if counts else None, bound, True)
    tree = figure([name for name, _ in found if name.startswith("tree-")], 1, "to_plain")
    chain = figure(CHAINS, 1, "to_plain")
    over = round(tree / chain, 3) if tree and chain else None
    yield Bar("the best tree, simulated, x the best chain at 1", over, OVER_CHAIN, False)
    yield Bar("the best tree, simulated, x plain at 1", tree, OVER_PLAIN, False)


def trees_of(nodes: int, found: dict[tuple[str, int], Row]) -> list[str]:
    names = dict.fromkeys(name for name, _ in found)
    return [name for name in names if name == f"tree-{nodes}" or name.startswith(f"tree-{nodes}-")]
