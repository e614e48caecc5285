"""One step as an SVG file of its own, with what it means in words below."""

from html import escape

from eagle3_serving.errors import InputError
from eagle3_serving.show.drawing import draw
from eagle3_serving.show.pieces import cells, visible
from eagle3_serving.show.record import About, Story
from eagle3_serving.show.theme import SHAPES, VARIABLES
from eagle3_serving.show.words import LEGEND, heading

_EDGE, _LINE, _SAMPLE = 20, 22, 84
_TEXT = """
.paper { fill: var(--paper); } .title { font: 600 15px system-ui, sans-serif; fill: var(--ink); }
.said { font: 12.5px system-ui, sans-serif; fill: var(--soft); }
"""
_TITLE_CELL, _CELL = 9.0, 7.0  # of a letter of the title and of the sentences, at most on average


def drawable(story: Story, asked: int | None) -> int:
    """The place of the step that a person asked for, counted from 1, or of the one that wrote most. Raises InputError where it
    drafted nothing."""
    number = story.best if asked is None else asked - 1
    drawn = [place for place, step in enumerate(story.steps, 1) if step.own is not None]
    if number + 1 in drawn:
        return number
    which = f"those that have one are {', '.join(map(str, drawn))}" if drawn else "none has; ask for more --max-tokens"
    raise InputError(f"--step: step {number + 1} of this answer has no tree: {which}")


def figure(story: Story, number: int, about: About) -> str:
    """Step `number`, counted from 0, as SVG text."""
    step = story.steps[number]
    tree = draw(step)
    title = heading(step)
    asked = f"{about.target} answers: {visible(story.prompt, ' ')} The drafter is {about.drafter}."
    width = (
        max(tree.width, _TITLE_CELL * cells(title), _CELL * max(cells(what) for _, _, what in LEGEND) + _SAMPLE)
        + 2 * _EDGE
    )
    top, legend = 2 * _EDGE + 8, 2 * _EDGE + 8 + tree.height + 22
    height = legend + _LINE * len(LEGEND) + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img" aria-labelledby="title about">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="about">{escape(asked)}</desc>',
        f"<style>{VARIABLES}{SHAPES}{_TEXT}</style>",
        '<rect class="paper" width="100%" height="100%" rx="8"/>',
        f'<text class="title" x="{_EDGE}" y="{_EDGE + 11}">{escape(title)}</text>',
        f'<g class="tree" transform="translate({_EDGE} {top})">\n{tree.shapes}\n</g>',
    ]
    for place, (kind, name, what) in enumerate(LEGEND):
        y = legend + _LINE * place
        sample = f'<rect x="{_EDGE}" y="{y - 12}" width="{_SAMPLE}" height="17" rx="4"/><text x="{_EDGE + _SAMPLE / 2:g}" y="{y + 1}" text-anchor="middle">{name}</text>'
        parts.append(f'<g class="tree"><g class="{kind}">{sample}</g></g>')
        parts.append(f'<text class="said" x="{_EDGE + _SAMPLE + 10}" y="{y + 1}">{escape(what)}</text>')
    return "\n".join([*parts, "</svg>", ""])
