"""Which versions of vLLM the plugin knows; asked before anything of theirs is imported."""

import re

# 0.32: all of our tests run on it. 0.33: every private name is as known, and a server on a CPU gives the same greedy tokens by
# chains; its CPU build is not released, so that was its Python over 0.32's kernels. Trees have not run on it
SUPPORTED = ("0.32", "0.33")


def version_problem(version: str) -> str:
    """Why this version of vLLM is not one that we know, "" where it is."""
    found = re.match(r"(\d+\.\d+)\b", version)
    if found and found[1] in SUPPORTED:
        return ""
    return f"vLLM {version} is not one of the versions known to work ({', '.join(SUPPORTED)})"
