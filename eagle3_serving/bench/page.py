"""One HTML file that holds the whole report: no script, no font, no picture from elsewhere."""

import base64
import html
import json

from eagle3_serving.bench.machine import engine_name
from eagle3_serving.bench.plots import frontier_png, speedup_png
from eagle3_serving.bench.record import Row
from eagle3_serving.bench.summary import Point, modes
from eagle3_serving.bench.table import HEADINGS, cells, title

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem; white-space: nowrap; margin-top: 1rem; }
th, td { padding: 0.3rem 0.5rem; text-align: right; border-bottom: 1px solid var(--soft); }
th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.first td { border-top: 2px solid var(--line); } tr.auto { font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots img { flex: 1 1 26rem; min-width: 0; max-width: 100%; background: white; }
.lead { font-size: 1.05rem; } .small { font-size: 0.88rem; opacity: 0.8; } summary { cursor: pointer; }
pre { background: var(--soft); padding: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.82rem; } .warn { background: #fc05; padding: 0.5rem 0.8rem; }
"""
_READ = (
    "plain: without a drafter. own-...: the engine's own EAGLE-3 with the same drafter. auto: this package, which chooses by load. "
    "Medians over the rounds, ranges in brackets. to plain: tokens a second over those of plain decoding in the same round. "
    "accepted: tokens a pass of the target yields. nodes: draft tokens verified in it. of the floor: the share of what the target's "
    "weights would allow at this accepted length, each pass reading them once (memory bandwidth) and using each once a row (matrix "
    "rate); drafter, cache and sampler are taken to be free. identical: every answer is plain decoding's, token for token."
)


def page(head: Row, points: list[Point], command: str) -> str:
    """The report as HTML text."""
    about = head["about"]
    parts = [f"<h1>{_text(engine_name(head))}: EAGLE-3 by load</h1>", f'<p class="small">{_text(_where(head))}</p>']
    if about["simulated_acceptance"] is not None:
        parts.append(
            f'<p class="warn">Acceptance is <b>simulated</b> at {about["simulated_acceptance"]:g} a depth: the kernels are real, '
            "the answers are not.</p>"
        )
    for temperature in sorted({point.temperature for point in points}):
        mine = [point for point in points if point.temperature == temperature]
        parts.append(f"<h2>{_text(title(head, temperature))}</h2>")
        parts.append(f'<p class="lead">{_text(verdict(mine))}</p>')
        parts.append('<div class="plots">')
        for name, png in (
            ("Speed over plain decoding by requests in flight", speedup_png(head, points, temperature)),
            ("Tokens a second of all users against those of one", frontier_png(head, points, temperature)),
        ):
            parts.append(f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(png).decode()}">')
        parts.append("</div>")
        parts.append(_table(mine))
        parts.append(f'<p class="small">{_text(_READ)}</p>')
    parts.append("<h2>How it was measured</h2>")
    parts.append(f"<pre>{_text(command)}</pre>")
    parts.append(
        f"<details><summary>All that was written down</summary><pre>{_text(json.dumps(head, indent=1))}</pre></details>"
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f"<title>{_text(engine_name(head))}: EAGLE-3 by load</title>\n<style>{_STYLE}</style>\n<body>\n{body}\n</body>\n</html>\n"
    )


def verdict(points: list[Point]) -> str:
    """What a person came for: our setting (auto, else the last) against plain decoding by load, and whether answers differ."""
    ours = next((mode for mode in ("auto", *reversed(modes(points))) if any(p.mode == mode for p in points)), "plain")
    line = sorted((p for p in points if p.mode == ours), key=lambda point: point.concurrency)
    ratios = ", ".join(f"{point.ratio:.2f}x at {point.concurrency}" for point in line)
    told = f"{ours} over plain decoding, by requests in flight: {ratios}."
    different = sorted({point.mode for point in points if point.identical is False})
    if different:
        return f"{told} ANSWERS DIFFER from plain decoding's with {', '.join(different)}."
    same = all(point.identical for point in points)
    return f"{told} Every answer is plain decoding's, token for token." if same else told


def _where(head: Row) -> str:
    """Device, threads, versions."""
    machine = head["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    return f"Measured on {machine['device']}{threads}{'; ' if versions else ''}{versions}."


def _table(points: list[Point]) -> str:
    rows = ["<tr>" + "".join(f"<th>{_text(heading)}</th>" for heading in HEADINGS) + "</tr>"]
    before = None
    for point in sorted(points, key=lambda point: point.concurrency):
        kinds = ["first"] * (point.concurrency != before) + ["auto"] * (point.mode == "auto")
        before = point.concurrency
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells(point)) + "</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(rows) + "\n</table></div>"


def _text(value: object) -> str:
    return html.escape(str(value))
