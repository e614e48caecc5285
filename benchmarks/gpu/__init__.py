"""Every question about a GPU in one sitting: `python -m benchmarks.gpu --help`."""
