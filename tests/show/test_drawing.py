"""What is drawn holds for any tree and any text: well-formed, escaped, nothing from elsewhere, the same every time."""

import re
from html.parser import HTMLParser
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from show_stories import ABOUT, parents, step, story

from eagle3_serving.errors import InputError
from eagle3_serving.show.drawing import draw
from eagle3_serving.show.figure import drawable, figure
from eagle3_serving.show.page import page
from eagle3_serving.show.pieces import cells, shortened, visible
from eagle3_serving.show.record import Piece, Step
from eagle3_serving.show.words import heading, percent, walk

HOSTILE = [
    "<script>alert(1)</script>",
    '"',
    "'&",
    "]]>",
    "-->",
    "\x00",
    "\ud800",
    "\u202e",
    "\n\t ",
    "é日本語😀",
    "</style>",
    "{}",
]
texts = st.lists(st.one_of(st.text(max_size=30), st.sampled_from(HOSTILE)), min_size=1, max_size=8)


def shapes(drawing_of: Step) -> ElementTree.Element:
    return ElementTree.fromstring(f"<svg>{draw(drawing_of).shapes}</svg>")


@given(parents(), texts)
@settings(deadline=None, max_examples=60)
def test_boxes_lie_beside_one_another(tree: list[int], said: list[str]) -> None:
    drawing, root = draw(step(tree, said)), shapes(step(tree, said))
    boxes = [[float(rect.attrib[name]) for name in ("x", "y", "width", "height")] for rect in root.iter("rect")]
    assert len(boxes) == len(tree) + 2  # with the root and the target's own
    for x, y, width, height in boxes:
        assert x >= 0 and y >= 0 and x + width <= drawing.width and y + height <= drawing.height
    for (x, y, width, height), (other_x, other_y, other_width, other_height) in combinations(boxes, 2):
        apart = x + width < other_x or other_x + other_width < x
        assert apart or y + height < other_y or other_y + other_height < y


@given(parents(20), texts)
@settings(deadline=None, max_examples=60)
def test_no_text_gets_out_of_its_place(tree: list[int], said: list[str]) -> None:
    told = story(step(tree, said))
    svg, html = figure(told, 1, ABOUT), page([told], ABOUT)
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    assert tags <= {"svg", "title", "desc", "style", "rect", "text", "g", "path"}
    seen = _Tags()
    seen.feed(html)
    assert seen.tags["script"] == 1 and seen.tags["style"] == 1 and "i" not in seen.tags
    assert not seen.elsewhere and "@import" not in html and "url(" not in html
    assert html.encode() == page([told], ABOUT).encode() and svg.encode() == figure(told, 1, ABOUT).encode()


class _Tags(HTMLParser):
    """Counts tags, and finds what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            if name.startswith("on") or (
                name in ("src", "href", "data", "srcset", "action") and not (value or "").startswith("#")
            ):
                self.elsewhere.append(f"{tag} {name}={value}")


def test_what_cannot_be_seen_is_shown() -> None:
    assert visible(" a\n\tb\x00\x7f\u200b\u202e\ud800") == "·a⏎⇥b␀⟨U+007F⟩⟨U+200B⟩⟨U+202E⟩⟨U+D800⟩"
    assert visible("a b", " ") == "a b"
    assert cells("日本e\u0301") == 5
    assert shortened("日本語日本語", 7) == "日本語…" and shortened("abc", 3) == "abc"
    assert [percent(p) for p in (0.0, 0.004, 0.5, 0.996, 1.0)] == ["<1%", "<1%", "50%", ">99%", "100%"]


def test_the_walk_says_why_the_rest_fell() -> None:
    # root -> a, b; a -> c: a is walked, c refused
    one = step([-1, -1, 0], ["x", "y", "z"], walked=1)
    said = walk(one, ABOUT)
    assert len(said) == 2
    assert said[0] == "After “x” the target says “x” (40%): the first guess here, at 70%, kept."
    assert "not among the guesses here (“z” at 70%)" in said[1]
    assert heading(one) == "3 guesses, 1 right, and the target's own: 2 tokens in one pass"
    assert walk(Step((Piece(1, "a"),)), ABOUT) == []


def test_the_answers_end_inside_a_walk_is_said() -> None:
    whole = step([-1, 0, 1], ["x", "y"], walked=3)
    cut = Step(whole.tokens[:2], whole.root, whole.nodes, whole.path, whole.own, whole.own_probability, cut=True)
    assert walk(cut, ABOUT)[-1] == "The answer ends here." and len(walk(cut, ABOUT)) == 3
    assert heading(cut).endswith("the answer ends after 2 tokens of them")


def test_a_step_without_a_tree_is_not_drawn() -> None:
    told = story(step([-1], ["x"]))
    assert drawable(told, None) == 1 == drawable(told, 2)
    for asked in (1, 3):
        with pytest.raises(InputError, match=f"step {asked} of this answer has no tree: those that have one are 2"):
            drawable(told, asked)
    with pytest.raises(InputError, match="more --max-tokens"):
        drawable(story(), None)


def test_steps_are_linked_to_their_tokens() -> None:
    html = page([story(step([-1], ["x"])), story()], ABOUT)
    links, places = re.findall(r'href="#([^"]+)"', html), re.findall(r'<section class="step" id="([^"]+)"', html)
    assert links == places == ["s1-0", "s1-1", "s2-0"]
