"""Did this target give these answers: its greedy ones must be what it would say."""

import itertools
from collections.abc import Iterable

import torch

from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.train.data import Answer
from eagle3_serving.train.features import Extract

SAMPLE = 8  # answers
# of SmolLM2-135M's tokens, given by vLLM in bf16, 99% are its own in fp32; of its own draws at temperature 0.8 only 70% are
LEAST = 0.8


@torch.inference_mode()
def require_own(target: Target, answers: Iterable[Answer], extract: Extract, what: str) -> float | None:
    """The share of tokens of greedy `answers` (temperature 0, as their file says) that the target would have said too; None
    where no answer is known to be greedy. Raises InputError where it is too small."""
    greedy = list(itertools.islice((answer for answer in answers if answer.temperature == 0), SAMPLE))
    same = total = 0
    for answer in greedy:
        batch = extract([answer])
        head_VH = target.model.get_output_embeddings().weight
        final_NH = batch.final_BRH[batch.taught_BR].to(head_VH)
        said_N = (final_NH @ head_VH.T).argmax(-1).cpu()
        same += int((said_N == batch.next_BR[batch.taught_BR].cpu()).sum())
        total += len(said_N)
    if not total:
        return None
    share = same / total
    if share < LEAST:
        raise InputError(
            f"{what}: of its greedy answers this target would have said {share:.0%} of the tokens: they are another target's or "
            "another tokenizer's; have this target answer (--prompts)"
        )
    return share
