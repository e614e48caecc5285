"""EAGLE-3 trees that follow the batch, under stock SGLang's `--speculative-algorithm EAGLE3`."""

from eagle3_sglang.hooks import register

__all__ = ["register"]
