"""Odd targets and features on real vLLM, one engine after the other in this process: plain, then with the plugin and a drafter.

    PYTHONPATH=tests/engines/mrv2_on_cpu python tests/engines/features_in_vllm.py FOLDER CASE...

Prints a line of JSON a case: tokens of both, what was drafted and accepted, and the plugin's lines. Plain decoding is Model
Runner V1's.
"""

import gc
import json
import logging
import os
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "EAGLE3_TREE_DEPTH": "3",
    "EAGLE3_TREE_TOP_K": "6",
}
LENGTHS, TOKENS, NODES = (40, 70, 9), 10, 16
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"


@dataclass(frozen=True)
class Case:
    """`kind` of `odd_targets.KINDS`, or a method of quantisation of `METHODS`. `engine`: arguments of `vllm.LLM`. `drafter`: the
    usual one, a parallel one, or one with a causal head, of which it is told too what the embedded engine drafts with it."""

    kind: str
    engine: dict[str, Any] = field(default_factory=dict)
    runner: int = 2
    adapter: bool = False
    logprobs: int | None = None
    drafter: str = "drafter"
    tokens: int = TOKENS


CASES = {
    "causal head": Case("llama", drafter="causal head", tokens=24),
    "masks": Case("llama", runner=1, drafter="masks"),
    "1:1": Case("as many key heads as query heads"),
    "8:1": Case("eight query heads a key head"),
    "experts": Case("experts, four query heads a key head"),
    "fp8": Case("fp8"),
    "int8": Case("int8"),
    "w4a16": Case("w4a16", {"dtype": "bfloat16"}),  # vLLM's CPU kernels of four bits know no fp32
    "awq": Case("awq", {"dtype": "bfloat16"}),
    "fp8 KV": Case("llama", {"kv_cache_dtype": "fp8"}),
    "windows in all": Case("windows in all layers"),
    "windows in some": Case("windows in some layers"),
    "adapter": Case("llama", runner=1, adapter=True, logprobs=1),
    "adapter, V2": Case("llama", adapter=True, logprobs=1),
    "mixtral": Case("mixtral"),
}


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def main(folder: Path, names: list[str]) -> None:
    import odd_targets
    from torch_kernels import stand_in

    stand_in()
    gc.collect()
    gc.freeze()  # vLLM collects a dozen times an engine, each time through all modules
    lines = Lines()
    known: dict[str, Any] = {}  # plain answers
    adapter = odd_targets.drawn_adapter(folder / "adapter")
    for name in names or CASES:
        case = CASES[name]
        draw = odd_targets.quantised if case.kind in odd_targets.METHODS else odd_targets.drawn
        target = folder / case.kind.replace(" ", "-")
        if not target.exists():
            draw(target, case.kind)
        asked = replace(case, runner=1, drafter="")
        if str(asked) not in known:
            known[str(asked)] = ask(target, asked, adapter)
        plain = known[str(asked)]
        lines.said.clear()
        logging.getLogger("vllm.eagle3").addHandler(lines)  # once the first engine has set logging up
        kinds = {"masks": case.drafter != "drafter", "causal_head": case.drafter == "causal head"}
        drafter = odd_targets.drawn_drafter(folder / case.drafter.replace(" ", "-"), **kinds)
        ours = ask(target, case, adapter, drafter)
        if kinds["causal_head"]:
            ours["embedded"] = embedded(target, drafter, case.tokens)
        print("\n" + json.dumps({name: {"plain": plain, **ours, "lines": list(lines.said)}}), flush=True)


def texts() -> list[list[int]]:
    dice = random.Random(3)
    return [[dice.randrange(8) for _ in range(length)] for length in LENGTHS]


def embedded(target: Path, drafter: Path, tokens: int) -> dict[str, list[list[int]]]:
    """What the embedded engine accepts of the same trees in each step, with the drafter's causal head and without."""
    from eagle3_serving.engine import DecodeOptions, EmbeddedEngine

    engine = EmbeddedEngine.load(target, drafter)
    options = DecodeOptions(tokens, "tree", nodes=NODES, depth=3, top_k=6, eos_ids=())
    said = [engine.generate_many(texts(), options, len(LENGTHS))]
    engine.drafter.causal, engine.drafter.config = None, replace(engine.drafter.config, causal_head=False)
    said.append(engine.generate_many(texts(), options, len(LENGTHS)))
    headed, masks = ([list(one.accepted) for one in part] for part in said)
    return {"steps": headed, "by masks": masks}


def ask(target: Path, case: Case, adapter: Path, drafter: Path | None = None) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.lora.request import LoRARequest

    os.environ[RUNNER] = str(case.runner - 1)
    arguments: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "max_model_len": 256,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 256,
        "block_size": 32,
        "num_gpu_blocks_override": 64,
        "kv_cache_memory_bytes": 64 << 20,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        "enable_lora": case.adapter,
        "max_lora_rank": 8,
        "max_loras": 2,  # on a CPU vLLM gives requests without an adapter the last one's place, which stays empty so
        **case.engine,
    }
    if drafter is not None:
        arguments["speculative_config"] = {"method": "eagle3", "model": str(drafter), "num_speculative_tokens": NODES}
        arguments["per_request_spec_decode_metrics"] = "detailed"
    llm = LLM(str(target), **arguments)
    prompts: Any = [{"prompt_token_ids": text} for text in texts()]
    params = SamplingParams(
        temperature=0, max_tokens=case.tokens, ignore_eos=True, detokenize=False, logprobs=case.logprobs
    )
    # one of the batch by the adapter, the others by the target alone
    wanted = [LoRARequest("adapter", 1, str(adapter)), None, None] if case.adapter else None
    outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=wanted)
    answers = [output.outputs[0] for output in outputs]
    metrics = {one.name: getattr(one, "value", None) for one in llm.get_metrics()}
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    told = [getattr(answer, "spec_decode_metrics", None) for answer in answers]
    return {
        "steps": [list(one.per_step_accepted) for one in told if one],
        "tokens": [list(answer.token_ids) for answer in answers],
        "logprobs": [
            [row[token].logprob for row, token in zip(answer.logprobs, answer.token_ids, strict=True)]
            for answer in answers
            if answer.logprobs
        ],
        "drafted": metrics.get("vllm:spec_decode_num_draft_tokens") or 0,
        "accepted": metrics.get("vllm:spec_decode_num_accepted_tokens") or 0,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
