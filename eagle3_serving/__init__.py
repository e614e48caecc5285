"""EAGLE-3 drafters in production, on the stock vLLM and SGLang."""

__version__ = "0.2.0"
