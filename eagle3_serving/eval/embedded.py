"""The embedded engine with and without the drafter, prompt by prompt in one run."""

from typing import Any, Literal

import torch
from tqdm import tqdm

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation
from eagle3_serving.errors import InputError
from eagle3_serving.eval.counters import SpecCounters
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.prompts import Prompt, by_family, read_prompts
from eagle3_serving.eval.report import EvalReport
from eagle3_serving.eval.rounds import Round, summarise
from eagle3_serving.targets.chat import chat_ids, load_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def run_embedded(options: EvalOptions) -> EvalReport:
    """The first turn of every prompt, greedy, batch 1. Tokens a second include the prefill.

    The order alternates (plain, speculative | speculative, plain | ...). Raises InputError for what the embedded
    engine cannot do yet, and for a target, drafter or prompt file that cannot be used.
    """
    mode = _supported(options)
    families = by_family(read_prompts(options.prompts, options.limit))
    engine = EmbeddedEngine.load(options.target, options.drafter, DTYPES[options.dtype])
    tokenizer = load_tokenizer(options.target)
    speculative = DecodeOptions(
        options.max_tokens, mode, k=options.k, nodes=options.nodes, depth=options.depth, top_k=options.top_k
    )
    plain = DecodeOptions(options.max_tokens, "plain")
    engine.generate(chat_ids(tokenizer, "Name three colours."), DecodeOptions(8, mode))  # warm-up
    rounds: dict[str, list[Round]] = {name: [] for name in families}
    total = options.repeats * sum(map(len, families.values()))
    with tqdm(total=total, desc=f"{options.mode} against plain", unit="prompt") as bar:
        for _ in range(options.repeats):
            for name, prompts in families.items():
                rounds[name].append(_round(engine, tokenizer, prompts, plain, speculative, bar))
    return summarise(options, {name: len(prompts) for name, prompts in families.items()}, rounds)


def _supported(options: EvalOptions) -> Literal["chain", "tree"]:
    if options.mode not in ("chain", "tree"):
        raise InputError(f"--mode {options.mode} is not available on the embedded engine yet: use chain or tree")
    if options.batch != 1:
        raise InputError(f"--batch {options.batch}: the embedded engine serves one request at a time; use --batch 1")
    if options.temperature != 0.0:
        raise InputError(f"--temperature {options.temperature:g}: the embedded engine decodes greedily; use 0")
    return "tree" if options.mode == "tree" else "chain"


def _round(
    engine: EmbeddedEngine,
    tokenizer: Any,
    prompts: list[Prompt],
    plain: DecodeOptions,
    speculative: DecodeOptions,
    bar: "tqdm[Any]",
) -> Round:
    result = Round()
    for number, prompt in enumerate(prompts):
        ids = chat_ids(tokenizer, prompt.turns[0])
        order = (plain, speculative) if number % 2 == 0 else (speculative, plain)
        said = {options.mode: engine.generate(ids, options) for options in order}
        alone, drafted = said["plain"], said[speculative.mode]
        result.add([alone.token_ids], alone.seconds, [drafted.token_ids], drafted.seconds)
        result.counters += _counters(drafted)
        bar.update()
        bar.set_postfix(accepted_length=f"{result.counters.accepted_length:.2f}")
    return result


def _counters(generation: Generation) -> SpecCounters:
    # every pass yields its bonus token, so what is above one a pass was drafted; the prefill's own token is not counted
    accepted = len(generation.token_ids) - 1 - generation.steps
    return SpecCounters(generation.steps, 0, accepted, generation.accepted_by_position)
