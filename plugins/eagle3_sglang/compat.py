"""Every private name of SGLang that the plugin touches, the versions they were read in, and whether they are as expected.

Importing this module imports SGLang's workers; `hooks` does so only where `problem` of `compat_check` found nothing.
"""

import hashlib
import inspect
import json
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from sglang.kernels.ops.speculative.cache_locs import assign_extend_cache_locs_uniform_func
from sglang.srt.layers import sampler
from sglang.srt.layers.moe.utils import speculative_moe_a2a_backend_context, speculative_moe_backend_context
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.runtime_context import get_parallel, get_spec
from sglang.srt.speculative import eagle_utils, eagle_worker_common
from sglang.srt.speculative.adaptive_runtime_state import SpecRuntimeState
from sglang.srt.speculative.eagle_info import EagleDraftExtendInput
from sglang.srt.speculative.eagle_utils import per_step_draft_out_cache_loc
from sglang.srt.speculative.eagle_worker_common import prepare_for_draft_extend
from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker, EAGLEWorkerV2
from torch import Tensor

from eagle3_serving.errors import InputError
from eagle3_serving.patches import Patches
from eagle3_serving.serve.shape import Shape
from eagle3_sglang import compat_graphs
from eagle3_sglang.compat_check import FEATURES, SAMPLED, WINDOWS, name_problem
from eagle3_sglang.features import WholeFeatures, decoder_of
from eagle3_sglang.host import to_device
from eagle3_sglang.reserve import Reserve
from eagle3_sglang.sampled import Sampling
from eagle3_sglang.settings import Settings
from eagle3_sglang.windows import WindowedTrees

__all__ = ["EAGLEWorkerV2", "EagleDraftWorker"]

_SKIP_CATCH_UP = "SGLANG_SPEC_SKIP_ZERO_STEP_DRAFT_EXTEND"
_TAKES_BATCH = "forward_batch" in inspect.signature(forward_context).parameters  # since 0.5.21

per_step_slots = per_step_draft_out_cache_loc
spec_config = get_spec


@contextmanager
def attention_of(backend: Any, forward_batch: Any) -> Iterator[None]:
    """The draft model's passes inside use this attention backend."""
    extra = {"forward_batch": forward_batch} if _TAKES_BATCH else {}
    with forward_context(ForwardContext(attn_backend=backend), **extra):
        yield


def draft_kv_buffers(runner: Any) -> list[Tensor]:
    """Keys and values of every draft layer, rows by cache slot."""
    kv_pool = runner.token_to_kv_pool
    layers = range(kv_pool.start_layer, kv_pool.start_layer + kv_pool.layer_num)
    return [buffer for layer in layers for buffer in kv_pool.get_kv_buffer(layer)]


def current_state(worker: Any) -> Any:
    """The backends and graphs SGLang made at start, as one of the states to switch between."""
    draft, target = worker._draft_worker, worker._target_worker.model_runner
    return SpecRuntimeState(
        speculative_num_steps=worker.speculative_num_steps,
        speculative_num_draft_tokens=worker.speculative_num_draft_tokens,
        draft_attn_backend=draft.draft_attn_backend,
        cuda_graph_runner=draft.cuda_graph_runner,
        target_attn_backend=target.attn_backend,
        target_graph_runner=target.decode_cuda_graph_runner,
        draft_extend_attn_backend=draft.draft_extend_attn_backend,
        cuda_graph_runner_for_draft_extend=draft.cuda_graph_runner_for_draft_extend,
    )


def build_state(worker: Any, shape: Shape, reserve: Reserve) -> Any:
    """The backends and, on a GPU, the graphs of another tree; its large buffers lie in the reserve."""
    with ExitStack() as stack:
        for context in (
            _draft_parallel(worker),
            speculative_moe_backend_context(),
            speculative_moe_a2a_backend_context(),
        ):
            stack.enter_context(context)
        if worker.device != "cpu":
            runner = worker._target_worker.model_runner
            stack.enter_context(compat_graphs.sharing(current_state(worker), runner, reserve))
            return worker.build_adaptive_runtime_state(shape.steps, shape.tokens)
        # SGLang's own builder asks a CPU's backends for CUDA graphs
        stack.enter_context(worker._override_worker_state(shape.steps, shape.tokens))
        worker._draft_worker.init_attention_backend()
        runner = worker._target_worker.model_runner
        return replace(
            current_state(worker), target_attn_backend=runner._get_attention_backend(init_new_workspace=True)
        )


def free_bytes(worker: Any) -> int | None:
    """Of the device's memory; None on a CPU."""
    if worker.device == "cpu":
        return None
    module = torch.get_device_module(worker.device)
    module.empty_cache()
    return int(module.mem_get_info()[0])


def attention_of_server(worker: Any) -> tuple[list[str], int, bool]:
    """Names of the target's attention backends, tokens a page, and whether some layer sees a window."""
    runner = worker._target_worker.model_runner
    names = [runner.prefill_attention_backend_str, runner.decode_attention_backend_str]
    return (
        [str(name) for name in names],
        int(worker.page_size),
        # -1 and 0 are none, as in SGLang's own backends
        (getattr(runner, "sliding_window_size", None) or 0) > 0,
    )


def _draft_parallel(worker: Any) -> Any:
    draft = worker._draft_worker
    if hasattr(draft, "draft_tp_context"):  # until 0.5.21
        return draft.draft_tp_context(draft.draft_runner.tp_group)
    from sglang.srt.speculative.spec_utils import draft_tp_context

    return draft_tp_context(draft.parallel_layout)


def draft_extend(worker: Any, batch: Any, back_B: Tensor, features: Tensor, tokens: Tensor, width: int) -> None:
    """The draft model over `width` rows of each request, the first standing `back_B` positions before the request's end.

    Its output is dropped: what counts are the keys and values it leaves.
    """
    draft, scratch = worker._draft_worker, copy(batch)
    scratch.seq_lens = batch.seq_lens - to_device(back_B.to(batch.seq_lens.dtype), batch.seq_lens.device)
    if batch.seq_lens_cpu is not None:
        scratch.seq_lens_cpu = batch.seq_lens_cpu - back_B.to(batch.seq_lens_cpu)
        scratch.seq_lens_sum = int(scratch.seq_lens_cpu.sum())
    scratch.out_cache_loc = assign_extend_cache_locs_uniform_func(
        req_pool_indices=batch.req_pool_indices,
        req_to_token=worker.req_to_token_pool.req_to_token,
        start_offset=scratch.seq_lens,
        batch_size=len(back_B),
        draft_token_num=width,
        device=batch.device,
    )
    count_B = torch.full_like(scratch.seq_lens, width)
    state = EagleDraftExtendInput(
        hidden_states=features,
        num_correct_drafts=count_B - 1,
        num_accept_tokens=count_B,
        num_tokens_per_req=width,
        num_tokens_for_logprob_per_req=width,
    )
    with ExitStack() as stack:
        for context in (
            _draft_parallel(worker),
            speculative_moe_backend_context(),
            speculative_moe_a2a_backend_context(),
        ):
            stack.enter_context(context)
        forward_batch = prepare_for_draft_extend(
            state, scratch, tokens, width, draft.draft_runner, None, return_hidden_states_before_norm=False
        )
        draft.draft_runner.forward(forward_batch)


def has_penalties(batch: Any) -> bool:
    """Whether some request's next token hangs on how many it has: SGLang's penalties, which it relaxes under speculation."""
    info = batch.sampling_info
    if info is None:
        return False
    # in a forward pass SGLang hands over the sums and not what made them
    sums = info.acc_additive_penalties, info.acc_scaling_penalties
    orchestrator = info.penalizer_orchestrator
    return any(one is not None for one in sums) or (orchestrator is not None and bool(orchestrator.is_required))


def after_a_gap(batch: Any) -> bool:
    """Whether the server had nothing to do before this step."""
    return bool(getattr(batch, "after_idle_gap", False))


def sample_on_cpu(patches: Patches) -> str:
    """Sampled requests are drawn from the target's law where SGLang would take the argmax; why not, "" where they are."""
    if problem := name_problem(SAMPLED):
        return problem
    around = Sampling(
        eagle_worker_common.eagle_sample,
        eagle_utils.verify_tree_greedy_func,
        sampler.top_k_top_p_min_p_sampling_from_probs_torch,
    )
    patches.attribute(eagle_worker_common, "eagle_sample", around.sampling)
    patches.attribute(eagle_utils, "verify_tree_greedy_func", around.verifying)
    return ""


def windows_by_depth(patches: Patches) -> str:
    """On a CPU a sliding window slides with a row's depth in a tree; why not, "" where it does."""
    if problem := name_problem(WINDOWS):
        return problem
    from sglang.srt.layers.attention.intel_amx_backend import IntelAMXAttnBackend

    around = WindowedTrees(IntelAMXAttnBackend.forward_extend).around()
    patches.attribute(IntelAMXAttnBackend, "forward_extend", around)
    return ""


def whole_features(worker: Any, patches: Patches) -> str:
    """Gemma 3's features with their residual; why not, "" where they are, and for every other target."""
    decoder = decoder_of(worker._target_worker.model_runner.model)
    if decoder is None:
        return ""
    if problem := name_problem(FEATURES):
        return problem
    WholeFeatures(decoder, patches)
    return ""


def skip_catching_up(skip: bool) -> None:
    """Whether SGLang leaves out the draft's pass after a step that drafted nothing; it asks at every such step."""
    os.environ[_SKIP_CATCH_UP] = "1" if skip else "0"


@contextmanager
def quiet() -> Iterator[None]:
    """SGLang logs every change of state; ours change many times a second."""
    logger = logging.getLogger("sglang.srt.speculative.eagle_worker_v2")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def shapes_of(worker: Any, settings: Settings) -> tuple[Shape, ...]:
    """The trees of this server: those of the environment with the one SGLang was started with, or that one alone."""
    given = Shape(worker.speculative_num_steps, worker.topk, worker.speculative_num_draft_tokens)
    if any(shape.top_k != given.top_k for shape in settings.trees):
        raise InputError(f"the trees in the environment have another top-k than the server's {given}")
    if any(shape.tokens > given.tokens or shape.steps > given.steps for shape in settings.trees):
        raise InputError(f"a tree in the environment is larger than the server's {given}, which memory is kept for")
    return tuple(sorted({given, *settings.trees}, key=lambda shape: (shape.tokens, shape.steps)))


def broadcast_choice(shape: Shape, shapes: Sequence[Shape]) -> Shape:
    """The first rank's choice: clocks differ between ranks, and all must run the same tree."""
    group = get_parallel().tp_group
    if group.world_size == 1:
        return shape
    place = torch.tensor([shapes.index(shape)])
    torch.distributed.broadcast(place, group.ranks[0], group=group.cpu_group)
    return shapes[int(place)]


def all_ranks_agree(yes: bool) -> bool:
    """Whether every rank does: all must build the same states."""
    group = get_parallel().tp_group
    if group.world_size == 1:
        return yes
    votes = torch.tensor([int(yes)])
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN, group=group.cpu_group)
    return bool(votes[0])


def ranks() -> int:
    return int(get_parallel().tp_group.world_size)


def reports_metrics(server_args: Any) -> bool:
    """Whether this process is the one whose metrics count."""
    return bool(server_args.enable_metrics) and get_parallel().tp_rank == 0


def max_requests(worker: Any) -> int:
    """Most requests in flight, padding of CUDA graphs included."""
    return int(worker.req_to_token_pool.size) + 256


def about(worker: Any, server_args: Any) -> dict[str, str]:
    """What a measured cost hangs on."""
    target = worker.target_worker.model_runner
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": str(torch.get_num_threads()),
        "target": str(server_args.model_path),
        "drafter": str(server_args.speculative_draft_model_path),
        "dtype": str(target.dtype),
        "tp": str(server_args.tp_size),
        "attention": str(type(target.attn_backend).__name__),
    }


def digest(value: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
