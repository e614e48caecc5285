"""Every command that a page shows is one that there is: its parser takes it, its module or make target stands here."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagle3_serving.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown() -> Iterator[tuple[str, str]]:
    """Page and command, of the shell blocks; continued lines as one."""
    for page in PAGES:
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                yield from ((page.name, part) for part in _parts(line.strip()))


def _parts(line: str) -> Iterator[str]:
    """The commands of a line: of `NAME=$(command | ...)` the inner one."""
    inner = re.fullmatch(r"\w+=\$\((.*)\)", line)
    for part in re.split(r" && | \| ", inner[1] if inner else line):
        if part and not part.startswith("#"):
            yield part


COMMANDS = [one for one in shown() if "..." not in one[1]]


def test_pages_show_commands() -> None:
    assert sum(bool(re.match("eagle3", command)) for _, command in COMMANDS) > 12


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_is_there(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)
    while words and re.match(r"[A-Z0-9_]+=", words[0]):  # settings of the environment
        words.pop(0)
    if not words:
        return
    if words[0] in ("eagle3", "eagle3-convert"):
        arguments = words[1:] if words[0] == "eagle3" else ["convert", *words[1:]]
        build_parser().parse_args(arguments)  # SystemExit where it is not taken
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["python", "-m"] and not words[2].startswith(("sglang", "venv")):
        assert importlib.util.find_spec(words[2]) is not None
