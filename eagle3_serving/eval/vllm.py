"""Plain and speculative vLLM side by side: two servers at once, each batch of prompts sent to one after the other."""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.progress import Progress

from eagle3_serving.errors import InputError
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.prompts import Prompt, by_family, read_prompts
from eagle3_serving.eval.report import EvalReport, Figures, Rate
from eagle3_serving.serve.client import Answer, ChatClient, SpecCounters
from eagle3_serving.serve.server import Server, log_directory
from eagle3_serving.serve.vllm import VllmOptions, vllm_command

_WARM_UP = "Name three colours."


@dataclass
class Round:
    """One family in one round: tokens and wall seconds of each side, and whether every answer was the same."""

    plain_tokens: int = 0
    plain_s: float = 0.0
    tokens: int = 0
    spec_s: float = 0.0
    identical: bool = True
    counters: SpecCounters = field(default_factory=SpecCounters)

    def add(self, plain: tuple[list[Answer], float], spec: tuple[list[Answer], float]) -> None:
        self.plain_tokens += sum(len(answer.token_ids) for answer in plain[0])
        self.tokens += sum(len(answer.token_ids) for answer in spec[0])
        self.plain_s += plain[1]
        self.spec_s += spec[1]
        self.identical &= all(a.token_ids == b.token_ids for a, b in zip(plain[0], spec[0], strict=True))


def run_vllm(options: EvalOptions) -> EvalReport:
    """The first turn of every prompt, on a plain server and on one with the drafter.

    Tokens a second = generated tokens / wall seconds of the requests, prefill included; a batch's seconds run until
    its last answer ends. The order alternates (plain, spec | spec, plain | ...), so that a busy neighbour hits both.
    Raises InputError for what vLLM cannot do yet, CheckError where a server fails.
    """
    if options.mode != "chain":
        raise InputError(f"--mode {options.mode} is not available on vLLM yet: use --mode chain")
    families = by_family(read_prompts(options.prompts, options.limit))
    base = VllmOptions(options.target, k=options.k, dtype=options.dtype, max_num_seqs=max(16, options.batch))
    plain = vllm_command(base)
    spec = vllm_command(replace(base, drafter=options.drafter))
    with ExitStack() as stack:
        logs = stack.enter_context(log_directory("eval"))
        plain_server = stack.enter_context(Server(plain, logs / "plain.log"))
        spec_server = stack.enter_context(Server(spec, logs / "spec.log"))
        plain_client = stack.enter_context(ChatClient(plain_server.url))
        spec_client = stack.enter_context(ChatClient(spec_server.url))
        rounds = measure(options, families, plain_client, spec_client)
    return summarise(options, {name: len(prompts) for name, prompts in families.items()}, rounds)


def measure(
    options: EvalOptions, families: dict[str, list[Prompt]], plain: ChatClient, spec: ChatClient
) -> dict[str, list[Round]]:
    """Family -> its rounds, in order."""
    for client in (plain, spec):
        client.ask(_WARM_UP, max_tokens=16)
    rounds: dict[str, list[Round]] = {name: [] for name in families}
    total = options.repeats * sum(len(prompts) for prompts in families.values())
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("asking both servers", total=total)
        plain_first = True
        for _ in range(options.repeats):
            for name, prompts in families.items():
                before = spec.counters()
                current = Round()
                for batch in _batches([prompt.turns[0] for prompt in prompts], options.batch):
                    current.add(*_both(options, batch, plain, spec, plain_first))
                    plain_first = not plain_first
                    progress.advance(bar, len(batch))
                current.counters = spec.counters() - before
                rounds[name].append(current)
    return rounds


def summarise(options: EvalOptions, sizes: dict[str, int], rounds: dict[str, list[Round]]) -> EvalReport:
    """`sizes`: prompts of each family."""
    families = {name: _figures(options, sizes[name], family) for name, family in rounds.items()}
    overall = [merge(parts) for parts in zip(*rounds.values(), strict=True)]
    return EvalReport(
        engine=options.engine,
        mode=options.mode,
        batch=options.batch,
        dtype=options.dtype,
        temperature=options.temperature,
        overall=_figures(options, sum(sizes.values()), overall),
        families=families,
        settings={"k": options.k, "max_tokens": options.max_tokens, "repeats": options.repeats},
    )


def accepted_length(counters: SpecCounters) -> float:
    """Tokens a verifying target pass yields, the bonus token included; 1.0 where nothing was drafted."""
    return (counters.accepted + counters.drafts) / counters.drafts if counters.drafts else 1.0


def _both(
    options: EvalOptions, batch: Sequence[str], plain: ChatClient, spec: ChatClient, plain_first: bool
) -> tuple[tuple[list[Answer], float], tuple[list[Answer], float]]:
    def ask(client: ChatClient) -> tuple[list[Answer], float]:
        return client.ask_all(batch, options.max_tokens, options.temperature, options.batch)

    if plain_first:
        first = ask(plain)
        return first, ask(spec)
    second = ask(spec)
    return ask(plain), second


def _batches(prompts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def merge(parts: Sequence[Round]) -> Round:
    """Their sum."""
    merged = Round(identical=all(part.identical for part in parts))
    for part in parts:
        merged.plain_tokens += part.plain_tokens
        merged.plain_s += part.plain_s
        merged.tokens += part.tokens
        merged.spec_s += part.spec_s
        merged.counters += part.counters
    return merged


def _figures(options: EvalOptions, prompts: int, rounds: Sequence[Round]) -> Figures:
    counters = merge(rounds).counters
    plain = [part.plain_tokens / part.plain_s for part in rounds]
    spec = [part.tokens / part.spec_s for part in rounds]
    return Figures(
        prompts=prompts,
        identical=all(part.identical for part in rounds) if options.exact else None,
        accepted_length=accepted_length(counters),
        acceptance_by_position=tuple(n / counters.drafts for n in counters.accepted_by_position)
        if counters.drafts
        else (),
        speedup=statistics.median(s / p for s, p in zip(spec, plain, strict=True)),
        tokens_per_second=_rate(spec),
        plain_tokens_per_second=_rate(plain),
    )


def _rate(values: Sequence[float]) -> Rate:
    return Rate(statistics.median(values), min(values), max(values))
