"""What the plugin changes in a vLLM process: the draft architecture, on a CPU the sampling of chains, and for trees the
attention backends, the target's graphs, the scheduler and the seams of Model Runner V2."""

from typing import Any

import torch

from eagle3_serving.errors import InputError
from eagle3_vllm.metrics import Tally, open_folder
from eagle3_vllm.scheduling import register_choice
from eagle3_vllm.settings import Settings

INEXACT = "answers drafted at a temperature above 0 do not follow the target's law on a CPU (vllm#42638)"


def register_all() -> None:
    from vllm.logger import init_logger

    logger = init_logger("vllm.eagle3")
    try:
        settings = Settings.read()
    except InputError as error:
        logger.warning("eagle3: vLLM's own chain serves: %s", error)
        settings = Settings(mode="chain")
    if settings.mode == "vllm" and torch.cuda.is_available():
        return
    try:
        from eagle3_vllm import compat
    except Exception as error:  # an import that failed is a vLLM we do not know
        _left_to_vllm(str(error), logger)
        return
    problems = [compat.version_problem() or "", *compat.problems(compat.BOTH_RUNNERS)]
    if any(problems):
        _left_to_vllm("; ".join(filter(None, problems)), logger)
        return
    from eagle3_vllm.rejection_v1 import exact_here, register_sampling

    register_sampling()
    if not exact_here():
        logger.warning("eagle3: %s: %s", INEXACT, "; ".join(compat.problems(compat.SAMPLING)))
    if settings.mode == "vllm":
        return  # on a CPU the plugin does what vLLM's own kernels do not do there, and nothing else
    for name in compat.ARCHITECTURES:
        compat.ModelRegistry.register_model(name, "eagle3_vllm.architecture:Eagle3ServingForCausalLM")
    _register_settling(settings, logger)
    from eagle3_vllm.idle import register_idle

    register_idle()
    open_folder()
    _register_trees(settings, logger)


def _left_to_vllm(why: str, logger: Any) -> None:
    inexact = "" if torch.cuda.is_available() else f"; {INEXACT}"
    logger.warning("eagle3: vLLM's own EAGLE-3 serves: %s%s", why, inexact)


def _register_settling(settings: Settings, logger: Any) -> None:
    from eagle3_vllm import compat
    from eagle3_vllm.configure import settle, with_trees

    made = compat.VllmConfig.__post_init__
    if getattr(made, "eagle3", False):
        return

    def post_init(self: Any) -> None:
        settle(self, settings, logger)
        made(self)

    post_init.eagle3 = True  # type: ignore[attr-defined]
    compat.VllmConfig.__post_init__ = post_init
    refuse = compat.SamplingParams._validate_spec_decode

    def validate(self: Any, speculative_config: Any) -> None:
        # vLLM's chain cannot do min-p and logit bias; our acceptance goes through plain decoding's sampler, which can
        if id(speculative_config) not in with_trees:
            refuse(self, speculative_config)

    compat.SamplingParams._validate_spec_decode = validate


def _register_trees(settings: Settings, logger: Any) -> None:
    from eagle3_vllm import compat
    from eagle3_vllm.fallback import server_reasons

    backends = {"CPU_ATTN": "cpu.TreeCPUAttentionBackend"}
    if torch.cuda.is_available():
        backends = {
            "FLASH_ATTN": "cuda.TreeFlashAttentionBackend",
            "FLASHINFER": "flashinfer_backend.TreeFlashInferBackend",
            "TRITON_ATTN": "triton_backend.TreeTritonAttentionBackend",
        }
    for name, path in backends.items():
        compat.register_backend(compat.AttentionBackendEnum[name], f"eagle3_vllm.attention.{path}")
    register_choice(settings, logger)
    runner = compat.model_runner()
    if getattr(runner, "eagle3_trees", None) is not None:
        return
    runner.eagle3_trees = {}
    make_speculator, make_model_state = runner.init_speculator, runner.init_model_state
    plain_draft_tokens = runner.DraftTokensHandler

    def init_speculator(vllm_config: Any, device: torch.device, req_states: Any) -> Any:
        runner.eagle3_trees.clear()
        if vllm_config.speculative_config.method != "eagle3":
            return make_speculator(vllm_config, device, req_states)
        from eagle3_vllm.architecture import announce_boundaries

        announce_boundaries(vllm_config)
        reasons = server_reasons(vllm_config, settings)
        if reasons:
            logger.warning("eagle3: vLLM's own chain serves, and no trees: %s", "; ".join(reasons))
            tally = Tally(device, compat.is_global_first_rank())
            for reason in reasons:
                tally.fell_back("server", reason)
            tally.write()
            return make_speculator(vllm_config, device, req_states)
        from eagle3_vllm.speculator import TreeSpeculator
        from eagle3_vllm.trees import Trees

        trees = Trees(vllm_config, settings, device)
        runner.eagle3_trees[id(vllm_config)] = trees
        for shape in trees.shapes.values():
            if shape.drafts:
                nodes = shape.tokens - 1
                logger.info("eagle3: trees of %d nodes, depth %d, %d children a node", nodes, shape.steps, shape.top_k)
        return TreeSpeculator(vllm_config, device, trees)

    def init_model_state(vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> Any:
        trees = runner.eagle3_trees.get(id(vllm_config))
        if trees is None:
            return make_model_state(vllm_config, model, encoder_cache, device)
        from eagle3_vllm.model_state import TreeModelState

        base = compat.resolve_model_state_cls(vllm_config, model)
        state = type(f"Tree{base.__name__}", (TreeModelState, base), {})(vllm_config, model, encoder_cache, device)
        state.trees = trees
        return state

    def make_draft_tokens(device: torch.device) -> Any:
        # made right after the speculator, of the same model runner
        for trees in runner.eagle3_trees.values():
            from eagle3_vllm.draft_tokens import TreeDraftTokens

            return TreeDraftTokens(device, trees)
        return plain_draft_tokens(device)

    plain_graphs = runner.ModelCudaGraphManager

    def make_graphs(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        trees = runner.eagle3_trees.get(id(vllm_config))
        if trees is None:
            return plain_graphs(vllm_config, *args, **kwargs)
        from eagle3_vllm.graphs import TargetGraphs

        return TargetGraphs(trees, vllm_config, *args, **kwargs)

    runner.ModelCudaGraphManager = make_graphs
    runner.init_speculator, runner.init_model_state = init_speculator, init_model_state
    runner.DraftTokensHandler = make_draft_tokens
