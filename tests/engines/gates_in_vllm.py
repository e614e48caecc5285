"""Gates of single requests on the engine of `idle_in_vllm`: what each request had drafted, and how many rows every step had."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

TOKENS, DRAFTED = 26, 4
OFF = {"eagle3": "off"}


def rounds(llm: Any, prompts: Sequence[str]) -> dict[str, Any]:
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    gating = scheduler.eagle3_gating
    lookup = scheduler.dynamic_sd_lookup
    lookup[:] = [DRAFTED] * len(lookup)
    gating.tally.closed.clear()
    said = {
        "plain": _round(llm, "plain", prompts, [OFF] * 3),
        "mixed": _round(llm, "mixed", prompts, [OFF, {"eagle3_draft_tokens": 2}, {}]),
    }
    ours = gating.gates
    gating.gates = replace(ours, accepted=float(DRAFTED))  # more than any draft may gain
    said["accepted"] = _round(llm, "accepted", prompts, [{}] * 3)
    gating.gates = replace(ours, context=26)
    said["context"] = _round(llm, "context", prompts, [{}] * 3)
    gating.gates = ours
    return said


def _round(llm: Any, name: str, prompts: Sequence[str], asked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`tokens`, and by step `drafts` of each request scheduled, `rows` of each in the target's pass."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    for place, (prompt, fields) in enumerate(zip(prompts, asked, strict=True)):
        params = SamplingParams(
            temperature=0, max_tokens=TOKENS, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=dict(fields) or None,
        )  # fmt: skip
        engine.add_request(f"{name}-{place}", llm.get_tokenizer()(prompt)["input_ids"], params)
    schedule, steps = scheduler.schedule, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        place_of = {request: int(request.split("-")[1]) for request in output.num_scheduled_tokens}
        rows = {place_of[request]: rows for request, rows in output.num_scheduled_tokens.items()}
        drafts = {place_of[request]: len(ids) for request, ids in output.scheduled_spec_decode_tokens.items()}
        steps.append((rows, drafts, output.num_spec_tokens_to_schedule))
        return output

    scheduler.schedule = watched
    tokens: dict[int, list[int]] = {}
    try:
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens[int(output.request_id.split("-")[1])] = list(output.outputs[0].token_ids)
    finally:
        del scheduler.schedule
    gating = scheduler.eagle3_gating
    closed = dict(gating.tally.closed)
    gating.tally.closed.clear()
    steps = [step for step in steps if step[0]][1:]  # behind the prompts
    return {
        "tokens": [tokens[place] for place in range(len(prompts))],
        "rows": [[rows.get(place) for rows, _, _ in steps] for place in range(len(prompts))],
        "drafts": [
            [drafts.get(place, 0) for rows, drafts, _ in steps if place in rows] for place in range(len(prompts))
        ],
        "drafting": [wanted for _, _, wanted in steps],
        "closed": closed,
    }
