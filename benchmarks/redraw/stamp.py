"""A PNG tells which raw files it was made of, so that one can see without drawing whether it is up to date."""

import hashlib
import io
import json
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.redraw.raw import RESULTS

KEY = "raw"


def stamped(png: bytes, raw: set[str]) -> bytes:
    """With the digests of its raw files, and fewer colours: a plot has few."""
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        text = PngInfo()
        text.add_text(KEY, json.dumps(_digests(raw)))
        buffer = io.BytesIO()
        small.save(buffer, format="png", optimize=True, pnginfo=text)
    return buffer.getvalue()


def wrong(picture: Path) -> str | None:
    """Why the picture is not that of the raw files that stand there, None where it is."""
    if not picture.is_file():
        return "is not there"
    with Image.open(picture) as image:
        said = json.loads(str(image.info.get(KEY, "{}")))
    if not said:
        return "was not made by this script"
    try:
        now = _digests(set(said))
    except FileNotFoundError as error:
        return f"was made of {Path(error.filename).name}, which is not there"
    changed = [name for name, digest in said.items() if now[name] != digest]
    return f"is older than {', '.join(changed)}" if changed else None


def _digests(raw: set[str]) -> dict[str, str]:
    return {name: hashlib.sha256((RESULTS / name).read_bytes()).hexdigest()[:16] for name in sorted(raw)}
