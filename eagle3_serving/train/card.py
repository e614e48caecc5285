"""The card of a trained drafter: README.md in its directory, every figure with what made it."""

from dataclasses import fields
from pathlib import Path

from eagle3_serving.checkpoint.save import refusals
from eagle3_serving.files import write_whole
from eagle3_serving.train.comparison import Comparison
from eagle3_serving.train.finish import Measured, modes
from eagle3_serving.train.log import read_log
from eagle3_serving.train.options import TrainJob, TrainOptions
from eagle3_serving.train.trained import TrainedRun

_OURS = "<!-- written by eagle3 train, and anew by its next run: without this line it stays as it is -->"


def write_card(
    directory: Path,
    job: TrainJob,
    run: TrainedRun,
    measured: Measured | None,
    comparison: Comparison | None,
    command: str,
) -> None:
    """Write `directory`/README.md, unless somebody made it theirs."""
    path = directory / "README.md"
    if path.exists() and _OURS not in path.read_text(encoding="utf-8"):
        return
    parts = [_head(job, run), _data(job, run), _recipe(job, run, command), _figures(job, measured)]
    parts += [_compared(job, comparison), _curve(job, run)]
    write_whole(path, "\n\n".join([_OURS, *filter(None, parts)]) + "\n")


def _head(job: TrainJob, run: TrainedRun) -> str:
    config, target = run.drafter.config, job.target.resolve().name
    heads = f"{config.num_attention_heads} heads over {config.num_key_value_heads}"
    norms = "a norm on each feature, " if config.norms_features else ""
    refused = refusals(run.drafter, run.target.num_layers)
    unsaid = "; ".join(f"{dialect} ({', '.join(why)})" for dialect, why in refused.items())
    sight = "" if config.sliding_window is None else f"a window of {config.sliding_window} tokens, "
    layers = "one layer" if config.num_layers == 1 else f"{config.num_layers} layers"
    feedback = f"{'post' if config.norm_output else 'pre'}-norm feedback"
    if config.parallel:
        head = ", children by a causal head" if config.causal_head else ""
        feedback = f"every depth in one pass (P-EAGLE; trained {job.options.ttt_steps} deep){head}"
    return (
        f"# EAGLE-3 drafter for {target}\n\n"
        f"- **Target**: {target}, {run.target.num_layers} layers. It reads the boundaries "
        f"{', '.join(map(str, config.aux_layers))}.\n"
        f"- **Shape**: {layers}, hidden {config.hidden_size}, {heads}, draft vocabulary {config.draft_vocab_size} of "
        f"{config.vocab_size}, {norms}{feedback}, {sight}bf16. "
        "The embedding is the target's own and is not in the file."
        + (f"\n- **Cannot be converted** `--to` {unsaid}." if unsaid else "")
    )


def _data(job: TrainJob, run: TrainedRun) -> str:
    names = ", ".join(path.name for path in (*job.prompts, *job.answers))
    beside = ""
    if run.mixture.general:
        files = ", ".join(path.name for path in job.general)
        beside = f" {run.mixture.general} general answers ({files}) were mixed in, so that what it knew is kept."
    return (
        f"## Data\n\nThe target's own answers ({names}): {run.data}.{beside} {len(run.mixture.all_held_out)} were held out. "
        f"The draft vocabulary covers {run.coverage:.1%} of the tokens trained on."
    )


def _recipe(job: TrainJob, run: TrainedRun, command: str) -> str:
    default = TrainOptions()
    changed = {f.name: getattr(job.options, f.name) for f in fields(default)}
    changed = {name: value for name, value in changed.items() if value != getattr(default, name)}
    start = f"Goes on from {job.init.name}" if job.init else "Closed-form start"
    stopped = "" if run.complete else " The run was interrupted before its end."
    skipped = f" {run.skipped} batches without finite gradients were skipped." if run.skipped else ""
    lines = [
        "## Recipe",
        f"{start}, then training-time test of {job.options.ttt_steps} steps, {job.options.objective}; {run.tokens} answer "
        f"tokens seen in {run.steps} steps.{skipped}{stopped} Curves: `training.png`.",
        "Options other than the defaults: " + (", ".join(f"`{n}` {v}" for n, v in changed.items()) or "none") + ".",
    ]
    return "\n\n".join([*lines, *([f"`{command}`"] if command else [])])


def _figures(job: TrainJob, measured: Measured | None) -> str:
    if measured is None:
        return "## Measured\n\nNothing yet: `eagle3 eval --engine embedded --mode tree --target TARGET --drafter DIR --prompts FILE`."
    what = "the prompts of held-out answers"
    if job.eval_prompts:
        what = f"prompts of {', '.join(path.name for path in job.eval_prompts)}"
    same = "every token equal to plain decoding" if measured.identical else "NOT every token equal to plain decoding"
    families = list(next(iter(measured.accepted_length.values())))
    lines = [
        f"Tokens a target pass yields, bonus token included (plain decoding: 1): {measured.prompts} prompts ({what}), T = 0, "
        f"fp32, {measured.max_tokens} tokens, embedded engine, {same}. They were measured at the end of the training; "
        f"`eagle3 eval --engine embedded` with the flags below, `--limit {job.eval_limit} --max-tokens "
        f"{measured.max_tokens}` and the same prompts measures them again.",
        "",
        "| | " + " | ".join([*families, "mean"]) + " |",
        "|---|" + "---|" * (len(families) + 1),
    ]
    for mode, options in modes(measured.max_tokens).items():
        flags = (
            f"--k {options.k}"
            if mode == "chain"
            else f"--nodes {options.nodes} --depth {options.depth} --top-k {options.top_k}"
        )
        cells = [f"{measured.accepted_length[mode][name]:.2f}" for name in families]
        lines.append(f"| `--mode {mode} {flags}` | " + " | ".join([*cells, f"**{measured.mean(mode):.2f}**"]) + " |")
    chain = ", ".join(f"{rate:.0%}" for rate in measured.by_position["chain"])
    context = ", ".join(f"to {bucket} tokens {length:.2f}" for bucket, length in measured.by_context["tree"].items())
    lines += [
        "",
        f"Accepted by position in the chain: {chain or 'none'}. Accepted length of the tree by context: {context}.",
    ]
    return "## Measured\n\n" + "\n".join(lines)


def _compared(job: TrainJob, comparison: Comparison | None) -> str:
    if comparison is None or job.init is None:
        return ""
    return "\n".join(
        [
            f"## Against {job.init.name}, which it goes on from",
            "",
            "Tokens a target pass on the same prompts, each drafter with its own calibration; the tree is "
            f"`--depth {job.measure_tree[0]} --top-k {job.measure_tree[1]} --nodes {job.measure_tree[2]}`.",
            "",
            *comparison.table(),
        ]
    )


def _curve(job: TrainJob, run: TrainedRun) -> str:
    """What it was measured on the way, where it was."""
    if run.best is None:
        return ""
    records = [{**r["served"], "tokens": r["tokens"]} for r in read_log(job.out / "log.jsonl") if "served" in r]
    families = [f"{len(f)} of {name}" for name, f in run.recorded.items()]
    lines = [
        "## As served while it was trained",
        "",
        f"Every {job.options.measure_every:,} answer tokens the average of weights was rounded to bf16, calibrated and drafted "
        f"recorded greedy answers to held-out prompts ({', '.join(families)}; at most {job.eval_tokens} tokens each). The drafter "
        "here is the best by the geometric mean of both columns. "
        f"Measuring took {records[-1]['share_of_time']:.1%} of the time.",
        "",
        "| answer tokens seen | chain | tree | |",
        "|---:|---:|---:|---|",
    ]
    for record in records:
        mark = "kept" if record["tokens"] == run.best.tokens else ""
        lines.append(f"| {record['tokens']:,} | {record['chain']:.2f} | {record['tree']:.2f} | {mark} |")
    return "\n".join(lines)
