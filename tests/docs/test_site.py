"""The documentation: it builds strictly, asks nobody else, and a dead link fails it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.site import api

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def build(docs: Path, site: Path) -> subprocess.CompletedProcess[str]:
    config = (ROOT / "mkdocs.yml").read_text()
    for name, folder in (("docs_dir: docs", f"docs_dir: {docs}"), ("site_dir: site", f"site_dir: {site}")):
        assert name in config
        config = config.replace(name, folder)
    # beside the real one, since its paths are relative
    path = ROOT / f".mkdocs-{os.getpid()}.yml"
    path.write_text(config)
    try:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(path)]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.unlink()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(DOCS, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_builds_strictly_and_asks_nobody_else(site: Path) -> None:
    pages = sorted(site.rglob("index.html"))
    assert len(pages) > 20
    for page in pages:
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]+)"', page.read_text())
        fetched += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="(https?:[^"]+)"', page.read_text())
        assert not fetched, page


def test_what_is_exported_stands_in_the_api(site: Path) -> None:
    for name in api.PACKAGES:
        text, members = (site / "api" / name / "index.html").read_text(), api.members(name)
        assert members and not [path for path in members if f'id="{path}"' not in text]


def test_dead_links_fail_the_build(tmp_path: Path) -> None:
    """A page and an anchor that are not there, told in one build."""
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)
    with (docs / "index.md").open("a") as page:
        page.write("\n[a](gone.md) [b](cli.md#no-such-anchor) [c](cli.md#exit-codes)\n")
    done = build(docs, tmp_path / "site")
    assert done.returncode != 0 and "gone.md" in done.stderr and "#no-such-anchor" in done.stderr
    assert len(re.findall(r"^WARNING", done.stderr, re.MULTILINE)) == 2 and "exit-codes" not in done.stderr


def test_the_readmes_links_into_the_documentation_are_there(site: Path) -> None:
    links = re.findall(r"\]\(docs/([\w-]+)\.md(?:#([\w-]+))?\)", (ROOT / "README.md").read_text())
    assert len(links) > 6
    for page, anchor in links:
        html = site / page / "index.html"
        assert html.is_file() and (not anchor or f'id="{anchor}"' in html.read_text()), (page, anchor)
