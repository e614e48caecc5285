"""The embedded engine: target and drafter on transformers."""

from eagle3_serving.engine.draft import DraftSession, TreeShape
from eagle3_serving.engine.embedded import EmbeddedEngine
from eagle3_serving.engine.options import DecodeOptions, Generation, Mode, Sampling, Step
from eagle3_serving.engine.target import Target

__all__ = [
    "DecodeOptions",
    "DraftSession",
    "EmbeddedEngine",
    "Generation",
    "Mode",
    "Sampling",
    "Step",
    "Target",
    "TreeShape",
]
