"""The plugin's entry: hooks on SGLang's own EAGLE3, so that every feature gated on that name stays."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from eagle3_serving.errors import Eagle3Error
from eagle3_serving.serve.sglang import SWITCH, TREES
from eagle3_sglang.backends import chains_alone, tree_problem
from eagle3_sglang.compat_check import attention_of, name_problem, version_problem
from eagle3_sglang.settings import (
    DEFAULT_CHAINS,
    DEFAULT_TREES,
    DEFAULT_TREES_ON_GPU,
    largest,
    parse_trees,
    read_settings,
)

log = logging.getLogger(__name__)

_ALGORITHM = "sglang.srt.speculative.spec_info.SpeculativeAlgorithm"
_ARGUMENTS = "sglang.srt.arg_groups.speculative_hook"


def register() -> None:
    """Called by SGLang once in each of its processes. Whatever is wrong, SGLang's own EAGLE3 serves, and a line says why."""
    try:
        settings = read_settings()
    except ValueError as error:
        stop(str(error))
    if not settings.on:
        log.info("eagle3: off (%s); SGLang's own EAGLE3 serves", SWITCH)
        return
    import sglang
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if problem := version_problem(sglang.__version__):
        give_way(problem)
        return
    HookRegistry.register("sglang.srt.server_args.ServerArgs.resolve_once", before_resolution, HookType.AROUND)
    HookRegistry.register(f"{_ARGUMENTS}._auto_choose_speculative_params", choose_trees, HookType.AROUND)
    HookRegistry.register(f"{_ALGORITHM}.resolve_max_speculative_num_draft_tokens", reserve, HookType.AROUND)
    HookRegistry.register(f"{_ALGORITHM}.create_worker", create_worker, HookType.AROUND)


def give_way(problem: str) -> None:
    log.warning("eagle3: %s; SGLang's own EAGLE3 serves, with one tree for the server's life", problem)


def stop(problem: str) -> NoReturn:
    """Ends the server with one line."""
    print(f"eagle3: {problem}", file=sys.stderr, flush=True)
    sys.exit(1)


# ---- hooks: each gets the original first


def before_resolution(original: Callable[..., None], server_args: Any) -> None:
    """Before SGLang reads any file: is the drafter one it can serve?"""
    drafter = server_args.speculative_draft_model_path
    resolved = getattr(server_args, "_resolution_finished", False)  # SGLang asks again in each of its processes
    if _is_ours(server_args.speculative_algorithm) and drafter and not resolved and read_settings().check:
        from eagle3_sglang.preflight import servable

        try:
            path = servable(str(drafter), str(server_args.model_path))
        except Eagle3Error as error:
            stop(str(error))
        if path != drafter:
            server_args.speculative_draft_model_path = path
    original(server_args)


def choose_trees(
    original: Callable[..., tuple[int, int, int]], server_args: Any, model_arch: str
) -> tuple[int, int, int]:
    """SGLang asks where the user gave no tree: the largest of ours, for which memory is kept."""
    theirs = original(server_args, model_arch)
    if not _is_ours(server_args.speculative_algorithm) or server_args.speculative_adaptive or name_problem():
        return theirs
    trees, (backends, page_size, _) = read_settings().trees, attention_of(server_args)
    if not trees:
        # some models' attention draws chains alone: where SGLang would not draw a tree, we do not either
        by_device = DEFAULT_TREES if server_args.device == "cpu" else DEFAULT_TREES_ON_GPU
        text = DEFAULT_CHAINS if theirs[1] == 1 or chains_alone(backends) else by_device
        # the scheduler's process learns of it from the environment it inherits
        trees, os.environ[TREES] = parse_trees(text), text
    shape = largest(trees)
    if chains_alone(backends) and (problem := tree_problem(shape.top_k, backends, page_size)):
        stop(problem)
    log.info(
        "eagle3: no tree was asked for: the load chooses among %s (steps,top-k,tokens)", "; ".join(map(str, trees))
    )
    return shape.steps, shape.top_k, shape.tokens


def reserve(original: Callable[..., int | None], algorithm: Any, server_args: Any) -> int | None:
    """Cache slots a request may need in a step: whichever tree comes next, its draft or its verification."""
    tokens = original(algorithm, server_args)
    trees = read_settings().trees
    if tokens is None or algorithm.name != "EAGLE3" or not trees:
        return tokens
    return max([tokens, *(max(shape.tokens, shape.top_k * shape.steps) for shape in trees)])


def create_worker(original: Callable[..., Any], algorithm: Any, server_args: Any) -> Any:
    """Our worker class for EAGLE3, SGLang's for everything else and wherever ours would not fit."""
    theirs = original(algorithm, server_args)
    if algorithm.name != "EAGLE3":
        return theirs
    if problem := _unfit(theirs, server_args) or name_problem():
        give_way(problem)
        return theirs
    backends, page_size, top_k = attention_of(server_args)
    if problem := tree_problem(top_k, backends, page_size):
        if chains_alone(backends):
            stop(problem)
        give_way(problem)
        return theirs
    from eagle3_sglang.worker import TreeWorker

    return TreeWorker


def _unfit(theirs: Any, server_args: Any) -> str:
    if theirs.__name__ != "EAGLEWorkerV2":
        return f"this server uses {theirs.__name__}, which has other trees"
    if server_args.speculative_adaptive:
        return "--speculative-adaptive was asked for"
    if server_args.pp_size > 1:
        return "the pipeline has several stages"
    if server_args.enable_dp_attention:
        return "attention is data parallel"
    return ""


def _is_ours(algorithm: str | None) -> bool:
    return (algorithm or "").upper() == "EAGLE3"
