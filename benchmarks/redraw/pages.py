"""Pages: what stands between `<!-- made: NAME -->` and `<!-- end -->` is a text of the catalogue, a block or inside a line."""

import re
from pathlib import Path

from benchmarks.redraw.catalogue import TEXTS
from benchmarks.redraw.raw import RESULTS, ROOT
from eagle3_serving.errors import CheckError

COPIES = ROOT / "docs" / "assets" / "results"  # the site's own, as it takes nothing from outside its folder
_MADE = re.compile(r"(<!-- made: (\S+) -->)(\n?).*?(<!-- end -->)", re.DOTALL)
_PICTURE = re.compile(
    r"(?:\]\(|src=\")(?:\.\./)?(benchmarks/results/|docs/assets/results/|assets/results/|)([\w.-]+\.png)"
)


def pages() -> list[Path]:
    """Those that may hold figures, the front page first."""
    return [ROOT / "README.md", *sorted(RESULTS.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def filled(page: Path) -> str:
    """The page as the raw files would have it. Raises CheckError where it names a text that nothing makes."""

    def make(found: re.Match[str]) -> str:
        opening, name, block, closing = found.groups()
        if name not in TEXTS:
            raise CheckError(f"{page.relative_to(ROOT)} names the text {name}, which nothing makes")
        around = "\n\n" if block else ""
        return f"{opening}{around}{TEXTS[name]()}{around}{closing}"

    return _MADE.sub(make, page.read_text(encoding="utf-8"))


def shown(page: Path) -> set[Path]:
    """Pictures of results that the page shows, as files."""
    folders = {
        "benchmarks/results/": RESULTS,
        "docs/assets/results/": COPIES,
        "assets/results/": COPIES,
        "": page.parent,
    }
    found = {folders[folder] / name for folder, name in _PICTURE.findall(page.read_text(encoding="utf-8"))}
    return {picture for picture in found if picture.parent in (RESULTS, COPIES)}


def copies() -> set[str]:
    """Pictures that pages of the site show."""
    return {picture.name for page in pages() for picture in shown(page) if picture.parent == COPIES}
