"""All steps of some prompts as one HTML page that needs nothing from elsewhere; without scripts a sequence, with them a slider."""

from collections.abc import Sequence
from html import escape

from eagle3_serving.show.drawing import draw
from eagle3_serving.show.pieces import visible
from eagle3_serving.show.record import About, Step, Story
from eagle3_serving.show.theme import SHAPES, VARIABLES
from eagle3_serving.show.words import LEGEND, METHOD, WHY, heading, summary, walk

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 78rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 0.5rem; } h3 { font-size: 1rem; margin: 0; }
.method { padding-left: 1.3rem; } .small { color: var(--soft); font-size: 0.88rem; overflow-wrap: anywhere; }
.method li { margin: 0.25rem 0; } .why { max-width: 60rem; } .intro { display: grid; gap: 0 3rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.legend { display: grid; grid-template-columns: max-content auto; gap: 0.45rem 0.8rem; align-items: baseline; align-content: start; margin: 1rem 0; font-size: 0.95rem; }
.legend dt { border: 1.5px solid var(--line); border-radius: 5px; padding: 0 0.5rem; text-align: center; font: 0.82rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.legend dd { margin: 0; }
.legend .root { background: var(--root); border-color: var(--root); color: var(--root-ink); } .legend .accepted { background: var(--kept-paper); border-color: var(--kept); font-weight: 600; }
.legend .own { background: var(--own-paper); border-color: var(--own); font-weight: 600; } .legend .unreached { border-color: var(--faint); color: var(--fell); }
.legend .refused { color: var(--soft); text-decoration: line-through; }
.answer { border: 1px solid var(--faint); border-radius: 8px; padding: 0.8rem 1rem; line-height: 2.05; overflow-wrap: anywhere; }
.answer a { color: inherit; text-decoration: none; padding: 0.2rem 0; border-radius: 4px; }
.answer span { border-bottom: 3px solid var(--line); padding: 0.1rem 0.08rem; margin-right: 1px; white-space: pre-wrap; }
.answer .accepted { border-color: var(--kept); background: var(--kept-paper); } .answer .own { border-color: var(--own); background: var(--own-paper); }
.answer a.now { outline: 2px solid var(--ink); } .answer a:focus-visible { outline: 2px solid var(--own); }
.step { border-top: 1px solid var(--faint); padding-top: 1rem; margin-top: 1.5rem; }
.scroll { overflow-x: auto; padding-bottom: 0.6rem; } .tree { display: block; margin-top: 0.6rem; }
.walk { margin: 0.6rem 0 0; padding-left: 1.4rem; max-width: 52rem; }
.turn { display: none; position: sticky; top: 0; gap: 0.6rem; align-items: center; background: var(--paper); padding: 0.7rem 0; z-index: 1; }
.turn input { flex: 1; min-width: 5rem; accent-color: var(--own); } .turn output { font-variant-numeric: tabular-nums; white-space: nowrap; }
.turn button { font: inherit; color: inherit; background: var(--faint); border: 1px solid var(--line); border-radius: 6px; padding: 0.25rem 0.8rem; cursor: pointer; }
.js .turn { display: flex; } .js .step { display: none; border: 0; margin: 0; padding: 0; } .js .step.now { display: block; }
@media print { .js .step { display: block; } .js .turn { display: none; } }
"""
# one slider a prompt; arrow keys turn the prompt that was last touched
_SCRIPT = """
document.documentElement.classList.add("js");
let last = null;
for (const story of document.querySelectorAll("article")) {
  const steps = [...story.querySelectorAll(".step")], links = [...story.querySelectorAll(".answer a")];
  const slider = story.querySelector("input"), told = story.querySelector("output");
  const turn = (to, from) => {
    const now = Math.max(0, Math.min(steps.length - 1, to));
    steps.forEach((step, place) => step.classList.toggle("now", place === now));
    links.forEach((link, place) => link.classList.toggle("now", place === now));
    slider.value = now; told.textContent = `step ${now + 1} of ${steps.length}`;
    if (from) last = story;
  };
  story.turn = (by) => turn(Number(slider.value) + by, true);
  slider.max = steps.length - 1;
  slider.addEventListener("input", () => turn(Number(slider.value), true));
  const [back, on] = story.querySelectorAll("button");
  back.addEventListener("click", () => story.turn(-1)); on.addEventListener("click", () => story.turn(1));
  links.forEach((link, place) => link.addEventListener("click", (event) => { event.preventDefault(); turn(place, true); }));
  const asked = steps.findIndex((step) => "#" + step.id === location.hash);
  turn(asked >= 0 ? asked : Number(story.dataset.first), asked >= 0);
  last = last || story;
}
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches?.("input")) return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") { last.turn(event.key === "ArrowLeft" ? -1 : 1); event.preventDefault(); }
});
"""


def page(stories: Sequence[Story], about: About) -> str:
    """HTML text."""
    title = f"{about.target} writes, a drafter guesses ahead"
    method = "".join(f"<li><b>{name}.</b> {escape(said)}</li>" for name, said in METHOD)
    legend = "".join(f'<dt class="{kind}">{name}</dt><dd>{escape(said)}</dd>' for kind, name, said in LEGEND)
    takes = "draws its tokens" if about.temperature > 0 else "takes its likeliest token"
    corrected = ", corrected by what was measured" if about.calibrated else ""
    figures = (
        f"A percentage in a box is the chance that the target takes this guess (the drafter's own probability{corrected}), by "
        f"which the tree was chosen; in a blue one, how likely the token is to the target, which here {takes}. A space is shown as "
        "·, a line end as ⏎."
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="intro"><div><ol class="method">{method}</ol><p>{escape(WHY["sampled" if about.temperature > 0 else "greedy"])}</p></div><dl class="legend">{legend}</dl></div>',
        f'<p class="small why">{escape(figures)}</p>',
        *(_story(story, number, about) for number, story in enumerate(stories, 1)),
        f'<h2>How it was made</h2><p class="small">eagle3-serving {escape(about.version)}, embedded engine, {escape(about.dtype)}, '
        f"mode {escape(about.mode)}, temperature {about.temperature:g}; target {escape(about.target)}, drafter {escape(about.drafter)}.<br>"
        f"<code>{escape(about.command)}</code></p>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{VARIABLES}{SHAPES}{_STYLE}</style>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _story(story: Story, number: int, about: About) -> str:
    answer = "".join(f'<a href="#s{number}-{place}">{_written(step)}</a>' for place, step in enumerate(story.steps))
    steps = "\n".join(_step(story, place, f"s{number}-{place}", about) for place in range(len(story.steps)))
    return (
        f'<article data-first="{story.best}"><h2>{escape(visible(story.prompt, " "))}</h2>\n'
        f'<p class="answer">{answer}</p>\n<p class="small">{escape(summary(story))}. The tokens of a step stand together; click on them to see its tree.</p>\n'
        '<div class="turn"><button type="button" aria-label="the step before">←</button>'
        f'<input type="range" min="0" max="{len(story.steps) - 1}" aria-label="step">'
        '<button type="button" aria-label="the next step">→</button><output></output></div>\n'
        f"{steps}\n</article>"
    )


def _written(step: Step) -> str:
    """The tokens of a step in the answer, drafted ones and the target's own told apart."""
    kept = min(len(step.path), len(step.tokens))
    spans = []
    for place, token in enumerate(step.tokens):
        kind = "accepted" if place < kept else "own"
        # a line end shows and is one
        text = escape(visible(token.text, " ")).replace("⏎", "⏎\n")
        spans.append(f'<span class="{kind}">{text}</span>')
    return "".join(spans)


def _step(story: Story, place: int, name: str, about: About) -> str:
    step = story.steps[place]
    tree = ""
    if step.own is not None:
        drawing = draw(step)
        tree = (
            f'<div class="scroll"><svg class="tree" role="img" aria-label="{escape(heading(step))}" '
            f'width="{drawing.width:.0f}" height="{drawing.height:.0f}">\n{drawing.shapes}\n</svg></div>'
        )
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in walk(step, about))
    said = f'<ol class="walk">{sentences}</ol>' if sentences else ""
    return f'<section class="step" id="{name}"><h3>Step {place + 1}: {escape(heading(step))}</h3>{tree}{said}</section>'
