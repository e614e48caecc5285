"""Greedy answers of a target from the embedded engine: few, and exactly plain decoding's."""

from collections.abc import Sequence

from tqdm import tqdm

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.train.data import Answer


def greedy_answers(
    engine: EmbeddedEngine, prompts: Sequence[Sequence[int]], max_tokens: int, batch: int, progress: bool = True
) -> list[Answer]:
    """The target's answers, in the prompts' order. Answers of fewer than 3 tokens are left out."""
    tokens: list[list[int]] = [[] for _ in prompts]
    with tqdm(total=len(prompts), desc="answering", unit="prompt", disable=not progress) as bar:
        for place, step in engine.serve(prompts, DecodeOptions(max_tokens, "plain"), batch):
            tokens[place].extend(step.token_ids)
            bar.update(step.last)
    return [
        Answer(str(place), tuple(prompt), tuple(said))
        for place, (prompt, said) in enumerate(zip(prompts, tokens, strict=True))
        if len(said) >= 3
    ]
