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
    """The same for a target some of whose layers see a window, known once it is loaded. Of these backends FA3 alone slides
    a window by a row's depth in the tree; `windows` does so for intel_amx."""
    if not sliding_window:
        return ""
    named = set(backends)
    if "flashinfer" in named:
        # its plan leaves out where the window begins (`generate_attn_arg_prefill` without `kv_start_idx`)
        way = "--attention-backend fa3, or triton with --speculative-eagle-topk 1"
        return f"flashinfer verifies over the first tokens of a text where a sliding window has the last: {way}"
    if top_k > 1 and "triton" in named:
        way = "--attention-backend fa3, or --speculative-eagle-topk 1"
        return (
            f"triton slides a window by the rows of a tree, not by their depth, and texts past it would change: {way}"
        )
    if top_k > 1 and page_size > 1 and "fa3" in named:
        return f"fa3 verifies no tree over a sliding window with pages of {page_size}: --page-size 1, or top-k 1"
    return ""
