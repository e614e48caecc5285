"""The plugin's entry: hooks on SGLang's own EAGLE3, so that every feature gated on that name stays."""

import logging
import os
from collections.abc import Callable
from functools import cache, partial, wraps
from importlib import import_module
from typing import Any

from eagle3_serving.errors import Eagle3Error, InputError
from eagle3_serving.notice import in_a_line, say_once, stop
from eagle3_serving.patches import Patches
from eagle3_serving.serve.sglang import SWITCH
from eagle3_serving.serve.shape import TREES
from eagle3_sglang.backends import chains_alone, tree_problem
from eagle3_sglang.compat_check import HOOKED, attention_of, name_problem, version_problem
from eagle3_sglang.fallback import fall_back
from eagle3_sglang.gates import verify
from eagle3_sglang.settings import (
    DEFAULT_CHAINS,
    DEFAULT_TREES,
    DEFAULT_TREES_ON_GPU,
    Settings,
    largest,
    read_settings,
    read_trees,
)

log = logging.getLogger(__name__)

_ALGORITHM = "sglang.srt.speculative.spec_info.SpeculativeAlgorithm"
_ARGUMENTS = "sglang.srt.arg_groups.speculative_hook"


def register_hooks() -> str:
    """Why SGLang is left as it is; "" where it is not, or shall be. All hooks or none."""
    import sglang

    if problem := version_problem(sglang.__version__):
        return problem
    if not _settings_or_on().on:
        log.info("eagle3: off (%s); SGLang's own EAGLE3 serves", SWITCH)
        return ""
    hooks = {
        "sglang.srt.server_args.ServerArgs.resolve_once": before_resolution,
        f"{_ARGUMENTS}._auto_choose_speculative_params": choose_trees,
        f"{_ALGORITHM}.resolve_max_speculative_num_draft_tokens": reserve,
        f"{_ALGORITHM}.create_worker": create_worker,
        "sglang.srt.sampling.sampling_params.SamplingParams.verify": verify,
    }
    # SGLang puts them in place one by one, whatever becomes of the others
    if problem := name_problem(HOOKED):
        return problem
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    with Patches() as patches:
        for target, hook in hooks.items():
            HookRegistry.register(target, hook, HookType.AROUND)
            patches.undone_by(partial(HookRegistry._hooks.pop, target, None))
    return ""


def _settings_or_on() -> Settings:
    """A setting that cannot be read ends a server with EAGLE3 (`before_resolution`); any other does not look at it."""
    try:
        return read_settings()
    except InputError:
        return Settings()


@cache
def worker_problem() -> str:
    """Why our worker cannot serve here, "" where it can. Asked late: it imports SGLang's workers."""
    if problem := name_problem():
        return problem
    try:
        import_module("eagle3_sglang.worker")
    except Exception as error:
        return in_a_line(error)
    return ""


# ---- hooks: each gets the original first


def after(ours: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that is given what SGLang's own function returned, and whose failure leaves it at that."""

    @wraps(ours)
    def hook(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        theirs = original(*args, **kwargs)
        try:
            return ours(theirs, *args, **kwargs)
        except Exception as error:
            fall_back(in_a_line(error))
            return theirs

    return hook


def before_resolution(original: Callable[..., None], server_args: Any) -> None:
    """Before SGLang reads any file: are the settings right, and is the drafter one it can serve?"""
    try:
        _check(server_args)
    except Eagle3Error as error:
        stop(str(error), error.exit_code)
    except Exception as error:  # a server's arguments, or a check, that are not as known
        say_once(log, f"the drafter goes unchecked: {in_a_line(error)}")
    original(server_args)


def _check(server_args: Any) -> None:
    drafter = server_args.speculative_draft_model_path
    if not _is_ours(server_args.speculative_algorithm):
        return
    resolved = getattr(server_args, "_resolution_finished", False)  # SGLang asks again in each of its processes
    if read_settings().check and drafter and not resolved:
        from eagle3_sglang.preflight import keep_window, servable

        served = servable(str(drafter), str(server_args.model_path))
        if served.path != drafter:
            server_args.speculative_draft_model_path = served.path
        if served.window is not None and served.window > 1:
            keep_window(server_args, served.window)


@after
def choose_trees(theirs: tuple[int, int, int], server_args: Any, model_arch: str) -> tuple[int, int, int]:
    """SGLang asks where the user gave no tree: the largest of ours, for which memory is kept."""
    if not _is_ours(server_args.speculative_algorithm) or server_args.speculative_adaptive or worker_problem():
        return theirs
    trees, (backends, page_size, _) = read_settings().trees, attention_of(server_args)
    if not trees:
        # some models' attention draws chains alone: where SGLang would not draw a tree, we do not either
        by_device = DEFAULT_TREES if server_args.device == "cpu" else DEFAULT_TREES_ON_GPU
        text = DEFAULT_CHAINS if theirs[1] == 1 or chains_alone(backends) else by_device
        # the scheduler's process learns of it from the environment it inherits
        trees, os.environ[TREES] = read_trees(text), text
    shape = largest(trees)
    if chains_alone(backends) and (problem := tree_problem(shape.top_k, backends, page_size)):
        stop(problem)
    log.info(
        "eagle3: no tree was asked for: the load chooses among %s (steps,top-k,tokens)", "; ".join(map(str, trees))
    )
    return shape.steps, shape.top_k, shape.tokens


@after
def reserve(tokens: int | None, algorithm: Any, server_args: Any) -> int | None:
    """Cache slots a request may need in a step: whichever tree comes next, its draft or its verification."""
    if tokens is None or algorithm.name != "EAGLE3":
        return tokens
    trees = read_settings().trees
    if not trees or worker_problem():
        return tokens
    return max([tokens, *(max(shape.tokens, shape.top_k * shape.steps) for shape in trees)])


@after
def create_worker(theirs: Any, algorithm: Any, server_args: Any) -> Any:
    """Our worker class for EAGLE3, SGLang's for everything else and wherever ours would not fit."""
    if algorithm.name != "EAGLE3":
        return theirs
    if problem := _unfit(theirs, server_args) or worker_problem():
        fall_back(problem)
        return theirs
    backends, page_size, top_k = attention_of(server_args)
    if problem := tree_problem(top_k, backends, page_size):
        if chains_alone(backends):
            stop(problem)
        fall_back(problem)
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
