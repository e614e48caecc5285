"""Pictures, tables and sentences of the results' pages, all made from the raw files by `python -m benchmarks.redraw`."""
