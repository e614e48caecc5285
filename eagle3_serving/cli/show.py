"""`eagle3 show`: draw the draft trees of a prompt: what was guessed in each step, and what the target made of it."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from eagle3_serving.cli.arguments import add_draft, add_dtype, add_json, add_pair, resolve_dtype
from eagle3_serving.cli.parser import Parser
from eagle3_serving.errors import InputError
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.files import require_file_place, write_whole

_EXAMPLES = """examples:
  eagle3 show --target DIR --drafter checkpoints/smollm2-135m-instruct --prompt "Why is the sky blue?"
  eagle3 show --target DIR --drafter DIR --prompts prompts.jsonl --limit 2 --nodes 16 --depth 5 --out runs/trees.html
  eagle3 show --target DIR --drafter DIR --prompt "Count to ten." --svg step.svg --step 3
  eagle3 show --target DIR --drafter DIR --prompt "Count to ten." --mode chain --k 5 --json

The page needs nothing else: it can be mailed. It is made with the embedded engine, which the adapters are held against.
"""
_PAGE = Path("draft-trees.html")


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "show",
        help="draw the draft trees of a prompt, and what was accepted of them",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    add_pair(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", metavar="TEXT", help="a message to answer; may be given again")
    source.add_argument("--prompts", type=Path, nargs="+", help="JSONL files, or directories of them")
    parser.add_argument("--limit", type=int, default=1, help="of --prompts, the first N of each family (default 1)")
    parser.add_argument("--mode", choices=("chain", "tree", "auto"), default="tree", help="default tree")
    add_draft(parser)
    parser.add_argument("--max-tokens", type=int, default=48, help="tokens an answer (default 48)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--seed", type=int, default=0, help="of the draws of --temperature (default 0)")
    add_dtype(parser, "fp32")
    parser.add_argument("--out", type=Path, help=f"the page (default {_PAGE}, unless --svg is given)")
    parser.add_argument("--svg", type=Path, help="one step of the first prompt as an SVG file")
    parser.add_argument("--step", type=int, help="which, as the page counts (default: the one that wrote most)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    options = EvalOptions(
        engine="embedded",
        target=args.target,
        drafter=args.drafter,
        prompts=tuple(args.prompts or ()),
        mode=args.mode,
        k=args.k,
        nodes=args.nodes,
        depth=args.depth,
        top_k=args.top_k,
        dtype=resolve_dtype(args.dtype, args.target),
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        limit=args.limit,
        lookup=args.lookup,
        calibrated=args.calibrated,
        profile=args.profile,
    )
    out: Path | None = args.out or (None if args.svg else _PAGE)
    for path, flag in ((out, "--out"), (args.svg, "--svg")):
        if path is not None:
            require_file_place(path, flag)
    if args.step is not None and (args.svg is None or args.step < 1):
        raise InputError(f"--step is {args.step}: it says which step, counted from 1, --svg draws")
    for text in args.prompt or ():
        if not text.strip() or text != text.encode(errors="replace").decode():
            raise InputError("--prompt is empty, or not UTF-8 text: give a message to answer")

    from eagle3_serving.show.run import tell

    about, stories = tell(options, args.prompt, args.seed, shlex.join(["eagle3", *sys.argv[1:]]))
    if out is not None:
        from eagle3_serving.show.page import page

        write_whole(out, page(stories, about))
    if args.svg is not None:
        from eagle3_serving.show.figure import drawable, figure

        write_whole(args.svg, figure(stories[0], drawable(stories[0], args.step), about))
    if args.json:
        files = {"page": out and str(out), "svg": args.svg and str(args.svg)}
        print(json.dumps({**files, **about.to_json(), "prompts": [story.to_json() for story in stories]}), flush=True)
    else:
        from eagle3_serving.show.words import summary

        for story in stories:
            print(f"{story.id}: {summary(story)}")
        print(f"drawn in {' and '.join(str(path) for path in (out, args.svg) if path is not None)}")
    return 0
