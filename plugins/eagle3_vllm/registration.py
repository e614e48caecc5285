"""What the plugin changes in a vLLM process: the draft architecture, on a CPU the sampling of chains, and for trees the
attention backends, the target's graphs, the scheduler and the seams of Model Runner V2.

All of it or nothing: every name is looked at, and every module of ours imported that will be needed, before the first change.
"""

from importlib import import_module
from logging import Logger
from typing import Any

import torch
import vllm

from eagle3_serving.errors import Eagle3Error, InputError
from eagle3_serving.notice import in_a_line, stop
from eagle3_serving.patches import Patches
from eagle3_vllm.metrics import Tally, open_folder
from eagle3_vllm.settings import Settings
from eagle3_vllm.versions import version_problem

# imported late, where vLLM would find out too late that one cannot be
NEEDED = ("architecture", "configure", "idle", "speculator", "model_state", "draft_tokens", "graphs")


def register_all(logger: Logger) -> str:
    """Why nothing of vLLM was changed; "" where it was, or is not to be. Whatever it raises, nothing was changed."""
    if problem := version_problem(vllm.__version__):
        return problem
    try:
        settings: Settings | InputError = Settings.read()
    except InputError as error:
        settings = error
    if isinstance(settings, Settings) and settings.mode == "vllm" and torch.cuda.is_available():
        return ""
    from eagle3_vllm import compat

    if getattr(compat.RejectionSamplerV1, "eagle3", False):
        return ""  # vLLM may load plugins more than once
    if problems := compat.all_problems():
        return "; ".join(problems)
    for name in NEEDED:
        import_module(f"eagle3_vllm.{name}")
    from eagle3_vllm.idle import register_idle
    from eagle3_vllm.rejection_v1 import register_sampling
    from eagle3_vllm.scheduling import register_scheduling

    with Patches() as patches:
        patches.attribute(compat.RejectionSamplerV1, "eagle3", True)
        if isinstance(settings, InputError):
            _register_end(patches, settings)
            return ""
        register_sampling(patches)
        if settings.mode == "vllm":
            return ""  # on a CPU the plugin does what vLLM's own kernels do not do there, and nothing else
        _register_architecture(patches)
        _register_configuration(patches, settings, logger)
        register_idle(patches)
        _register_backends(patches)
        register_scheduling(patches, settings, logger)
        _register_trees(patches, settings, logger)
        open_folder()
    return ""


def _register_end(patches: Patches, error: InputError) -> None:
    """A setting that cannot be read: a server with EAGLE-3 ends before anything loads, all others do not look at it."""
    from eagle3_vllm import compat

    made = compat.VllmConfig.__post_init__

    def post_init(self: Any) -> None:
        if getattr(self.speculative_config, "method", None) == "eagle3":
            stop(str(error), error.exit_code)
        made(self)

    patches.attribute(compat.VllmConfig, "__post_init__", post_init)


def _register_architecture(patches: Patches) -> None:
    from eagle3_vllm import compat

    known = compat.ModelRegistry.models
    for name in compat.ARCHITECTURES:
        patches.item(known, name)
        compat.own_drafters[name] = known[name]
        compat.ModelRegistry.register_model(name, "eagle3_vllm.architecture:Eagle3ServingForCausalLM")
    for name in compat.TARGETS:
        patches.item(known, name)
        compat.ModelRegistry.register_model(name, f"eagle3_vllm.targets:{name}")


def _register_configuration(patches: Patches, settings: Settings, logger: Logger) -> None:
    from eagle3_vllm import compat
    from eagle3_vllm.configure import configure_speculation, require_right, with_trees
    from eagle3_vllm.gates import check as check_gates

    made = compat.VllmConfig.__post_init__

    def post_init(self: Any) -> None:
        try:
            require_right(self)
            configure_speculation(self, settings, logger)
        except Eagle3Error as error:
            stop(f"{error}; EAGLE3_MODE=vllm leaves it to vLLM's own EAGLE-3", error.exit_code)
        except Exception as error:
            logger.warning("eagle3: draft tokens are as they were asked for: %s", in_a_line(error))
        made(self)

    refuse = compat.SamplingParams._validate_spec_decode

    def validate(self: Any, speculative_config: Any) -> None:
        check_gates(self)
        # vLLM's chain cannot do min-p and logit bias; our acceptance goes through plain decoding's sampler, which can
        if id(speculative_config) not in with_trees:
            refuse(self, speculative_config)

    patches.attribute(compat.VllmConfig, "__post_init__", post_init)
    patches.attribute(compat.SamplingParams, "_validate_spec_decode", validate)


def _register_backends(patches: Patches) -> None:
    from eagle3_vllm import compat
    from eagle3_vllm.attention.support import BACKENDS

    names = BACKENDS if torch.cuda.is_available() else ("CPU_ATTN",)
    for name in names:
        backend = compat.AttentionBackendEnum[name]
        if not backend.is_overridden():
            patches.undone_by(backend.clear_override)
        compat.register_backend(backend, f"eagle3_vllm.attention.chosen.{name}")


def _register_trees(patches: Patches, settings: Settings, logger: Logger) -> None:
    from eagle3_vllm import compat

    runner = compat.model_runner()
    patches.attribute(runner, "eagle3_trees", {})
    make_speculator, make_model_state = runner.init_speculator, runner.init_model_state
    plain_draft_tokens = runner.DraftTokensHandler

    def init_speculator(vllm_config: Any, device: torch.device, req_states: Any) -> Any:
        runner.eagle3_trees.clear()
        if vllm_config.speculative_config.method == "eagle3":
            try:
                ours = _tree_speculator(runner.eagle3_trees, vllm_config, settings, device, logger)
                if ours is not None:
                    return ours
            except Eagle3Error:
                raise  # the drafter is not right: vLLM would serve it, and nothing would be accepted
            except Exception as error:
                runner.eagle3_trees.clear()
                logger.warning("eagle3: vLLM's own chain serves, and no trees: %s", in_a_line(error))
        return make_speculator(vllm_config, device, req_states)

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

    changed = {
        "init_speculator": init_speculator,
        "init_model_state": init_model_state,
        "DraftTokensHandler": make_draft_tokens,
        "ModelCudaGraphManager": make_graphs,
    }
    for name, ours in changed.items():
        patches.attribute(runner, name, ours)


def _tree_speculator(
    servers: dict[int, Any], vllm_config: Any, settings: Settings, device: torch.device, logger: Logger
) -> Any:
    """The speculator of a server that verifies trees, which is then one of `servers`; None where vLLM's own chain serves."""
    from eagle3_vllm import compat
    from eagle3_vllm.architecture import announce_boundaries, not_judged
    from eagle3_vllm.fallback import server_reasons
    from eagle3_vllm.speculator import TreeSpeculator
    from eagle3_vllm.trees import Trees

    if not_judged(vllm_config.speculative_config):
        return None  # said when the model is made
    announce_boundaries(vllm_config)
    if reasons := server_reasons(vllm_config, settings):
        logger.warning("eagle3: vLLM's own chain serves, and no trees: %s", "; ".join(reasons))
        tally = Tally(device, compat.is_global_first_rank())
        for reason in reasons:
            tally.report_fallback("server", reason)
        tally.write()
        return None
    trees = Trees(vllm_config, settings, device)
    for shape in trees.shapes.values():
        if shape.drafts:
            nodes = shape.tokens - 1
            logger.info("eagle3: trees of %d nodes, depth %d, %d children a node", nodes, shape.steps, shape.top_k)
    speculator = TreeSpeculator(vllm_config, device, trees)
    servers[id(vllm_config)] = trees
    return speculator
