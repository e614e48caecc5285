"""The patch register, from the lists that stand beside the seams in each plugin."""

from itertools import groupby

from eagle3_sglang.seams import SEAMS as SGLANG
from eagle3_vllm.seams import SEAMS as VLLM
from eagle3_vllm.seams import VALUES as VLLM_VALUES

from eagle3_serving.patches import Seam
from scripts.site import signatures

_HEAD = """# Patch register

Every place of a running engine that a plugin changes, and what would let us stop. Before the first change every private name is looked at, by
name and signature, and every module of ours that will be needed is imported: all changes are made, or none. Where anything is not as known
the engine's own EAGLE-3 serves, and one line says why. Nothing is written to the engine's files.

Tests hold this page: for vLLM it is compared with what a real registration leaves behind in a process, for SGLang with the hooks and
assignments in the plugin's code. A seam that is missing here fails them, as does one too many.
"""

SECTIONS = (
    (
        "vLLM: functions and classes",
        "Replaced or wrapped from vLLM's entry point for plugins, in each of its processes.",
        VLLM,
    ),
    ("vLLM: values", "Set on objects of vLLM's while a server with EAGLE-3 starts or a pass is prepared.", VLLM_VALUES),
    (
        "SGLang",
        "The first five through SGLang's own registry of hooks, the others by our worker in the scheduler's process.",
        SGLANG,
    ),
)


def page() -> str:
    checked = signatures.vllm() | signatures.sglang()
    parts = [_HEAD]
    for title, how, seams in SECTIONS:
        parts += [f"## {title}\n", f"{how}\n"]
        parts += [_entry(list(alike), checked) for _, alike in groupby(seams, key=lambda seam: seam[1:])]
    return "\n".join(parts)


def short(target: str) -> str:
    """A target without its module: `Scheduler.__init__` of `vllm.v1.core.sched.scheduler:Scheduler.__init__`."""
    if ":" in target or not target.startswith("sglang."):
        return target.rpartition(":")[2]
    parts = target.split(".")
    start = next((place for place, part in enumerate(parts) if part[:1].isupper()), len(parts) - 1)
    return ".".join(parts[start:])


def _entry(alike: list[Seam], checked: dict[str, tuple[str, ...]]) -> str:
    """Seams of one purpose, side by side."""
    seam = alike[0]
    module = {each.target.removesuffix(short(each.target)).rstrip(".:") for each in alike} - {""}
    lines = [f"### {', '.join(f'`{short(each.target)}`' for each in alike)}\n"]
    lines += [f"- **Where**: {', '.join(f'`{name}`' for name in sorted(module))}"] if module else []
    lines += [f"- **What**: {seam.what}", f"- **Why**: {seam.why}"]
    for each in alike:
        given = checked.get(each.target, checked.get(short(each.target), checked.get(f"{short(each.target)}.__init__")))
        if given is not None:
            lines.append(f"- **Looked at first**: `{short(each.target)}({', '.join(given)}{', ' if given else ''}...)`")
    lines += [f"- **Held by**: `{seam.held}`", f"- **Ends when**: {seam.ends}", ""]
    return "\n".join(lines)
