"""Whether anything is lost under mixed requests that end early: five hundred of each engine, and very many in pieces."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import listed, markdown, text
from benchmarks.soak import lost

Piece = dict[str, Any]
NAMES = {"vllm": "vLLM", "sglang": "SGLang"}
GRAMMARS, SAMPLED = ("regular expression", "JSON grammar"), ("T = 1", "T = 1, top-p")


@text("answer-soak")
def answer() -> str:
    pieces = _pieces()
    if broken := [piece for piece in pieces if lost(piece)]:
        raise ValueError(f"{len(broken)} pieces lost something: the sentence would be untrue")
    by_engine = {name: _sum([piece for piece in pieces if piece["engine"] == name], "requests") for name in NAMES}
    counts = listed([f"{count:,} on {NAMES[name]}" for name, count in by_engine.items()])
    return (
        f"No: after {_sum(pieces, 'requests'):,} mixed requests with trees on one rank and two ({counts}; {_sum(pieces, 'aborted'):,} aborted, "
        f"{_sum(pieces, 'preempted'):,} preempted) every block and slot is free again, no error is in a log and no process is left; all "
        f"{_sum(pieces, 'compared'):,} greedy answers that were compared are plain decoding's."
    )


@text("soak-long")
def long() -> str:
    groups = _groups()
    counted = {
        "requests": ("requests",),
        "with a grammar": GRAMMARS,
        "at temperature 1": SAMPLED,
        "aborted or hung up on": ("aborted",),
        "preempted": ("preempted",),
        "prompt tokens found in the prefix cache": ("prefix_hits",),
        "tokens said": ("tokens",),
        "passes of a request that verify (SGLang: or that could)": ("drafts",),
        "drafts accepted": ("accepted",),
        "greedy answers compared with plain decoding's": ("compared",),
        "of these differing": ("differing",),
        "failed": ("failed",),
    }
    rows: list[list[object]] = [["engines' lives (pieces)", *map(len, groups.values())]]
    rows += [[row, *(f"{_sum(group, *names):,}" for group in groups.values())] for row, names in counted.items()]
    rows += [
        ["pieces that end with the free blocks (vLLM), used slots (SGLang) of their start", *_each(_as_before)],
        ["lines of errors in a log", *_each(lambda group: sum(len(piece["wrong_lines"]) for piece in group))],
        ["processes left", *_each(lambda group: sum(len(piece["processes_left"]) for piece in group))],
        ["seconds of serving", *_each(lambda group: f"{sum(piece['serving_s'] for piece in group):,.0f}")],
    ]
    return markdown(["", *groups], rows)


def _pieces() -> list[Piece]:
    return raw.lines("soak-long")[1:]


def _groups() -> dict[str, list[Piece]]:
    groups: dict[str, list[Piece]] = {}
    for name, ranks in (("vllm", 1), ("vllm", 2), ("sglang", 1), ("sglang", 2)):
        group = [piece for piece in _pieces() if (piece["engine"], piece["ranks"]) == (name, ranks)]
        groups[f"{NAMES[name]}, {ranks} rank{'s' * (ranks > 1)}"] = group
    return groups


def _each(figure: Callable[[list[Piece]], object]) -> list[object]:
    return [figure(group) for group in _groups().values()]


def _as_before(group: Sequence[Piece]) -> str:
    return f"{sum(piece['held'][0] == piece['held'][1] for piece in group)} of {len(group)}"


def _sum(pieces: Sequence[Piece], *names: str) -> int:
    """Over the pieces, of counts or of kinds of requests."""
    return round(sum({**piece, **piece["kinds"]}.get(name, 0) for piece in pieces for name in names))


@text("soak")
def soak() -> str:
    vllm, sglang = raw.table("vllm-soak")["soak"], raw.table("sglang-soak")
    asked = sum(sglang["requests"].values())
    fell = ", ".join(f"{count} with {name}" for name, count in vllm["fallbacks"].items())
    return markdown(
        ["", "vLLM with trees", "SGLang, the batch choosing the tree"],
        [
            ["requests", vllm["requests"], asked],
            ["aborted or hung up on", vllm["requests"] - vllm["finished"], sglang["requests"]["aborted"]],
            [
                "free KV blocks before and after (vLLM), used slots (SGLang)",
                *(" / ".join(f"{n:.0f}" for n in pair) for pair in (vllm["free_blocks"], sglang["used_slots"])),
            ],
            ["errors in the log", vllm["errors_in_log"], len(sglang["log_lines"])],
            [
                "drafted as a path, or plainly",
                fell.replace("min_tokens", "a minimum length"),
                _sglang_kinds(sglang["requests"]),
            ],
        ],
    )


def _sglang_kinds(requests: dict[str, int]) -> str:
    return ", ".join(
        f"{count} with {name}" for name, count in requests.items() if name not in ("aborted", "plain text")
    )
