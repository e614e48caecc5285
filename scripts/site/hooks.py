"""MkDocs' hook: adds the generated pages to those that are written. Each is made from the code, so none can go stale."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parents[2]
# the checkout's own code, whatever is installed
for folder in (_ROOT / "plugins", _ROOT):
    sys.path.insert(0, str(folder))

from scripts.site import api, commands, matrix, seams, settings  # noqa: E402  # after the path

PAGES: dict[str, Callable[[], str]] = {
    "cli.md": commands.page,
    "settings.md": settings.page,
    "support-matrix.md": matrix.page,
    "patch-register.md": seams.page,
    **{f"api/{name}.md": partial(api.page, name) for name in api.PACKAGES},
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files
