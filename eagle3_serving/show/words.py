"""What a person reads beside a tree: the heading of a step, and the walk through it, in plain sentences."""

from eagle3_serving.show.pieces import visible
from eagle3_serving.show.record import About, Node, Step, Story

# of the legend: the class that draws it, its name, what it means
LEGEND = (
    ("root", "start", "the last token written so far"),
    ("accepted", "green", "a guess that the target says too: kept"),
    ("own", "blue", "the target's own token where no guess was right: written too"),
    ("refused", "struck out", "a guess where the target says another token: dropped"),
    ("unreached", "grey", "a guess behind a dropped one: dropped with it"),
)
METHOD = (
    (
        "Guess",
        "A small model, the drafter, guesses what may come next: a tree, from left to right, the thicker a line the likelier.",
    ),
    (
        "Check",
        "One pass of the large model, the target, reads all guesses at once, and says after each of them which token it would "
        "write next.",
    ),
    (
        "Keep",
        "From the left, guesses that the target says too are kept. Where none is right, its own token is written, and the next "
        "tree starts there.",
    ),
)
_ALONE = "Alone, a slow pass of the target writes one token. Now it writes several, and every one is the target's: "
WHY = {
    "greedy": f"{_ALONE}the text is what it would have been, in fewer passes.",
    "sampled": f"{_ALONE}it draws them as it would have drawn them alone, in fewer passes.",
}


def percent(share: float) -> str:
    """Whole percents, and no certainty that is none."""
    if share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def quoted(text: str) -> str:
    return f"“{visible(text)}”"


def count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def summary(story: Story) -> str:
    passes = len(story.steps)
    return (
        f"{count(story.tokens, 'token')} in {count(passes, 'pass' if passes == 1 else 'passe')} of the target: "
        f"{story.accepted_length:.2f} tokens a pass after the prompt's own (without a drafter: 1)"
    )


def heading(step: Step) -> str:
    """What came of a step, in a line."""
    if step.own is None:
        return "nothing drafted: 1 token" if step.root is not None else "the prompt is read: the first token"
    accepted, wrote = len(step.path), len(step.tokens)
    said = f"{count(len(step.nodes), 'guess' if len(step.nodes) == 1 else 'guesse')}, {accepted} right"
    if step.cut:
        return f"{said}; the answer ends after {count(wrote, 'token')} of them"
    return f"{said}, and the target's own: {count(wrote, 'token')} in one pass"


def tip(node: Node) -> str:
    """A box's own words."""
    drafted = "found in the text so far" if node.probability is None else f"drafter: {percent(node.probability)}"
    fate = {
        "accepted": "the target says it too",
        "refused": "the target says another token here",
        "unreached": "behind a dropped guess",
    }[node.fate]
    return (
        f"{visible(node.token.text)} - {drafted}; chance of acceptance {percent(node.chance)}, from the start "
        f"{percent(node.reach)}; target: {percent(node.target_probability)}; {fate}"
    )


def walk(step: Step, about: About) -> list[str]:
    """The walk, a sentence a node: what the target said there and whether that was guessed."""
    if step.own is None or step.root is None:
        return []
    says = "draws" if about.temperature > 0 else "says"
    sentences, before = [], step.root.text
    for place in step.path:
        node = step.nodes[place]
        rank = step.children(node.parent).index(place)
        sentences.append(
            f"After {quoted(before)} the target {says} {quoted(node.token.text)} ({percent(node.target_probability)}): "
            f"{_guess(node, rank)}."
        )
        before = node.token.text
    if step.cut:
        return [*sentences[: len(step.tokens)], "The answer ends here."]
    others = [step.nodes[index] for index in step.children(step.end)]
    listed = ", ".join(f"{quoted(node.token.text)} at {percent(node.chance)}" for node in others[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    why = f"not among the guesses here ({listed}{more})" if others else "nothing was guessed here"
    sentences.append(
        f"After {quoted(before)} the target {says} {quoted(step.own.text)} ({percent(step.own_probability)}): {why}. "
        "It is written all the same, all other guesses are dropped, and the next tree starts from it."
    )
    return sentences


def _guess(node: Node, rank: int) -> str:
    if node.probability is None:
        return "it had been found in the text so far, kept"
    which = ("the first", "the second", "the third")[rank] if rank < 3 else f"number {rank + 1} of the"
    return f"{which} guess{'es' if rank >= 3 else ''} here, at {percent(node.chance)}, kept"
