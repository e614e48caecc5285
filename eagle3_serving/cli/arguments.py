"""What several commands take alike, and what is settled before any of them runs."""

import argparse
import re
from pathlib import Path

from eagle3_serving.dtypes import KNOWN, own_dtype, short_dtype
from eagle3_serving.errors import InputError
from eagle3_serving.files import parse_json, read_text, require_file_place, require_writable
from eagle3_serving.hub import local_model
from eagle3_serving.serve.address import HOST

# an engine's own words, taken beside ours: vLLM's, then SGLang's
TARGET = ("--target", "--model", "--model-path")
DRAFTER = ("--drafter", "--spec-model", "--speculative-draft-model-path")
CHAIN = ("--k", "--spec-tokens", "--num-speculative-tokens")
CONCURRENCY = ("--concurrency", "--max-concurrency")
TOKENS = ("--tokens", "--max-tokens")
MAX_REQUESTS = ("--max-requests", "--max-num-seqs", "--max-running-requests")
CONTEXT = ("--context", "--max-model-len", "--context-length")
TENSOR_PARALLEL = ("--tensor-parallel-size", "--tp-size", "--tp", "-tp")


def add_subject(parser: argparse.ArgumentParser) -> None:
    """A target, its drafter, and prompts."""
    add_pair(parser)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="JSONL files, or directories of them")


def add_pair(parser: argparse.ArgumentParser, drafter: str = "") -> None:
    """A target and its drafter; `drafter` is more to say of the latter."""
    add_target(parser)
    parser.add_argument(
        *DRAFTER, type=Path, required=True, help=f"directory of the EAGLE-3 drafter{drafter}, or its hub name"
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *TARGET,
        type=Path,
        required=True,
        help="directory of the target model, or its hub name where it is in the cache",
    )


def add_server(parser: argparse.ArgumentParser, port: int) -> None:
    """How an engine is started, and where it listens."""
    add_dtype(parser, "bf16")
    parser.add_argument(*TENSOR_PARALLEL, type=int, default=1, help="GPUs that share the target (default 1)")
    parser.add_argument(*MAX_REQUESTS, type=int, default=64, help="requests in flight at most (default 64)")
    parser.add_argument(*CONTEXT, type=int, default=4096, help="longest prompt and answer together (default 4096)")
    parser.add_argument("--host", default=HOST, help=f"where it listens; 0.0.0.0 is everywhere (default {HOST})")
    parser.add_argument("--port", type=int, default=port, help=f"default {port}")
    parser.add_argument(
        "--log", type=Path, help="where the engine's output goes (default: a file in the temporary folder)"
    )
    parser.add_argument("--ready-timeout", type=float, default=1800.0, help="seconds to get ready in (default 1800)")
    parser.add_argument("engine_args", nargs="*", metavar="-- ARG", help="more arguments for the engine")


def check_server(args: argparse.Namespace) -> None:
    """Raise InputError naming the first number of `add_server` that is out of range."""
    for name in ("tensor_parallel_size", "max_requests", "context", "port"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}: it must be at least 1")
    if args.port > 65535:
        raise InputError(f"--port is {args.port}: it must be at most 65535")
    if not 0 < args.ready_timeout < float("inf"):
        raise InputError(f"--ready-timeout is {args.ready_timeout}: seconds, above 0")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="one JSON object as the last line (eagle3 schema has its schema)"
    )


def add_dtype(parser: argparse.ArgumentParser, default: str | None, help_text: str = "") -> None:
    """`--dtype` in any of a format's names; `args.dtype` is the short one."""
    said = f"{KNOWN}{f' (default {default})' if default else ''}"
    parser.add_argument("--dtype", type=dtype, default=default, help=f"{help_text}{said}")


def dtype(word: str) -> str:
    try:
        return short_dtype(word)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_draft(parser: argparse.ArgumentParser) -> None:
    """What is drafted: the shape of a chain or a tree, and by what its nodes are chosen."""
    parser.add_argument(*CHAIN, type=int, default=5, help="draft tokens of a chain (default 5)")
    parser.add_argument("--nodes", type=int, default=60, help="draft nodes of a tree (default 60)")
    parser.add_argument(
        "--speculative-num-draft-tokens",
        type=lambda text: int(text) - 1,
        dest="nodes",
        metavar="TOKENS",
        default=argparse.SUPPRESS,
        help="the same as SGLang counts them, the root among them: one more than --nodes",
    )
    parser.add_argument("--depth", "--speculative-num-steps", type=int, default=8, help="depth of a tree (default 8)")
    parser.add_argument(
        "--top-k", "--speculative-eagle-topk", type=int, default=10, help="candidates a node of a tree (default 10)"
    )
    parser.add_argument(
        "--lookup",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="continuations from the text itself join the tree (default: with --mode auto, which prices them)",
    )
    parser.add_argument(
        "--calibrated",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="rank by the measured chance of acceptance, where the drafter has a calibration",
    )
    parser.add_argument("--profile", type=Path, help="measured costs for --mode auto (default: measured, then kept)")


_MOST = 2**31 - 1  # of any count: what lies beyond is a slip of the finger, and overflows somewhere
_DRAFTERS = re.compile(r"eagle-?3|peagle", re.IGNORECASE)  # in the architectures of drafters, and of no model


def check_arguments(args: argparse.Namespace) -> None:
    """Folders in place of hub names, files that are there, places that can be written and counts that can be counted to,
    before a command imports what takes long.

    Raises InputError naming the flag.
    """
    _require_countable(args)
    for name in ("target", "drafter", "init"):
        value = getattr(args, name, None)
        if isinstance(value, Path):
            setattr(args, name, local_model(value, f"--{name}"))
    for name in ("prompts", "answers", "vocabulary", "traffic", "eval_prompts"):
        for path in getattr(args, name, None) or ():
            if not path.exists():
                raise InputError(f"--{name.replace('_', '-')}: there is no file {path}")
    if getattr(args, "target", None) is not None:
        _require_model(args.target)
    profile = getattr(args, "profile", None)
    if profile is not None:
        if not profile.is_file():
            raise InputError(f"--profile: there is no file {profile}")
        if not isinstance(parse_json(read_text(profile), f"--profile {profile}"), dict):
            raise InputError(f"--profile: {profile} is no profile; eagle3 tune writes one")
    if args.command in ("bench", "tune"):
        require_file_place(args.out, "--out")
    if getattr(args, "log", None) is not None:
        require_file_place(args.log, "--log")
    for name in ("out", "features"):
        if args.command == "train" and getattr(args, name) is not None:
            require_writable(getattr(args, name), f"--{name}")


def _require_countable(args: argparse.Namespace) -> None:
    for name, value in vars(args).items():
        for one in value if isinstance(value, tuple | list) else (value,):
            # a seed may be of 64 bits
            if type(one) is int and abs(one) > (2**63 - 1 if name == "seed" else _MOST):
                most = "63 bits" if name == "seed" else f"{_MOST}"
                raise InputError(f"--{name.replace('_', '-')} is {one}: it must be at most {most}")


def _require_model(target: Path) -> None:
    """Raise InputError where the folder given as the target holds a drafter."""
    path = target / "config.json"
    config = parse_json(read_text(path), path)
    labels = config.get("architectures") if isinstance(config, dict) else None
    for label in labels if isinstance(labels, list) else []:
        if isinstance(label, str) and _DRAFTERS.search(label):
            raise InputError(
                f"--target: {target} is a drafter ({label:.60}): give it as the drafter, and here the model that it drafts for"
            )


def resolve_dtype(short: str, target: Path) -> str:
    """A short dtype, `auto` as the target's config.json has it."""
    if short != "auto":
        return short
    path = target / "config.json"
    config = parse_json(read_text(path), path)
    return own_dtype(config if isinstance(config, dict) else {}, path)
