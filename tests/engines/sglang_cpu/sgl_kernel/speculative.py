"""Imported by SGLang for n-gram speculation, which the tests do not run."""

from sgl_kernel.missing import absent

reconstruct_indices_from_tree_mask = absent("speculative.reconstruct_indices_from_tree_mask")
