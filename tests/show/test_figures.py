"""The figures of docs/how-it-works.md are those that the script and `eagle3 show` draw now."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from eagle3_serving.show.theme import SHAPES, VARIABLES

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "assets" / "how"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_figures", ROOT / "scripts" / "draw_figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_script_draws(script: ModuleType) -> None:
    for name, draw in script.FIGURES.items():
        assert (FIGURES / f"{name}.svg").read_text(encoding="utf-8") == draw(), "run python scripts/draw_figures.py"


def test_the_real_step_is_drawn_in_todays_style() -> None:
    text = (FIGURES / "step.svg").read_text(encoding="utf-8")
    assert VARIABLES in text and SHAPES in text, "draw it again, by the command below it in docs/how-it-works.md"


def test_every_figure_is_shown_and_has_words_for_who_cannot_see_it(script: ModuleType) -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"!\[([^\]]{20,})\]\(assets/how/([\w-]+)\.svg\)", page))
    assert set(shown.values()) == {*script.FIGURES, "step"} == {path.stem for path in FIGURES.glob("*.svg")}
    for path in FIGURES.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        title = root.find("{http://www.w3.org/2000/svg}title")
        assert title is not None and len(title.text or "") > 20, path
