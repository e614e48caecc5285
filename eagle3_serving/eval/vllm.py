"""Plain and speculative vLLM side by side: two servers at once, each batch of prompts sent to one after the other."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import Progress

from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.eval.law import hold_law
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.prompts import Prompt, by_family, read_prompts
from eagle3_serving.eval.report import EvalReport
from eagle3_serving.eval.rounds import Round, summarise
from eagle3_serving.serve.client import Answer, ChatClient
from eagle3_serving.serve.room import room_for
from eagle3_serving.serve.side_by_side import side_by_side
from eagle3_serving.serve.vllm import VllmOptions


def run_vllm(options: EvalOptions) -> EvalReport:
    """The first turn of every prompt, on a plain server and on one with the drafter.

    Tokens a second = generated tokens / wall seconds of the requests, prefill included; a batch's seconds run until
    its last answer ends. The order alternates (plain, spec | spec, plain | ...), so that a busy neighbour hits both.
    Raises InputError for options that do not go together, CheckError where a server fails or verifies no trees though
    they were asked for, LawError where sampled answers are not of the target's law.
    """
    server = server_of(options)
    families = by_family(read_prompts(options.prompts, options.limit))
    texts = [prompt.turns[0] for prompts in families.values() for prompt in prompts]
    server = replace(server, max_model_len=room_for(options.target, texts, options.max_tokens, server.max_model_len))
    with side_by_side(server, "eval") as (plain, spec):
        if options.mode == "tree" and not spec.tree_passes():
            raise CheckError(
                "this vLLM verifies chains only, and its log says why (on a CPU: Model Runner V1); use --mode chain"
            )
        law = hold_law(plain.draw, spec.draw, options.temperature)
        rounds = measure(options, families, plain, spec)
    return summarise(options, {name: len(prompts) for name, prompts in families.items()}, rounds, law)


def server_of(options: EvalOptions) -> VllmOptions:
    """The server with the drafter. Raises InputError for a mode that vLLM has not."""
    server = VllmOptions(
        options.target,
        options.drafter,
        options.k,
        options.dtype,
        max_num_seqs=max(16, options.batch),
        told_by_step=True,
    )
    match options.mode:
        case "chain":
            return replace(server, only_chain=True)
        case "tree":
            return replace(server, k=options.nodes, depth=options.depth, top_k=options.top_k)
        case "auto" if options.profile is not None:
            return replace(server, profile=options.profile)
        case "auto":
            raise InputError("--mode auto on vLLM needs --profile: eagle3 tune writes one")
    raise InputError("--mode plain has nothing to compare on vLLM: use --mode chain, tree or auto")


def measure(
    options: EvalOptions, families: dict[str, list[Prompt]], plain: ChatClient, spec: ChatClient
) -> dict[str, list[Round]]:
    """Family -> its rounds, in order."""
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
                    (said, said_s), (drafted, drafted_s) = _both(options, batch, plain, spec, plain_first)
                    current.add([a.token_ids for a in said], said_s, [a.token_ids for a in drafted], drafted_s)
                    for answer in drafted if options.mode in ("chain", "tree") else ():  # there every step verifies
                        current.context.place(answer.prompt_tokens + 1, answer.accepted)
                    plain_first = not plain_first
                    progress.advance(bar, len(batch))
                current.counters = spec.counters() - before
                rounds[name].append(current)
    return rounds


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
