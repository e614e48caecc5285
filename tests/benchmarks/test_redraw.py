"""Pictures and pages of results are those of the raw files, and the style keeps its promises."""

import io
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from PIL import Image

from benchmarks.redraw import __main__ as redraw
from benchmarks.redraw import pages, stamp
from eagle3_serving import plotting
from eagle3_serving.errors import CheckError
from eagle3_serving.plotting import Line, canvas, line, png

ROOT = Path(__file__).resolve().parent.parent.parent
PNGS = [name for name in redraw.PICTURES if name.endswith(".png")]


def test_nothing_is_out_of_date() -> None:
    assert redraw.stale() == []


@pytest.mark.parametrize("name", PNGS)
def test_every_picture_comes_from_its_raw_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "DPI", 50)  # what is drawn does not hang on it, and it is quicker
    with Image.open(io.BytesIO(redraw.draw(name))) as image:
        assert min(image.size) > 100 and len(image.convert("RGB").getcolors(maxcolors=256) or []) > 5
        assert "sweep" in image.info["raw"] or ".json" in image.info["raw"]


def test_every_picture_that_a_page_shows_is_made() -> None:
    shown = {picture.name for page in pages.pages() for picture in pages.shown(page)}
    assert {"speed-by-load.png", "sglang-sweep.png"} <= shown <= set(PNGS)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "benchmarks" / "results").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            # pages of the site are held by its own strict build
            if not (page.parent / link).resolve().is_relative_to(ROOT / "docs"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_front_page_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 60
    assert len(pages.shown(ROOT / "README.md")) == 1


def test_each_results_page_says_what_it_does_not_show() -> None:
    for name in redraw.index.PAGES:
        text = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text()
        assert text.startswith("# ") and text.split("\n", 1)[0].endswith("?"), name
        for part in (f"<!-- made: answer-{name} -->", "**Command", "**Machine.**", "hat it does not show"):
            assert part in text, (name, part)


def test_a_changed_raw_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "RESULTS", tmp_path)
    (tmp_path / "a.json").write_text("1")
    picture = tmp_path / "a.png"
    assert stamp.wrong(picture) == "is not there"
    figure, _ = canvas("a")
    picture.write_bytes(png(figure, legend=False))
    assert stamp.wrong(picture) == "was not made by this script"
    picture.write_bytes(stamp.stamped(picture.read_bytes(), {"a.json"}))
    assert stamp.wrong(picture) is None
    (tmp_path / "a.json").write_text("2")
    assert stamp.wrong(picture) == "is older than a.json"
    (tmp_path / "a.json").unlink()
    assert stamp.wrong(picture) == "was made of a.json, which is not there"


def test_a_page_is_filled_as_a_block_and_inside_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(redraw.TEXTS, "one", lambda: "1.23")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("a <!-- made: one -->9<!-- end --> b\n<!-- made: one -->\n9\n<!-- end -->\n")
    made = "a <!-- made: one -->1.23<!-- end --> b\n<!-- made: one -->\n\n1.23\n\n<!-- end -->\n"
    assert pages.filled(page) == made
    page.write_text(made)
    assert pages.filled(page) == made
    page.write_text("<!-- made: none -->\n<!-- end -->")
    with pytest.raises(CheckError, match=r"page\.md names the text none, which nothing makes"):
        pages.filled(page)


def test_only_what_exists_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        redraw.main(["--only", "nothing.png"])
    assert stopped.value.code == 2 and "nothing is called nothing.png" in capsys.readouterr().err
    assert redraw.main(["--list"]) == 0
    assert {"speed-by-load.png", "front-table"} <= set(capsys.readouterr().out.split())


def test_the_legend_covers_no_data() -> None:
    figure, axes = canvas(
        "A title that is so long that it needs more than one line of this figure", panels=2, across=True
    )
    for number, axis in enumerate(axes):
        line(axis, Line(f"a setting with a long name, {number}", [0, 1], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5]), number)
    png(figure)
    legend = figure.legends[0].get_window_extent()
    assert len(figure.legends) == 1 and len(figure.legends[0].get_texts()) == 2
    assert not any(legend.overlaps(axis.get_tightbbox()) for axis in axes)


def test_whiskers_reach_from_the_least_to_the_most() -> None:
    assert Line("a", [0, 1], [1.0, 2.0], [0.5, 2.0], [1.25, 4.0]).whiskers == [[0.5, 0.0], [0.25, 2.0]]
    assert Line("a", [0], [1.0]).whiskers is None
