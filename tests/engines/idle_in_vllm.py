"""Stock vLLM in this process, runner V1: three texts whose middle is decoded without drafts. Prints what came of it.

    python tests/engines/idle_in_vllm.py TARGET DRAFTER

Rounds: the plugin's idle steps, vLLM's own (the whole drafter runs), and idle steps whose rows are never taken in. Before
them those of `gates_in_vllm`, since an engine takes seconds to start.
"""

import json
import os
import sys
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "EAGLE3_MODE": "chain"}
PROMPTS = ("List the days of the week.", "Write a Python function that adds two numbers.", "Count from one to thirty.")
TOKENS, BEFORE, WITHOUT, DRAFTED = 48, 4, 14, 4


def main(target: str, drafter: str) -> None:
    from eagle3_vllm.compat import RejectionSamplerV1, SpecDecodeBaseProposer
    from eagle3_vllm.idle import Backlog
    from vllm import LLM

    speculative = {
        "method": "eagle3",
        "model": drafter,
        "num_speculative_tokens": DRAFTED,
        "num_speculative_tokens_per_batch_size": [[1, 4, DRAFTED]],
    }
    llm = LLM(
        target, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4, enable_prefix_caching=False,
        disable_log_stats=False, speculative_config=speculative,
    )  # fmt: skip
    from gates_in_vllm import rounds

    gates = rounds(llm, PROMPTS)
    said = {"ours": _round(llm, "ours")}
    ours = SpecDecodeBaseProposer.propose, RejectionSamplerV1.forward
    SpecDecodeBaseProposer.propose, RejectionSamplerV1.forward = (made.__wrapped__ for made in ours)  # type: ignore[attr-defined]
    said["vLLM's"] = _round(llm, "theirs")
    SpecDecodeBaseProposer.propose, RejectionSamplerV1.forward = ours
    Backlog.absorb = lambda self: self._missed.clear()  # type: ignore[method-assign]
    said["never taken in"] = _round(llm, "never")
    print("\n" + json.dumps({**said, "gates": gates}))


def _round(llm: Any, name: str) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    lookup = engine.engine_core.engine_core.scheduler.dynamic_sd_lookup
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY)
    for place, prompt in enumerate(PROMPTS):
        engine.add_request(f"{name}-{place}", llm.get_tokenizer()(prompt)["input_ids"], params)
    tokens, steps = {}, 0
    while engine.has_unfinished_requests():
        drafted = 0 if BEFORE <= steps < BEFORE + WITHOUT else DRAFTED
        lookup[:] = [drafted] * len(lookup)
        if steps == BEFORE + WITHOUT + 1:
            before = _accepted(llm)
        for output in engine.step():
            tokens[output.request_id.split("-")[1]] = list(output.outputs[0].token_ids)
        steps += 1
    return {"tokens": tokens, "steps": steps, "accepted_after": _accepted(llm) - before}


def _accepted(llm: Any) -> int:
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:spec_decode_num_accepted_tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
