"""`eagle3 train`: from prompts to a drafter."""

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from eagle3_serving.cli.arguments import add_json, add_target
from eagle3_serving.cli.parser import Parser
from eagle3_serving.errors import InputError
from eagle3_serving.train.criterion import OBJECTIVES
from eagle3_serving.train.options import DRAFT_VOCAB_SIZE, GOING_ON, PARALLEL, PARALLEL_LAYERS, TrainJob, TrainOptions
from eagle3_serving.train.preset import PRESETS

_EXAMPLES = """examples:
  eagle3 train --target DIR --prompts prompts.jsonl --out runs/mine
  eagle3 train --target DIR --answers answers.jsonl --out runs/mine --tokens 3000000
  torchrun --nproc-per-node 2 -m eagle3_serving.cli.main train --target DIR --answers answers.jsonl --out runs/mine
  eagle3 train --target DIR --answers answers.jsonl --features-from http://HOST:8100 --features-store DIR --out runs/mine
  eagle3 train --target DIR --answers answers.jsonl --preset eagle3.1 --out runs/mine
  eagle3 train --target DIR --answers answers.jsonl --preset p-eagle --init DRAFTER --out runs/parallel
  eagle3 train --target DIR --init DRAFTER --answers mine.jsonl --general runs/mine/answers.jsonl --out runs/domain

The last adapts a drafter to a domain: it keeps its shape and vocabulary, learns gently, and general answers mixed in keep what
it knew. It ends with a table, before and after by family; give --eval-prompts with families to see what matters to you.
The same command goes on where a kill or Ctrl-C left it. A prompt is a JSON line {"id", "turns": [...]}, an answer
{"id", "prompt_ids", "response_ids"}. OUT gets drafter/ (with its card, README.md), training.png, log.jsonl, state.pt
and features/. In the end the drafter is checked, and measured on the embedded engine. Exit code 1: check found it wrong.
"""


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a drafter for a target by training-time test",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    add_target(parser)
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    parser.add_argument("--prompts", type=Path, nargs="+", default=[], help="prompts for the target to answer (vLLM)")
    parser.add_argument("--answers", type=Path, nargs="+", default=[], help="answers that the target gave before")
    parser.add_argument("--init", type=Path, help="a drafter to go on from")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--limit", type=int, help="only the first N prompts")
    defaults = TrainJob(Path(), Path())
    parser.add_argument(
        "--draft-vocab-size",
        type=int,
        help=f"tokens that the drafter can propose (default {DRAFT_VOCAB_SIZE}; with --init its own, to which a larger number adds)",
    )
    parser.add_argument(
        "--general",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="with --init: answers of what it knew, mixed in",
    )
    for name, help_text in (
        ("general_share", "of the answer tokens that the general ones make, as far as they go"),
        ("answer_tokens", "most that the target answers --prompts with"),
        ("max_length", "longest prompt and answer together"),
        ("max_prompt", "longest prompt"),
        ("held_out", "answers kept out to measure on"),
        ("eval_limit", "prompts of each family that it is measured on in the end, 0 for none"),
        ("eval_tokens", "tokens an answer there"),
        ("cache_limit_gib", "most that the target's features may take on disk"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{help_text} (default {default})"
        )
    parser.add_argument(
        "--eval-prompts", type=Path, nargs="+", default=[], help="prompts to measure on (default: of held-out answers)"
    )
    parser.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="fit a calibration in the end, on held-out prompts (as eagle3 calibrate does)",
    )
    parser.add_argument("--vocabulary", type=Path, nargs="+", default=[], help="answers to choose the vocabulary by")
    parser.add_argument(
        "--aux-layers", type=int, nargs="+", metavar="K", help="boundaries to read (default: low, middle, high)"
    )
    parser.add_argument("--preset", choices=PRESETS, help="the shape of a new drafter by name (default eagle3)")
    parser.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help=f"of a drafter of --preset p-eagle, which drafts --ttt-steps tokens in one pass (default {PARALLEL_LAYERS}); with "
        "--init those beyond its own are added",
    )
    parser.add_argument(
        "--causal-head",
        action=argparse.BooleanOptionalAction,
        help="of a drafter of --preset p-eagle: children depend on their node's token, by a head beside the one pass (default: no)",
    )
    parser.add_argument(
        "--fc-norm",
        action=argparse.BooleanOptionalAction,
        help="a norm on each feature before they are fused, as eagle3.1 has it (default: the preset's)",
    )
    parser.add_argument(
        "--norm-output",
        action=argparse.BooleanOptionalAction,
        help="feed the post-norm state back, as eagle3.1 does (default: the preset's)",
    )
    parser.add_argument(
        "--measure-tree",
        type=_tree,
        default=defaults.measure_tree,
        metavar="DEPTH,TOP_K,NODES",
        help="the tree that it is measured with on the way (default 8,10,60)",
    )
    parser.add_argument(
        "--sliding-window",
        type=int,
        metavar="N",
        help="tokens that the drafter looks back on, its own among them (default: all)",
    )
    parser.add_argument(
        "--cache-features",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the target's features on disk, in OUT/features or --features",
    )
    parser.add_argument(
        "--shard-target",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="under torchrun each process keeps a share of the target (FSDP2), for one that no GPU holds alone; features "
        "are then not kept, and the drafter is not measured in the end",
    )
    parser.add_argument(
        "--shard-drafter",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="under torchrun each process keeps a share of the drafter, of its gradients and of the optimiser's state (FSDP2)",
    )
    parser.add_argument("--features", type=Path, metavar="DIR", help="where features are kept; runs may share it")
    parser.add_argument(
        "--features-from",
        metavar="URL",
        help="a server of eagle3 features, perhaps on another machine, makes the target's passes; only the target's embedding, "
        "head and final norm are kept here, and the drafter is not measured in the end",
    )
    parser.add_argument("--features-store", type=Path, metavar="DIR", help="the folder that this server writes into")
    for option in fields(TrainOptions):
        default = getattr(defaults.options, option.name)
        flag, help_text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=help_text)
        elif option.name == "objective":
            parser.add_argument(flag, choices=OBJECTIVES, default=default, help=f"{help_text} (default {default})")
        else:
            gently = f"; with --init {GOING_ON[option.name]}" if option.name in GOING_ON else ""
            gently += f"; p-eagle {PARALLEL[option.name]}" if option.name in PARALLEL else ""
            parser.add_argument(flag, type=type(default), help=f"{help_text} (default {default}{gently})")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    chosen = {option.name: getattr(args, option.name) for option in fields(TrainOptions)}
    unless_told = {**(GOING_ON if args.init is not None else {}), **(PARALLEL if args.preset == "p-eagle" else {})}
    options = TrainOptions(**{**unless_told, **{name: value for name, value in chosen.items() if value is not None}})
    job = TrainJob(
        target=args.target,
        out=args.out,
        prompts=tuple(args.prompts),
        answers=tuple(args.answers),
        vocabulary=tuple(args.vocabulary),
        init=args.init,
        general=tuple(args.general),
        general_share=args.general_share,
        answer_tokens=args.answer_tokens,
        preset=args.preset,
        fc_norm=args.fc_norm,
        measure_tree=args.measure_tree,
        aux_layers=tuple(args.aux_layers) if args.aux_layers else None,
        norm_output=args.norm_output,
        sliding_window=args.sliding_window,
        layers=args.layers,
        causal_head=args.causal_head,
        draft_vocab_size=args.draft_vocab_size,
        max_length=args.max_length,
        max_prompt=args.max_prompt,
        held_out=args.held_out,
        limit=args.limit,
        cache_features=args.cache_features,
        features=args.features,
        cache_limit_gib=args.cache_limit_gib,
        eval_prompts=tuple(args.eval_prompts),
        eval_limit=args.eval_limit,
        eval_tokens=args.eval_tokens,
        calibrate=args.calibrate,
        shard_target=args.shard_target,
        shard_drafter=args.shard_drafter,
        features_from=args.features_from,
        features_store=args.features_store,
        options=options,
    )
    job.require_data()
    from eagle3_serving.train.comparison import print_comparison
    from eagle3_serving.train.job import train

    job = replace(job, device=_device(args.device))
    made = train(job, shlex.join(["eagle3", *map(_told, sys.argv[1:])]))
    last = json.loads((args.out / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    if args.json:
        figures = None if made.measured is None else asdict(made.measured)
        compared = None if made.comparison is None else asdict(made.comparison)
        answer = {
            "drafter": str(made.directory),
            "right": made.right,
            **last,
            "measured": figures,
            "compared": compared,
        }
        print(json.dumps(answer))
        return 0 if made.right else 1
    if made.measured is not None:
        for mode in made.measured.accepted_length:
            print(f"{mode}: {made.measured.mean(mode):.2f} tokens a target pass on {made.measured.prompts} prompts")
    if made.comparison is not None:
        print_comparison(made.comparison)
    print(f"the drafter is in {made.directory}" + ("" if made.right else ", and not right: see above"))
    return 0 if made.right else 1


def _tree(text: str) -> tuple[int, int, int]:
    """Depth, top-k and nodes."""
    try:
        depth, top_k, nodes = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not DEPTH,TOP_K,NODES, as in 8,10,60") from None
    return depth, top_k, nodes


def _device(wanted: str | None) -> str:
    """The wanted one, else the GPU of this process, as torchrun counts them, else the CPU. Raises InputError where it is not
    there."""
    import torch

    if wanted is None:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = (str(error).splitlines() or [""])[0][:120]
        raise InputError(f"--device {wanted} cannot be used here ({why}); leave it out, or give cpu") from None
    return wanted


def _told(argument: str) -> str:
    """A path by its name alone: where it lay on this machine is nobody's business."""
    return Path(argument).name if "/" in argument else argument
