"""Sampling of verified chains on runner V1: the exact law of each row, whatever was drafted; wrong samplers are found.

Shape letters: B requests, T draft tokens of all of them, K draft tokens of one, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.statistics import chi_square
from eagle3_serving.patches import Patches
from eagle3_serving.tree import SamplingParams, target_law

pytest.importorskip("vllm")

from eagle3_vllm.compat import RejectionSamplerV1, SamplerOutputV1, SamplerV1, SamplingMetadata, SpecDecodeMetadata
from eagle3_vllm.rejection_v1 import REJECTED, register_sampling

VOCAB, DRAFTED, REQUESTS = 12, (3, 5), 8_000
EDGE = 1e-3


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    patches = Patches()
    register_sampling(patches)
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        current_platform.register_triton_kernel_overrides()  # as vLLM's worker does, for vLLM's own sampler
    yield
    patches.undo()


def world() -> Tensor:
    """Logits [K + 1, V] of the rows of one chain; the drafts are likely and not certain."""
    logits = 2 * torch.randn(len(DRAFTED) + 1, VOCAB, generator=torch.Generator().manual_seed(1))
    for row, token in enumerate(DRAFTED):
        logits[row, token] = logits[row].max() + 0.3
    return logits


def metadata(drafts: list[list[int]]) -> SpecDecodeMetadata:
    made = SpecDecodeMetadata.make_dummy(drafts, torch.device("cpu"))
    places = iter(range(sum(len(tokens) + 1 for tokens in drafts)))
    rows = [[next(places) for _ in range(len(tokens) + 1)] for tokens in drafts]
    made.target_logits_indices = torch.tensor([place for own in rows for place in own[:-1]], dtype=torch.int32)
    made.bonus_logits_indices = torch.tensor([own[-1] for own in rows], dtype=torch.int32)
    return made


def sampling(batch: int, temperature: float | list[float], **more: Any) -> SamplingMetadata:
    from vllm.v1.sample.logits_processor import LogitsProcessors

    temperatures = torch.tensor([temperature] * batch if isinstance(temperature, float) else temperature)
    values: dict[str, Any] = {
        "temperature": temperatures,
        "all_greedy": bool((temperatures == 0).all()),
        "all_random": bool((temperatures > 0).all()),
        "top_p": None,
        "top_k": None,
        "generators": {},
        "max_num_logprobs": None,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": torch.zeros(batch),
        "presence_penalties": torch.zeros(batch),
        "repetition_penalties": torch.ones(batch),
        "output_token_ids": [[] for _ in range(batch)],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
        "spec_token_ids": [list(DRAFTED) for _ in range(batch)],
    }
    return SamplingMetadata(**{**values, **more})


Sampled = Callable[[SpecDecodeMetadata, Tensor | None, Tensor, SamplingMetadata], Tensor]


def ours(meta: SpecDecodeMetadata, draft_probs: Tensor | None, logits: Tensor, said: SamplingMetadata) -> Tensor:
    return RejectionSamplerV1(SamplerV1())(meta, draft_probs, logits, said).sampled_token_ids


def vllms(meta: SpecDecodeMetadata, draft_probs: Tensor | None, logits: Tensor, said: SamplingMetadata) -> Tensor:
    made: Any = RejectionSamplerV1.forward
    torch.full((2 * REQUESTS,), 3.0)  # what vLLM's unwritten temperatures are likely to be then
    output: SamplerOutputV1 = made.__wrapped__(RejectionSamplerV1(SamplerV1()), meta, draft_probs, logits, said)
    return output.sampled_token_ids


def argmax(meta: SpecDecodeMetadata, draft_probs: Tensor | None, logits: Tensor, said: SamplingMetadata) -> Tensor:
    return ours(meta, draft_probs, logits, sampling(len(meta.num_draft_tokens), 0.0))


def keeps_rejected(
    meta: SpecDecodeMetadata, draft_probs: Tensor | None, logits: Tensor, said: SamplingMetadata
) -> Tensor:
    """A second draw in the place of a rejected draft's residual."""
    first, second = (ours(meta, draft_probs, logits.clone(), said) for _ in range(2))
    end_B1 = (first != REJECTED).sum(1, keepdim=True) - 1
    drafted_B1 = torch.tensor([*DRAFTED, -1])[end_B1]
    again_B1 = torch.where(drafted_B1 >= 0, second.gather(1, end_B1), first.gather(1, end_B1))
    return first.scatter(1, end_B1, torch.where(again_B1 == REJECTED, first.gather(1, end_B1), again_B1))


def outcomes(said_BR: Tensor) -> Tensor:
    """How often each emitted sequence came: [(K + 1) * V], by its length and last token."""
    length_B = (said_BR != REJECTED).sum(1)
    last_B = said_BR.gather(1, length_B[:, None] - 1)[:, 0]
    for place, token in enumerate(DRAFTED):
        assert bool((said_BR[length_B > place + 1, place] == token).all())
    return torch.bincount((length_B - 1) * VOCAB + last_B, minlength=VOCAB * (len(DRAFTED) + 1))


def expected(laws: Tensor) -> Tensor:
    """The law of `outcomes`, from the rows' laws [K + 1, V]."""
    parts, reached = [], 1.0
    for law, token in zip(laws.double(), [*DRAFTED, None], strict=True):
        here = law.clone()
        if token is not None:
            here[token] = 0.0
        parts.append(reached * here)
        reached = reached * float(law[token]) if token is not None else 0.0
    return torch.cat(parts)


def p_value(sampled: Sampled, laws: Tensor, said: SamplingMetadata, draft_probs: Tensor | None = None) -> float:
    torch.manual_seed(0)
    logits = world().repeat(REQUESTS, 1)
    return chi_square(
        outcomes(sampled(metadata([list(DRAFTED)] * REQUESTS), draft_probs, logits, said)), expected(laws)
    )


FILTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "temperature": ({}, {}),
    "top-k": ({"top_k": torch.full((REQUESTS,), 4, dtype=torch.int32)}, {"top_k": 4}),
    "top-p": ({"top_p": torch.full((REQUESTS,), 0.8)}, {"top_p": 0.8}),
    "both": (
        {"top_k": torch.full((REQUESTS,), 6, dtype=torch.int32), "top_p": torch.full((REQUESTS,), 0.9)},
        {"top_k": 6, "top_p": 0.9},
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_tokens_follow_the_law_of_their_rows(name: str) -> None:
    more, filters = FILTERS[name]
    laws = target_law(world(), SamplingParams.uniform(len(DRAFTED) + 1, 0.7, **filters))
    assert p_value(ours, laws, sampling(REQUESTS, 0.7, **more)) > EDGE


@pytest.mark.parametrize("wrong", [vllms, argmax, keeps_rejected])
def test_a_wrong_sampler_is_found(wrong: Sampled) -> None:
    laws = target_law(world(), SamplingParams.uniform(len(DRAFTED) + 1, 0.7))
    assert p_value(wrong, laws, sampling(REQUESTS, 0.7)) < EDGE


def test_drafts_that_were_drawn_keep_the_law_and_are_accepted_more_often() -> None:
    torch.manual_seed(0)
    laws = target_law(world(), SamplingParams.uniform(3, 1.0))
    draft_law = (0.5 * laws[0] + 0.5 / VOCAB).expand(REQUESTS, VOCAB).contiguous()
    drafted_B = torch.multinomial(draft_law, 1)[:, 0]
    meta = metadata([[token] for token in drafted_B.tolist()])
    logits = world()[:2].repeat(REQUESTS, 1)
    accepted = []
    for given in (draft_law, None):
        said = ours(meta, given, logits, sampling(REQUESTS, 1.0, spec_token_ids=[[t] for t in drafted_B.tolist()]))
        assert chi_square(torch.bincount(said[:, 0], minlength=VOCAB), laws[0].double()) > EDGE
        both = said[said[:, 1] != REJECTED]
        assert chi_square(torch.bincount(both[:, 1], minlength=VOCAB), laws[1].double()) > EDGE
        accepted.append(len(both) / REQUESTS)
    want = float(torch.minimum(laws[0], draft_law[0]).sum())
    assert accepted[0] == pytest.approx(want, abs=0.02) and accepted[1] < want - 0.1


def test_greedy_rows_of_a_mixed_batch_and_rows_of_other_lengths() -> None:
    logits = world()
    best = logits.argmax(-1).tolist()
    drafts = [[best[0]], [], list(DRAFTED), [best[0], best[1]], [best[0], (best[1] + 1) % VOCAB]]
    rows = torch.cat([logits[: len(tokens) + 1] for tokens in drafts])
    temperatures = [0.0, 0.0, 1.0, 0.0, 0.0]
    for given in (None, torch.full((7, VOCAB), 1 / VOCAB)):
        said = ours(metadata(drafts), given, rows, sampling(5, temperatures, spec_token_ids=drafts)).tolist()
        assert said[0] == [*best[:2], REJECTED]
        assert said[1] == [best[0], REJECTED, REJECTED]
        assert said[3] == best
        assert said[4] == [*best[:2], REJECTED]


def test_a_seed_gives_plain_decodings_tokens_and_takes_one_draw_each() -> None:
    def generators() -> dict[int, torch.Generator]:
        return {1: torch.Generator().manual_seed(7), 2: torch.Generator().manual_seed(8)}

    def plain(own: torch.Generator, rows: int) -> list[int]:
        said = (SamplerV1()(world()[row, None], sampling(1, 0.9, generators={0: own})) for row in range(rows))
        return [int(output.sampled_token_ids) for output in said]

    alone = {place: plain(own, 3) for place, own in generators().items()}
    drafts = [list(DRAFTED), alone[1][:2], [alone[2][0], (alone[2][1] + 1) % VOCAB]]
    left = generators()
    said = ours(metadata(drafts), None, world().repeat(3, 1), sampling(3, 0.9, generators=left, spec_token_ids=drafts))
    assert said[1].tolist() == alone[1]
    assert said[2].tolist() == [*alone[2][:2], REJECTED]
    # the next token is plain decoding's too
    again = generators()
    for place, drawn in ((1, 3), (2, 2)):
        plain(again[place], drawn)
        assert plain(left[place], 1) == plain(again[place], 1)


def test_penalties_see_the_drafts_before_a_row() -> None:
    said = sampling(
        REQUESTS, 1.0, no_penalties=False, prompt_token_ids=torch.full((REQUESTS, 1), VOCAB),
        presence_penalties=torch.full((REQUESTS,), 2.0), output_token_ids=[[1] for _ in range(REQUESTS)],
    )  # fmt: skip
    logits = world()
    for row, text in enumerate(([1], [1, DRAFTED[0]], [1, *DRAFTED])):
        logits[row, text] -= 2.0
    assert p_value(ours, target_law(logits, SamplingParams.uniform(3)), said) > EDGE
    assert p_value(ours, target_law(world(), SamplingParams.uniform(3)), said) < EDGE


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_logprobs_are_those_of_the_tokens(mode: Any) -> None:
    logits, drafts = world(), [list(DRAFTED)] * 4
    sampler = RejectionSamplerV1(SamplerV1(mode))
    output = sampler(metadata(drafts), None, logits.repeat(4, 1), sampling(4, 0.5, max_num_logprobs=0))
    want = (logits / (0.5 if mode.startswith("processed") else 1.0)).log_softmax(-1)
    logprobs = output.logprobs_tensors.logprobs.view(4, 3)
    for tokens, told in zip(output.sampled_token_ids.tolist(), logprobs.tolist(), strict=True):
        for place, token in enumerate(token for token in tokens if token != REJECTED):
            assert told[place] == pytest.approx(float(want[place, token]), abs=1e-4)
