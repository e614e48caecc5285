"""Commands that measure; their results lie in `results/`."""
