"""Make a page's links hold where it is read alone, as a package index shows it: `absolute_links.py FILE REPOSITORY TAG`.

Links to files of the repository become links to them at that tag, pictures to their bytes. Standard library only.
"""

import re
import sys
from pathlib import Path

# [text](path), ![text](path), src="path", href="path"; neither an address nor a place on the page itself
LINK = re.compile(r'(?P<open>(?P<picture>!\[[^\]]*\]\(|src=")|\]\(|href=")(?P<path>(?![a-z]+:|#|//)[^)"\s]+)')


def absolute(text: str, repository: str, tag: str) -> str:
    def at_tag(link: re.Match[str]) -> str:
        kind = "raw" if link["picture"] else "blob"
        return f"{link['open']}{repository}/{kind}/{tag}/{link['path'].removeprefix('./')}"

    return LINK.sub(at_tag, text)


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print("usage: absolute_links.py FILE REPOSITORY TAG", file=sys.stderr)
        return 2
    page = Path(arguments[0])
    page.write_text(absolute(page.read_text(), arguments[1].rstrip("/"), arguments[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
