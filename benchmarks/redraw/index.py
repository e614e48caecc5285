"""The list of the results' pages, and the site's page of answers: both made of the pages' titles and answers."""

from pathlib import Path

from benchmarks.redraw.catalogue import TEXTS, markdown, text
from benchmarks.redraw.raw import RESULTS

# page -> the picture that the site shows beside its answer
PAGES = {
    "vllm-by-load": "sweep-vllm.speedup.png",
    "sglang-by-load": "sglang-sweep.png",
    "embedded-by-load": "embedded-sweep.png",
    "vllm-one-request": "vllm-one-request.png",
    "tuning": "tuning.png",
    "accepted-length": "accepted-length.png",
    "vllm-trees": "vllm-equal-tokens.png",
    "exactness-and-law": "law.png",
    "prefix-cache": "",
    "soak": "",
    "drafter-fp8": "",
    "tree-arithmetic": "tree-arithmetic.png",
    "training": "train-findings.png",
    "trainers-compared": "train-public.png",
    "checkpoints": "",
    "h100": "h100-steps.png",
}


def title(page: Path) -> str:
    """Its question."""
    return page.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


@text("index")
def index() -> str:
    rows = [[f"[{title(RESULTS / f'{name}.md')}]({name}.md)", TEXTS[f"answer-{name}"]()] for name in PAGES]
    return markdown(["question", "answer"], rows)


@text("site-answers")
def site() -> str:
    parts = []
    for name, picture in PAGES.items():
        parts.append(f"## {title(RESULTS / f'{name}.md')}\n\n{TEXTS[f'answer-{name}']()}\n")
        if picture:
            parts.append(f"![{title(RESULTS / f'{name}.md')}](assets/results/{picture})\n")
        parts.append(f"The figures, the command and what it does not show: `benchmarks/results/{name}.md`.\n")
    return "\n".join(parts)
