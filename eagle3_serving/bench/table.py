"""The report for a person at a terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from eagle3_serving.bench.machine import engine_name
from eagle3_serving.bench.record import Row
from eagle3_serving.bench.summary import Point

HEADINGS = (
    "in flight",
    "setting",
    "tokens/s",
    "to plain",
    "per user",
    "first token p50 / p99",
    "a token p50 / p99",
    "accepted",
    "nodes",
    "of the floor",
    "identical",
)


def title(head: Row, temperature: float) -> str:
    about = head["about"]
    text = f"{engine_name(head)}, {about['target']}, {about['dtype']}, T={temperature:g}, {head['machine']['device']}"
    if about["simulated_acceptance"] is not None:
        text += f", SIMULATED acceptance of {about['simulated_acceptance']:g} a depth"
    return text


def cells(point: Point) -> list[str]:
    """What stands under `HEADINGS`."""
    low, high = point.ratio_range
    spread = f" ({low:.2f}-{high:.2f})" if low != high else ""
    return [
        str(point.concurrency),
        point.mode,
        f"{point.tokens_per_second:.1f}",
        f"{point.ratio:.2f}x{spread}",
        f"{point.tokens_per_second_per_user:.1f}" if point.tokens_per_second_per_user else "-",
        f"{point.first_token_s['p50']:.2f} / {point.first_token_s['p99']:.2f} s",
        f"{1e3 * point.token_s['p50']:.0f} / {1e3 * point.token_s['p99']:.0f} ms" if point.token_s else "-",
        f"{point.accepted_length:.2f}",
        f"{point.nodes_per_step:.1f}",
        f"{point.floor_share:.0%}" if point.floor_share is not None else "-",
        {True: "yes", False: "NO", None: "-"}[point.identical],
    ]


# what fits a terminal of 80 columns
SHORT = ("load", "setting", "tok/s", "ratio", "range", "/user", "accept", "floor", "same")
LEGEND = (
    "load: requests in flight. ratio: to plain, range over the rounds. /user: tokens a second of one.\n"
    "accept: tokens a target pass. floor: share of what memory bandwidth or matrix rate allow. same: every token is plain decoding's."
)


def short_cells(point: Point) -> list[str]:
    """What stands under `SHORT`."""
    low, high = point.ratio_range
    return [
        str(point.concurrency),
        point.mode,
        f"{point.tokens_per_second:.1f}",
        f"{point.ratio:.2f}x",
        f"{low:.2f}-{high:.2f}" if point.rounds > 1 and point.mode != "plain" else "",
        f"{point.tokens_per_second_per_user:.1f}" if point.tokens_per_second_per_user else "-",
        f"{point.accepted_length:.2f}",
        f"{point.floor_share:.0%}" if point.floor_share is not None else "-",
        {True: "yes", False: "NO", None: "-"}[point.identical],
    ]


def print_points(head: Row, points: list[Point], console: Console) -> None:
    for temperature in sorted({point.temperature for point in points}):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title(head, temperature), title_justify="left")
        for heading in SHORT:
            table.add_column(heading, justify="left" if heading == "setting" else "right", no_wrap=True)
        mine = [point for point in points if point.temperature == temperature]
        for concurrency in sorted({point.concurrency for point in mine}):
            for point in (point for point in mine if point.concurrency == concurrency):
                table.add_row(*short_cells(point), style="bold" if point.mode == "auto" else "")
            table.add_section()
        console.print(table)
    console.print(LEGEND, style="dim", highlight=False)
