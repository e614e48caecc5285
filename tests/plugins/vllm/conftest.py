"""Puts this folder on the path, for the kernels' tests too."""
