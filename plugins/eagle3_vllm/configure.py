"""What is settled before a server's processes start: how many tokens are drafted, by batch size, or in a tree's place."""

from pathlib import Path
from typing import Any

from eagle3_serving.checkpoint.names import CAUSAL
from eagle3_serving.errors import InputError
from eagle3_serving.serve.servable import require_pair
from eagle3_vllm.choice import first_schedule
from eagle3_vllm.compat import current_platform, supports_eagle3
from eagle3_vllm.fallback import config_reasons, parallel_drafter
from eagle3_vllm.schedule import Profile
from eagle3_vllm.settings import Settings

with_trees: set[int] = set()  # ids of the speculative configs of servers that verify trees
LONGEST_CHAIN = 8  # tokens; whoever asks for more means a tree
FREE_ROWS = 256  # an H100 verifies so many rows of an 8B target in about the time of one


def require_right(config: Any) -> None:
    """Raise CheckError, before a server's processes start, for a drafter that is broken or another target's. What vLLM alone
    would read wrongly is read rightly here; a hub's name is vLLM's to find first."""
    speculative = config.speculative_config
    if speculative is None or speculative.method != "eagle3" or speculative.draft_model_config is None:
        return
    drafter, target = Path(speculative.draft_model_config.model), Path(config.model_config.model)
    if drafter.is_dir() and target.is_dir() and drafter != target:  # vLLM makes a config of the drafter too
        require_pair(drafter, target)


def draft_in_one_pass(speculative: Any, trees: bool, logger: Any) -> None:
    """A parallel drafter (P-EAGLE) is told by its masks, and vLLM wants to be told once more: else it drafts a token a pass with
    weights that were trained for masks. Trees of ours need no telling, and vLLM's Model Runner V2 refuses to be told."""
    drafter = parallel_drafter(speculative)
    if drafter is None:
        return
    if trees:
        speculative.parallel_drafting = False
        logger.info("eagle3: a parallel drafter: every depth of a tree from one pass over its masks")
        return
    if not speculative.parallel_drafting:
        speculative.parallel_drafting = True
        logger.info("eagle3: a parallel drafter: all draft tokens in one pass, as parallel_drafting would say")


def nothing_drafts(config: Any) -> str:
    """Why vLLM, with a drafter of whoever, would end at start or at its first draft; "" where it would not."""
    if config.parallel_config.pipeline_parallel_size > 1 and not config.use_v2_model_runner:
        # vLLM's runner V1 makes a drafter on the last stage and asks every stage for its own
        return "Model Runner V1 drafts on one pipeline stage alone and stops at start"
    if config.lora_config is not None and config.use_v2_model_runner and current_platform.is_cpu():
        # as many adapters as requests are told for the logits of all their rows; a GPU's kernels stop there, a CPU's raise
        return "on a CPU, Model Runner V2 with LoRA adapters stops at the first draft"
    model = config.model_config
    try:
        target, _ = model.registry.resolve_model_cls(model.architectures, model_config=model)
    except Exception:  # vLLM says it better, when it loads the model
        return ""
    if supports_eagle3(target):
        return ""
    return f"vLLM's {target.__name__} gives a drafter no hidden states and stops at start with one"


def draft_nothing(config: Any) -> None:
    """Serve plainly; figures of drafts, which vLLM refuses to be asked for without any, are asked for no more."""
    config.speculative_config = None
    asked = getattr(config, "observability_config", None)
    if asked is not None and getattr(asked, "per_request_spec_decode_metrics", "none") != "none":
        asked.per_request_spec_decode_metrics = "none"


def keep_last_block(config: Any, logger: Any) -> None:
    """Let a prefix found in the cache be taken whole. vLLM gives its last block back under speculation (vllm#53670), so that the
    drafter reads it anew. Ours need not: a row that the drafter caches hangs on that row and on the token after it, so of a
    whole prefix at most the last row is another text's, in the drafter alone: no token changes."""
    speculative = config.speculative_config
    dropped = getattr(speculative, "disable_eagle_block_drop", None) is False  # a field of vLLM's since 0.32
    if dropped and config.cache_config.enable_prefix_caching:
        speculative.disable_eagle_block_drop = True
        logger.info("eagle3: a prefix found in the cache is taken whole, its last block too")


def configure_speculation(config: Any, settings: Settings, logger: Any) -> None:
    """Change the speculative part of a `VllmConfig` that is being made. Says in one line what it changes, and why."""
    speculative = config.speculative_config
    if speculative is None or speculative.method != "eagle3" or speculative.draft_model_config is None:
        return
    if reason := nothing_drafts(config):
        logger.warning("eagle3: nothing is drafted: %s", reason)
        draft_nothing(config)
        return
    keep_last_block(config, logger)
    reasons = config_reasons(config, settings)
    if reasons and (drafter := parallel_drafter(speculative)) is not None and CAUSAL in drafter.tensors:
        logger.warning("eagle3: nothing is drafted: a causal head is for trees alone (%s)", "; ".join(reasons))
        draft_nothing(config)
        return
    draft_in_one_pass(speculative, not reasons, logger)
    if not reasons:
        with_trees.add(id(speculative))
        most = max((shape.tokens - 1 for shape in settings.trees), default=speculative.num_speculative_tokens)
        if most < speculative.num_speculative_tokens and speculative.num_speculative_tokens_per_batch_size is None:
            logger.info("eagle3: %d nodes a request, as the largest of EAGLE3_TREES has", most)
            speculative.num_speculative_tokens = most
    elif speculative.num_speculative_tokens <= LONGEST_CHAIN:
        logger.info("eagle3: chains are drafted, not trees: %s", "; ".join(reasons))
    else:
        # a chain gains nothing past its first few tokens, and every one more is verified for each request
        logger.warning(
            "eagle3: a chain of %d instead of %d nodes: %s",
            settings.fallback_tokens,
            speculative.num_speculative_tokens,
            "; ".join(reasons),
        )
        speculative.num_speculative_tokens = settings.fallback_tokens
    if speculative.num_speculative_tokens_per_batch_size is not None:
        return
    if not reasons and len(settings.trees) > 1:
        # what is captured and drafted before a step's costs and gains are known
        speculative.num_speculative_tokens_per_batch_size = first_schedule(
            settings.trees, config.scheduler_config.max_num_seqs, FREE_ROWS
        )
        return
    if settings.profile is None:
        return
    if speculative.parallel_drafting:  # vLLM's proposer has as many masks every step, whatever is asked of it
        logger.warning(
            "eagle3: EAGLE3_PROFILE is not used: a parallel drafter drafts as many tokens at every batch size"
        )
        return
    try:
        schedule = Profile.read(settings.profile).schedule(speculative.num_speculative_tokens)
    except InputError as error:
        logger.warning("eagle3: drafted at every batch size: %s", error)
        return
    most = max(1, *(tokens for _, _, tokens in schedule))
    if reasons:
        speculative.num_speculative_tokens = most
    speculative.num_speculative_tokens_per_batch_size = schedule
    logger.info("eagle3: draft tokens by batch size: %s", ", ".join(f"{a}-{b}: {k}" for a, b, k in schedule))
