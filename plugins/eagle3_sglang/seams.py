"""The patch register of SGLang: every hook and every change of a running worker. It imports nothing of SGLang, for the
documentation reads it too; a test holds it against the hooks that are registered and the changes that stand in the code."""

from eagle3_serving.patches import Seam

_ALGORITHM = "sglang.srt.speculative.spec_info.SpeculativeAlgorithm"
_HOOKS = "tests/plugins/sglang/test_hooks.py"

SEAMS = (
    Seam(
        "sglang.srt.server_args.ServerArgs.resolve_once",
        "Before any file is read: the drafter is checked, or a converted copy served.",
        "SGLang skips tensors whose names it does not know, in silence.",
        "tests/engines/test_sglang.py",
        "SGLang refuses what it does not read.",
    ),
    Seam(
        "sglang.srt.arg_groups.speculative_hook._auto_choose_speculative_params",
        "Where the user gave no tree: the largest of ours, so that memory is kept for it.",
        "SGLang has one tree for the server's life; ours changes at every step.",
        _HOOKS,
        "SGLang sizes memory by what the worker says.",
    ),
    Seam(
        f"{_ALGORITHM}.resolve_max_speculative_num_draft_tokens",
        "As many cache slots a request as the largest tree needs, drafting or verifying.",
        "The same.",
        _HOOKS,
        "The same.",
    ),
    Seam(
        f"{_ALGORITHM}.create_worker",
        "The worker of EAGLE3 is ours, a subclass of SGLang's.",
        "A tree a step, selection by calibrated confidence, steps without a draft.",
        "tests/engines/test_sglang.py",
        "A registry of workers (SGLang has one for new algorithms; features gated on EAGLE3's name need that name).",
    ),
    Seam(
        "attention backends: init_cuda_graph_state",
        "While our states are captured, their plans lie in one reserve of memory.",
        "Every tree's graphs would else have buffers of their own.",
        "tests/plugins/sglang/test_states.py",
        "SGLang shares plans between adaptive states.",
    ),
    Seam(
        "ModelRunner._get_attention_backend",
        "While our states are captured, they share a workspace.",
        "States step one at a time.",
        "tests/plugins/sglang/test_states.py",
        "The same.",
    ),
)
