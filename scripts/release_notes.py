"""What a release says of itself: `release_notes.py v0.2.0` prints the changelog's section of that version.

It fails where the tag is not the package's version or the section is not closed, before anything is built. Standard library only.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def notes(tag: str, version: str, changelog: str) -> str:
    """The section of `version`, less its heading. Raises ValueError where `tag` or the changelog tells another story."""
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag}, the package's version {version}: eagle3_serving/__init__.py holds it")
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## \[|\Z)"
    section = re.search(heading, changelog, re.MULTILINE | re.DOTALL)
    if section is None:
        raise ValueError(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")
    return section[1].strip()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: release_notes.py TAG", file=sys.stderr)
        return 2
    source = (ROOT / "eagle3_serving" / "__init__.py").read_text()
    [version] = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    try:
        print(notes(arguments[0], version, (ROOT / "CHANGELOG.md").read_text()))
    except ValueError as error:
        print(f"release_notes: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
