"""Servers as sides: the engines' OpenAI (vLLM) and native (SGLang) endpoints under a closed loop of threads.

Why no load generator of the ecosystem drives this: `vllm bench serve`, `sglang.bench_serving` and GuideLLM each load one
server at a time and keep no token ids. Here rounds of several servers interleave, so that a busy neighbour hits all of
them alike, and every answer is held against plain decoding's, token for token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from eagle3_serving.bench.load import Load, Outcome, Side, Timed
from eagle3_serving.bench.options import BenchOptions
from eagle3_serving.bench.setting import Setting
from eagle3_serving.errors import InputError
from eagle3_serving.eval.law import Answers
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.serve.client import ChatClient
from eagle3_serving.serve.room import room_for
from eagle3_serving.serve.server import Server, ServerCommand, log_directory
from eagle3_serving.serve.sglang import SglangOptions, sglang_command
from eagle3_serving.serve.sglang_client import SglangClient
from eagle3_serving.serve.shape import Shape
from eagle3_serving.serve.vllm import VllmOptions, vllm_command
from eagle3_serving.targets.chat import has_chat_template

_WARM_UP = "Name three colours."
_AUTO_K = 3  # vLLM asks for the most draft tokens a step
PROFILED_K = 4  # the same where a profile says how many of them pay


class ServerSide:
    def __init__(self, client: ChatClient) -> None:
        self.client = client

    def run(self, prompts: Sequence[str], load: Load) -> Outcome:
        before = self.client.counters()
        said, seconds = self.client.ask_all(
            prompts, load.tokens, load.temperature, load.concurrency, natural_end=load.natural_end
        )
        answers = tuple(Timed(one.token_ids, one.first_token_s, one.total_s) for one in said)
        return Outcome(answers, seconds, self.client.counters() - before)

    def draw(self, text: str, draws: int, tokens: int, temperature: float) -> Answers:
        return self.client.draw(text, draws, tokens, temperature)


@contextmanager
def open_servers(options: BenchOptions) -> Iterator[dict[str, Side]]:
    """One server a setting, all up at once and warmed up; those of `options.urls` are only spoken to.

    Raises InputError for what cannot be served, before anything starts; CheckError where a server fails.
    """
    commands = {s.name: server_command(options, s) for s in options.chosen if s.name not in options.urls}
    connect = _connect(options)
    with ExitStack() as stack:
        logs = stack.enter_context(log_directory("bench"))
        sides: dict[str, Side] = {}
        for setting in options.chosen:
            url = options.urls.get(setting.name)
            if url is None:
                server = Server(commands[setting.name], logs / f"{setting.name}.log")
                url = stack.enter_context(server).url
            client = stack.enter_context(connect(url.rstrip("/").removesuffix("/v1")))
            client.ask(_WARM_UP, max_tokens=16)
            sides[setting.name] = ServerSide(client)
        yield sides


def server_command(options: BenchOptions, setting: Setting) -> ServerCommand:
    """How the server of a setting is started. Raises InputError where it cannot be."""
    drafter = None if setting.kind == "plain" else options.drafter
    requests, room = max(options.concurrency), _room(options)
    if options.engine == "vllm":
        if options.simulate is not None and setting.kind == "tree":
            raise InputError(f"setting {setting.name!r}: vLLM simulates the acceptance of chains alone")
        return vllm_command(
            VllmOptions(
                options.target,
                drafter,
                k=setting.sizes[0] if setting.sizes else PROFILED_K if options.profile else _AUTO_K,
                dtype=options.dtype,
                max_model_len=room,
                max_num_seqs=max(16, requests),
                plugin=not setting.own,
                profile=options.profile if setting.kind == "auto" else None,
                simulate=options.simulate if drafter else None,
                extra=options.engine_args,
            )
        )
    command = sglang_command(
        SglangOptions(
            options.target,
            drafter,
            shape=_shape(setting),
            plugin=not setting.own,
            dtype=options.dtype,
            max_requests=max(16, requests),
            kv_tokens=max(16384, 1024 * requests, room),
            context=room,
            profile=options.profile if setting.kind == "auto" else None,
            extra=options.engine_args,
        )
    )
    return replace(command, environment={**command.environment, **_simulated(options, setting)})


def _room(options: BenchOptions) -> int:
    texts = [prompt.turns[0] for prompt in read_prompts(options.prompts)]
    return room_for(options.target, texts, options.tokens, VllmOptions.max_model_len)  # which is SGLang's too


def _shape(setting: Setting) -> Shape | None:
    if setting.kind == "chain":
        return Shape.chain(setting.sizes[0])
    return Shape(*setting.sizes) if setting.kind == "tree" else None


def _simulated(options: BenchOptions, setting: Setting) -> dict[str, str]:
    """SGLang is told a mean accepted length: that of a chain whose tokens are each accepted at the rate."""
    if options.simulate is None or setting.kind == "plain":
        return {}
    if setting.kind == "auto":
        raise InputError("SGLang simulates one accepted length whatever the shape: leave auto out of --settings")
    depth = setting.sizes[0]
    return {"SGLANG_SIMULATE_ACC_LEN": str(sum(options.simulate**place for place in range(depth + 1)))}


def _connect(options: BenchOptions) -> Callable[[str], ChatClient]:
    if options.engine == "sglang":
        return lambda url: SglangClient(url, options.target, options.timeout_s)
    return lambda url: ChatClient(url, timeout_s=options.timeout_s, chat=has_chat_template(options.target))
