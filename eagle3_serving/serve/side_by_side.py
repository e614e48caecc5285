"""Two vLLM servers at once, alike but for the drafter: what every comparison stands on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from eagle3_serving.serve.client import ChatClient
from eagle3_serving.serve.server import Server, log_directory
from eagle3_serving.serve.vllm import VllmOptions, vllm_command
from eagle3_serving.targets.chat import has_chat_template

_WARM_UP = "Name three colours."


@contextmanager
def side_by_side(options: VllmOptions, name: str) -> Iterator[tuple[ChatClient, ChatClient]]:
    """Clients of a plain server and of one with `options.drafter`, both warmed up; `name` is in the logs' folder.

    Raises InputError for options that cannot be served, before anything starts; CheckError where a server fails.
    """
    commands = vllm_command(replace(options, drafter=None)), vllm_command(options)
    with ExitStack() as stack:
        logs = stack.enter_context(log_directory(name))
        servers = [
            stack.enter_context(Server(command, logs / log))
            for command, log in zip(commands, ("plain.log", "spec.log"), strict=True)
        ]
        chat = has_chat_template(options.target)
        plain, spec = (stack.enter_context(ChatClient(server.url, chat=chat)) for server in servers)
        for client in (plain, spec):
            client.ask(_WARM_UP, max_tokens=16)
        yield plain, spec
