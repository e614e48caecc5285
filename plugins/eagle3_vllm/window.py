"""How far a drafter looks back on vLLM: its sliding window in every attention over its pages, and what it was trained on."""

from typing import Any

from eagle3_serving.drafter import DrafterConfig
from eagle3_vllm.attention.support import backend_names
from eagle3_vllm.compat import Attention, VllmConfig, init_logger

logger = init_logger("vllm.eagle3")


class DraftAttention(Attention):
    """vLLM's own. A windowed layer keeps all its pages, as the target's do: a window of its own would give the one layer
    block tables, groups and an eviction of its own, and every request its target's tables in as many parts."""

    sliding_window: int | None

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> Any:
        window, self.sliding_window = self.sliding_window, None
        try:
            return super().get_kv_cache_spec(vllm_config)
        finally:
            self.sliding_window = window


def window_of(config: DrafterConfig, vllm_config: VllmConfig) -> int | None:
    """The drafter's window, None where it has none, or where the backend takes one window for all layers alone."""
    if config.sliding_window is None:
        return None
    if "FLASHINFER" in backend_names(vllm_config):
        logger.warning(
            "eagle3: the drafter was trained to look back %d tokens and looks back all the way: FLASHINFER takes one window "
            "for all layers; drafts may be accepted less, no token changes",
            config.sliding_window,
        )
        return None
    return config.sliding_window


def length_line(config: DrafterConfig, window: int | None, served: int) -> str:
    """What there is to say of texts longer than the drafter was made for, "" where nothing is: in a window no two rows that
    see one another are farther apart than it learned."""
    known = config.max_position_embeddings
    if window is not None or served <= known:
        return ""
    return (
        f"the drafter was made for {known} positions and {served} are served: past them drafts may be accepted less; "
        f"EAGLE3_GATE_CONTEXT={known} stops drafting there"
    )
