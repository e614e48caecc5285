"""`eagle3 serve`: check a drafter, mend what the engine would get wrong, start the engine, and show what is accepted."""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from eagle3_serving.cli import arguments
from eagle3_serving.cli.arguments import add_pair, add_server, check_server
from eagle3_serving.cli.parser import Parser
from eagle3_serving.errors import InputError

if TYPE_CHECKING:
    from eagle3_serving.serve.servable import Servable
    from eagle3_serving.serve.server import ServerCommand

_EXAMPLES = """examples:
  eagle3 serve --engine vllm --target models/llama-3.1-8b-instruct --drafter models/eagle3-llama-3.1-8b --port 8000
  eagle3 serve --engine sglang --target DIR --drafter DIR --profile runs/profile.json --tp 2 -- --mem-fraction-static 0.8

What stands behind -- goes to the engine as it is. Everything here can be said to the engines themselves; the command that
is run is printed.
"""


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "serve",
        help="check, convert if needed, and serve a target with its drafter",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("--engine", choices=("vllm", "sglang"), required=True)
    add_pair(parser, ", of any dialect")
    parser.add_argument("--profile", type=Path, help="what was measured here; the plugin decides by it")
    parser.add_argument(
        *arguments.CHAIN, type=int, default=3, help="vLLM: most draft tokens a request and step (default 3)"
    )
    add_server(parser, 8000)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.k < 1:
        raise InputError(f"--k is {args.k}: it must be at least 1")
    check_server(args)
    _require(args.engine)
    from eagle3_serving.serve.live import watch
    from eagle3_serving.serve.servable import servable
    from eagle3_serving.serve.server import Server

    drafter = servable(args.drafter, args.engine, args.target)
    if drafter.mended is not None:
        _say(
            f"{args.engine} would not serve {args.drafter} rightly ({drafter.mended.line()}): its copy {drafter.directory} is served"
        )
    for finding in drafter.warnings:
        _say(f"warning: {finding.line()}")
    for finding in drafter.unjudged:
        _say(f"not judged here, served as it is by {args.engine}'s own EAGLE-3: {finding.line()}")
    command = _command(args, drafter)
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in command.environment.items())
    _say(f"{settings} {shlex.join(part.replace('{port}', str(args.port)) for part in command.argv)}")
    log = args.log or Path(tempfile.mkdtemp(prefix="eagle3-serve-")) / "server.log"
    with Server(command, log, args.port, args.ready_timeout) as server:
        _say(f"ready after {server.startup_s:.0f} s: {server.url}/v1 (log: {log})")
        _say("accepted length: tokens that a pass of the target yields a request, 1 where nothing is drafted")
        return watch(server, args.engine)


def _require(engine: str) -> None:
    """Raise InputError, before a drafter is read, where the engine is not installed."""
    from eagle3_serving.serve.sglang import sglang_python
    from eagle3_serving.serve.vllm import require_vllm

    require_vllm() if engine == "vllm" else sglang_python()


def _command(args: argparse.Namespace, drafter: "Servable") -> "ServerCommand":
    if args.engine == "vllm":
        from eagle3_serving.serve.vllm import VllmOptions, on_cpu, vllm_command

        return vllm_command(
            VllmOptions(
                args.target,
                drafter.directory,
                k=args.k,
                dtype=args.dtype,
                max_model_len=args.context,
                max_num_seqs=args.max_requests,
                compiled=not on_cpu(),
                prefix_cache=True,
                profile=args.profile,
                host=args.host,
                tensor_parallel=args.tensor_parallel_size,
                plugin=not drafter.unjudged,
                parallel=drafter.parallel,
                extra=tuple(args.engine_args),
            )
        )
    from eagle3_serving.serve.sglang import SglangOptions, sglang_command

    return sglang_command(
        SglangOptions(
            args.target,
            drafter.directory,
            dtype=args.dtype,
            max_requests=args.max_requests,
            kv_tokens=None,
            context=args.context,
            radix_cache=True,
            profile=args.profile,
            host=args.host,
            tensor_parallel=args.tensor_parallel_size,
            extra=tuple(args.engine_args),
        )
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
