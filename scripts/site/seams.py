"""The patch register, from the lists that stand beside the seams in each plugin."""

from itertools import groupby

from eagle3_sglang.seams import SEAMS as SGLANG
from eagle3_vllm.seams import SEAMS as VLLM

from eagle3_serving.patches import Seam

_HEAD = """# Patch register

Every place of a running engine that a plugin changes. Before the first change every private name is looked at, by name and signature, and
every module of ours that will be needed is imported: all changes are made, or none. Where anything is not as known the engine's own
EAGLE-3 serves, and one line says why. Nothing is written to the engine's files.

A test compares this list with what a registration leaves behind: a seam that is missing here fails it, as does one too many.
"""


def page() -> str:
    parts = [_HEAD]
    for engine, seams, how in (
        ("vLLM", VLLM, "Changed by assignment, from vLLM's entry point for plugins, in each of its processes."),
        (
            "SGLang",
            SGLANG,
            "The first four by SGLang's own registry of hooks; the others on the running worker, for a while.",
        ),
    ):
        parts += [f"## {engine}\n", f"{how}\n"]
        parts += [_entry(list(alike)) for _, alike in groupby(seams, key=lambda seam: seam[1:])]
    return "\n".join(parts)


def _entry(alike: list[Seam]) -> str:
    """Seams of one purpose, side by side."""
    seam = alike[0]
    title = ", ".join(f"`{each.target}`" for each in alike)
    said = {"What": seam.what, "Why": seam.why, "Held by": f"`{seam.held}`", "Ends when": seam.ends}
    return "\n".join([f"### {title}\n", *(f"- **{name}**: {text}" for name, text in said.items()), ""])
