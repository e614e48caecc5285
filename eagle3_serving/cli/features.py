"""`eagle3 features`: a vLLM server that writes a target's hidden states into a folder, for `eagle3 train --features-from`."""

import argparse
import tempfile
import time
from pathlib import Path

from eagle3_serving.cli.arguments import add_server, add_target, check_server
from eagle3_serving.cli.parser import Parser
from eagle3_serving.errors import CheckError, InputError

_EXAMPLES = """examples:
  eagle3 features --target DIR --store /mnt/shared/features --host 0.0.0.0 --port 8100
  eagle3 features --target DIR --store STORE --tp 8 -- --gpu-memory-utilization 0.9
  eagle3 train --target DIR --answers answers.jsonl --features-from http://HOST:8100 --features-store STORE --out runs/mine

The folder must be one that server and trainer both see, such as a network file system; the trainer deletes each file once it has
read it. What stands behind -- goes to vLLM as it is. Ctrl-C ends the server.
"""


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "features",
        help="serve a target's hidden states to a trainer on another machine (vLLM)",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    add_target(parser)
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="the folder that it writes into")
    parser.add_argument(
        "--aux-layers", type=int, nargs="+", metavar="K", help="boundaries to write (default: low, middle, high)"
    )
    add_server(parser, 8100)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_server(args)
    if not (args.target / "config.json").is_file():
        raise InputError(f"no config.json in the target directory {args.target}; eagle3 fetch-target makes one")
    from eagle3_serving.checkpoint.aux_layers import default_aux_layers
    from eagle3_serving.checkpoint.source import read_json
    from eagle3_serving.serve.server import Server
    from eagle3_serving.serve.vllm import VllmOptions, on_cpu
    from eagle3_serving.serve.vllm_features import features_command
    from eagle3_serving.train.streamed import describe_store

    raw = read_json(args.target / "config.json")
    text = raw.get("text_config") or raw
    layers, hidden = text.get("num_hidden_layers"), text.get("hidden_size")
    if type(layers) is not int or type(hidden) is not int:
        raise InputError(f"{args.target}/config.json: no num_hidden_layers and hidden_size, so it is no target's")
    aux_layers = tuple(args.aux_layers or default_aux_layers(layers))
    if min(aux_layers) < 0 or max(aux_layers) > layers:
        raise InputError(
            f"--aux-layers {' '.join(map(str, aux_layers))}: the target has {layers} layers; give boundaries of 0 to {layers}"
        )
    boundaries = sorted({*aux_layers, layers})  # the last: the final norm's input, which teaches
    options = VllmOptions(
        args.target,
        dtype=args.dtype,
        max_model_len=args.context,
        max_num_seqs=args.max_requests,
        compiled=not on_cpu(),
        host=args.host,
        tensor_parallel=args.tensor_parallel_size,
        extra=tuple(args.engine_args),
    )
    store = args.store.absolute()
    describe_store(store, boundaries, hidden)
    command = features_command(options, store, boundaries)
    log = args.log or Path(tempfile.mkdtemp(prefix="eagle3-features-")) / "server.log"
    with Server(command, log, args.port, args.ready_timeout) as server:
        print(f"ready after {server.startup_s:.0f} s (log: {log}); train with", flush=True)
        print(f"  --features-from {server.url} --features-store {store}", flush=True)
        while server.ended is None:
            time.sleep(1.0)
        raise CheckError(f"the server ended: {server.last_words}")
