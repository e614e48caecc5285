"""Which of SGLang's attention backends verify a tree, as read in its source (0.5.20 and 0.5.23).

Triton and FlashInfer take the tree's mask, FA3 reads the prefix and each row's visible nodes and merges both; these three
also with pages of more than one token. The others' kernels are causal: a chain is all they can verify.

One budget over a batch needs verification of another width for each request. 0.5.23 has it (`ragged_verify`) for DSpark
alone, in the graphs of trtllm_mha and of DeepSeek V4's attention, which know no tree: so a tree's width is every request's,
and the load chooses it.
"""

from collections.abc import Iterable

TREES = frozenset({"triton", "flashinfer", "fa3", "intel_amx"})
PAGED_TREES = frozenset({"triton", "flashinfer", "fa3"})
CHAINS = frozenset({"trtllm_mha", "trtllm_mla", "cutedsl_mla", "flashmla", "aiter", "dsa", "nsa", "dsv4"})


def chains_alone(backends: Iterable[str]) -> bool:
    """Whether one of these is known to verify nothing but chains."""
    return bool(CHAINS & set(backends))


def tree_problem(top_k: int, backends: Iterable[str], page_size: int) -> str:
    """Why trees of this top-k are not served with these attention backends, "" where they are."""
    if top_k == 1:
        return ""  # drafted and verified by SGLang's own code
    for name in sorted(set(backends)):
        if name in CHAINS:
            way = "--speculative-eagle-topk 1, or --attention-backend fa3, flashinfer or triton"
            return f"attention backend {name} verifies chains, not trees of top-k {top_k}: {way}"
        if name not in TREES:
            return f"whether attention backend {name} verifies trees is not known"
        if page_size > 1 and name not in PAGED_TREES:
            return f"attention backend {name} verifies trees with --page-size 1 alone, not {page_size}"
    return ""


def window_problem(top_k: int, backends: Iterable[str], page_size: int, sliding_window: bool) -> str:
    """The same for a target some of whose layers see a window, known once it is loaded."""
    if top_k > 1 and page_size > 1 and sliding_window and "fa3" in set(backends):
        return f"fa3 verifies no tree over a sliding window with pages of {page_size}: --page-size 1, or top-k 1"
    return ""
