"""One step's tree as SVG shapes: the tokens as boxes from left to right, lines as thick as they were likely."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from eagle3_serving.show.layout import rows
from eagle3_serving.show.pieces import cells, shortened, visible
from eagle3_serving.show.record import Node, Step
from eagle3_serving.show.words import percent, tip

ROW, BOX, GAP, PAD = 25, 20, 44, 7  # of a row, a box, between two columns, beside a box's text
LETTER, SIZE = 7.25, 12  # a fixed-width font's letter is 0.6 of its size wide, or a little more
MARGIN, HEAD = 2, 24
NARROWEST = 46.0  # of a column, for what stands at its head
MOST_CELLS = 16  # of a token
ON_PATH = ("accepted", "own")
THIN, THICK = 0.75, 6.0
STANDS_OUT = 1.75  # least thickness of the path


@dataclass(frozen=True)
class Box:
    """A box as it stands: `parent` is a box's index, None at the root."""

    kind: str
    text: str
    tip: str
    parent: int | None
    depth: int
    reach: float
    note: str = ""

    @property
    def width(self) -> float:
        return 2 * PAD + LETTER * (cells(self.text) + (cells(self.note) + 1 if self.note else 0))


@dataclass(frozen=True)
class Drawing:
    """Shapes of `width` by `height`, to be put into an svg element or a group of one."""

    shapes: str
    width: float
    height: float


def draw(step: Step) -> Drawing:
    """A step that drafted. Boxes are of the classes root, own, and a node's fate; `own` is drawn where the walk ended."""
    boxes = _boxes(step)
    children: list[list[int]] = [[] for _ in boxes]
    for index, box in enumerate(boxes):
        if box.parent is not None:
            children[box.parent].append(index)
    row = rows(children)
    depths = max(box.depth for box in boxes) + 1
    widths = [max([NARROWEST, *(box.width for box in boxes if box.depth == depth)]) for depth in range(depths)]
    left = [MARGIN + sum(widths[:depth]) + GAP * depth for depth in range(depths)]
    middle = [HEAD + ROW * at + ROW / 2 for at in row]
    width, height = left[-1] + widths[-1] + MARGIN, HEAD + ROW * (max(row) + 1) + MARGIN
    parts = [*_head(left, step), *_lines(boxes, left, widths, middle), *_shapes(boxes, left, middle)]
    return Drawing("\n".join(parts), width, height)


def _boxes(step: Step) -> list[Box]:
    """The root, then the nodes, each parent before its children and siblings likeliest first; before those of the end of the
    walk the target's own token, so that the walk goes on in a straight line."""
    assert step.root is not None and step.own is not None
    boxes = [Box("root", _label(step.root.text), f"the last token so far: {visible(step.root.text)}", None, 0, 1.0)]
    waiting, place = [-1], {-1: 0}
    while waiting:
        parent = waiting.pop(0)
        if parent == step.end:
            note = percent(step.own_probability)
            said = f"the target's own token here: {visible(step.own.text)}, {note} likely to it"
            depth = boxes[place[parent]].depth + 1
            boxes.append(Box("own", _label(step.own.text), said, place[parent], depth, 0.0, note))
        for child in step.children(parent):
            node = step.nodes[child]
            place[child] = len(boxes)
            boxes.append(_node_box(node, place[parent]))
            waiting.append(child)
    return boxes


def _node_box(node: Node, parent: int) -> Box:
    kind = node.fate if node.probability is not None else f"{node.fate} found"
    note = percent(node.chance) if node.fate != "unreached" else ""
    return Box(kind, _label(node.token.text), tip(node), parent, node.depth, node.reach, note)


def _label(text: str) -> str:
    return shortened(visible(text), MOST_CELLS)


def _head(left: list[float], step: Step) -> Iterator[str]:
    yield f'<text class="head" x="{left[0]:g}" y="13">so far</text>'
    for depth in range(1, len(left)):
        said = f"guess {depth}" if depth <= max((node.depth for node in step.nodes), default=0) else ""
        yield f'<text class="head" x="{left[depth]:g}" y="13">{said}</text>'


def _lines(boxes: list[Box], left: list[float], widths: list[float], middle: list[float]) -> Iterator[str]:
    """From a box's right side, level to the end of its column, then bent to the child: no two cross."""
    # the path last, or others would lie over it
    order = sorted(range(1, len(boxes)), key=lambda index: boxes[index].kind.startswith(ON_PATH))
    for index in order:
        box = boxes[index]
        assert box.parent is not None
        above = boxes[box.parent]
        start, bend, end = left[above.depth] + above.width, left[above.depth] + widths[above.depth], left[box.depth]
        y0, y1, half = middle[box.parent], middle[index], (left[box.depth] - bend) / 2
        thick = THIN + (THICK - THIN) * box.reach
        if box.kind.startswith(ON_PATH):
            thick = max(thick, STANDS_OUT)
        yield (
            f'<path class="{box.kind}" stroke-width="{thick:.2f}" '
            f'd="M{start:.1f} {y0:g}H{bend:.1f}C{bend + half:.1f} {y0:g} {bend + half:.1f} {y1:g} {end:.1f} {y1:g}"/>'
        )


def _shapes(boxes: list[Box], left: list[float], middle: list[float]) -> Iterator[str]:
    for index, box in enumerate(boxes):
        x, y = left[box.depth], middle[index] - BOX / 2
        note = ""
        if box.note:
            note = (
                f'<text class="note" x="{x + box.width - PAD:.1f}" y="{y + 14:g}" text-anchor="end">{box.note}</text>'
            )
        yield (
            f'<g class="{box.kind}"><title>{escape(box.tip)}</title>'
            f'<rect x="{x:.1f}" y="{y:g}" width="{box.width:.1f}" height="{BOX}" rx="5"/>'
            f'<text x="{x + PAD:.1f}" y="{y + 14:g}">{escape(box.text)}</text>{note}</g>'
        )
