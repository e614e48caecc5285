"""What stands at the end of training: is the drafter whole, what does it gain, and its card."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from eagle3_serving.checkpoint.check import check
from eagle3_serving.checkpoint.findings import Finding
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation, Target
from eagle3_serving.engine.pair import load_for
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.train.calibration import calibrate
from eagle3_serving.train.data import Answer
from eagle3_serving.train.mixture import Families
from eagle3_serving.train.replies import greedy_answers
from eagle3_serving.tree.calibrate import FILE, Calibration

Prompts = dict[str, list[list[int]]]
BATCH = 8


def modes(max_tokens: int) -> dict[str, DecodeOptions]:
    """The two settings of the paper: a chain of 5, and a tree of 60 nodes."""
    return {
        "chain": DecodeOptions(max_tokens, "chain", k=5),
        "tree": DecodeOptions(max_tokens, "tree", nodes=60, depth=8, top_k=10),
    }


@dataclass(frozen=True)
class Measured:
    """`accepted_length` by mode and family (tokens a target pass, bonus included; plain decoding: 1), `by_position` by
    mode: of all drafts, the share whose token at that position was accepted, `by_context` by mode: accepted length by the
    tokens that stood before a pass, up to each power of two. `identical`: every token is plain decoding's."""

    prompts: int
    max_tokens: int
    identical: bool
    accepted_length: dict[str, dict[str, float]] = field(default_factory=dict)
    by_position: dict[str, list[float]] = field(default_factory=dict)
    by_context: dict[str, dict[int, float]] = field(default_factory=dict)

    def mean(self, mode: str) -> float:
        """Over the families, each counted alike."""
        families = self.accepted_length[mode]
        return sum(families.values()) / len(families)


def prompts_to_measure(target: Path, files: Sequence[Path], held_out: Families, limit: int) -> Prompts:
    """The first `limit` of each family of `files`; without files, of the answers held out of the training."""
    if not files:
        return {name: [list(answer.prompt_ids) for answer in family[:limit]] for name, family in held_out.items()}
    families = by_family(read_prompts(files, limit, family="prompts"))
    tokenizer = load_tokenizer(target)
    return {name: [chat_ids(tokenizer, p.turns[0]) for p in family] for name, family in families.items()}


def measure(target: Target, drafter: Path, prompts: Prompts, max_tokens: int) -> tuple[Measured, Families]:
    """Greedy decoding on the embedded engine, plain and drafted, the drafter as it was saved; and the plain answers."""
    engine = EmbeddedEngine(target, load_for(target, drafter), Calibration.beside(drafter))
    everything = [ids for family in prompts.values() for ids in family]
    sides = {"plain": DecodeOptions(max_tokens, "plain"), **modes(max_tokens)}
    said = {}
    for name, options in tqdm(sides.items(), desc="measuring", unit="mode"):
        said[name] = engine.generate_many(everything, options, BATCH)
    plain = [one.token_ids for one in said.pop("plain")]
    identical = all([one.token_ids for one in drafted] == plain for drafted in said.values())
    lengths: dict[str, dict[str, float]] = {mode: {} for mode in said}
    positions = {}
    for mode, drafted in said.items():
        at = 0
        for name, family in prompts.items():
            part = drafted[at : at + len(family)]
            at += len(family)
            passes = sum(one.passes - 1 for one in part)
            lengths[mode][name] = round(sum(len(one.token_ids) - 1 for one in part) / max(1, passes), 3)
        steps = max(1, sum(one.steps for one in drafted))
        counts = [one.accepted_by_position for one in drafted]
        deepest = max(map(len, counts))
        positions[mode] = [round(sum(c[k] for c in counts if len(c) > k) / steps, 4) for k in range(deepest)]
    contexts = {mode: by_context(everything, drafted) for mode, drafted in said.items()}
    rest = iter(plain)
    answers = {
        name: [Answer(str(place), tuple(ids), next(rest)) for place, ids in enumerate(family)]
        for name, family in prompts.items()
    }
    return Measured(len(everything), max_tokens, identical, lengths, positions, contexts), answers


def by_context(prompts: Sequence[Sequence[int]], said: Sequence[Generation]) -> dict[int, float]:
    """Accepted length of the passes that began with at most so many tokens before them, and more than half as many."""
    tokens: Counter[int] = Counter()
    passes: Counter[int] = Counter()
    for prompt, one in zip(prompts, said, strict=True):
        before, end = len(prompt) + 1, len(prompt) + len(one.token_ids)  # the prefill gave a token
        for accepted in one.accepted:
            bucket = 1 << (before - 1).bit_length()
            gained = min(accepted + 1, end - before)  # what stands past an end token counts nowhere
            tokens[bucket] += gained
            passes[bucket] += 1
            before += gained
    return {bucket: round(tokens[bucket] / passes[bucket], 3) for bucket in sorted(passes)}


def check_drafter(drafter: Path, target: Path, say: Callable[[str], None] = print, only: str | None = None) -> bool:
    """Every finding that matters, said; whether vLLM and SGLang would both serve it rightly, or `only` the one engine that has
    such drafters at all."""
    found: list[Finding] = check(drafter, target=target)
    if only is not None:
        found = [finding for finding in found if finding.engine in (only, "any")]
    for finding in found:
        if finding.severity != "note":
            say(f"{finding.severity}, {finding.engine}: {finding.line()}")
    return not any(finding.breaks for finding in found)


def calibrate_on(target: Target, drafter: Path, held_out: Sequence[Answer], max_tokens: int) -> None:
    """Fit a calibration on the target's greedy answers to held-out prompts, and save it beside the drafter."""
    greedy = greedy_answers(EmbeddedEngine(target), [answer.prompt_ids for answer in held_out], max_tokens, BATCH)
    fitted = calibrate(load_for(target, drafter), target, greedy)
    fitted.calibration.save(drafter / FILE)
    print(
        f"calibrated: log-loss {fitted.before:.4f} of the draft's own probability, now {fitted.after:.4f}", flush=True
    )
