"""Plain and speculative SGLang side by side: two servers at once, each batch of prompts sent to one after the other."""

from contextlib import ExitStack
from dataclasses import replace

from eagle3_serving.errors import InputError
from eagle3_serving.eval.law import hold_law
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.eval.report import EvalReport
from eagle3_serving.eval.rounds import summarise
from eagle3_serving.eval.vllm import measure
from eagle3_serving.serve.room import room_for
from eagle3_serving.serve.server import Server, log_directory
from eagle3_serving.serve.sglang import SglangOptions, sglang_command
from eagle3_serving.serve.sglang_client import SglangClient
from eagle3_serving.serve.shape import Shape

_WARM_UP = "Name three colours."


def run_sglang(options: EvalOptions) -> EvalReport:
    """The first turn of every prompt, on a plain server and on one with the drafter; see `eval.vllm.run_vllm`.

    Raises InputError for what cannot be served, before anything starts; CheckError where a server fails.
    """
    if options.mode == "plain":
        raise InputError("--mode plain has nothing to compare on SGLang: use chain, tree or auto")
    families = by_family(read_prompts(options.prompts, options.limit))
    texts = [prompt.turns[0] for prompts in families.values() for prompt in prompts]
    room = room_for(options.target, texts, options.max_tokens, SglangOptions.context)
    server = SglangOptions(
        options.target,
        options.drafter,
        shape_of(options),
        dtype=options.dtype,
        max_requests=max(16, options.batch),
        kv_tokens=max(16384, room),
        context=room,
        profile=options.profile,
    )
    commands = sglang_command(replace(server, drafter=None, shape=None)), sglang_command(server)
    with ExitStack() as stack:
        logs = stack.enter_context(log_directory("eval"))
        servers = [
            stack.enter_context(Server(command, logs / log))
            for command, log in zip(commands, ("plain.log", "spec.log"), strict=True)
        ]
        plain, spec = (stack.enter_context(SglangClient(server.url, options.target)) for server in servers)
        for client in (plain, spec):
            client.ask(_WARM_UP, max_tokens=16)
        law = hold_law(plain.draw, spec.draw, options.temperature)
        rounds = measure(options, families, plain, spec)
    return summarise(options, {name: len(prompts) for name, prompts in families.items()}, rounds, law)


def shape_of(options: EvalOptions) -> Shape | None:
    """The fixed tree asked for, None where it is to follow the batch."""
    if options.mode == "chain":
        return Shape.chain(options.k)
    return None if options.mode == "auto" else Shape(options.depth, options.top_k, options.nodes + 1)
