"""Throughput by load: plain decoding, the engine's own EAGLE-3 and ours, interleaved in one run."""
