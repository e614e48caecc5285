"""The patch register of SGLang: every hook and every change of a running worker. It imports nothing of SGLang, for the
documentation reads it too; a test holds it against the hooks and the assignments in the code."""

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
        "SGLang asks the worker how much memory its trees need.",
    ),
    Seam(
        f"{_ALGORITHM}.resolve_max_speculative_num_draft_tokens",
        "As many cache slots a request as the largest tree needs, drafting or verifying.",
        "Whichever tree comes next, its rows must have a place.",
        _HOOKS,
        "SGLang asks the worker how much memory its trees need.",
    ),
    Seam(
        f"{_ALGORITHM}.create_worker",
        "The worker of EAGLE3 is ours, a subclass of SGLang's.",
        "A tree a step, selection by calibrated confidence, steps without a draft.",
        "tests/engines/test_sglang.py",
        "A registry of workers (SGLang has one for new algorithms; features gated on EAGLE3's name need that name).",
    ),
    Seam(
        "sglang.srt.sampling.sampling_params.SamplingParams.verify",
        "A request's own fields (`eagle3`, `eagle3_draft_tokens`) are looked at when it comes.",
        "A value that cannot be meant is then HTTP 400 with one line, not an error in the scheduler.",
        _HOOKS,
        "SGLang lets a plugin check custom parameters.",
    ),
    Seam(
        "Req.eagle3_gate",
        "Each request carries its gate: what it asked, and what was accepted of its drafts.",
        "The gate then goes when the request goes.",
        "tests/plugins/sglang/test_sglang_gates.py",
        "SGLang lets a request say how many tokens are drafted for it.",
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
        "SGLang shares workspaces between adaptive states.",
    ),
    Seam(
        "EagleDraftWorker.__class__",
        "The draft worker that SGLang made becomes one of ours, a subclass.",
        "Nodes are ranked by calibrated confidence, and each draft tells what every tree would have gained.",
        "tests/engines/test_sglang.py",
        "SGLang's worker names the class of its draft worker.",
    ),
    *(
        Seam(
            target,
            "On a CPU: sampled requests are drawn from the target's law.",
            "SGLang verifies greedily on a CPU: sampled requests would get the likeliest tokens.",
            "tests/plugins/sglang/test_sampled.py",
            "SGLang samples under speculation on a CPU.",
        )
        for target in (
            "sglang.srt.speculative.eagle_worker_common.eagle_sample",
            "sglang.srt.speculative.eagle_utils.verify_tree_greedy_func",
        )
    ),
    Seam(
        "Gemma3TextModel.forward",
        "Of a loaded Gemma 3: the auxiliary hidden states with their residual, by its decoder, layers and last norm.",
        "SGLang keeps the residual apart between layers and captures the state without it (pull request #39286).",
        "tests/engines/test_gemma3.py",
        "SGLang captures the whole state.",
    ),
    Seam(
        "sglang.srt.layers.attention.intel_amx_backend.IntelAMXAttnBackend.forward_extend",
        "On a CPU, for a target with sliding windows: a tree's rows in windowed layers are decoding rows, each with its own slots.",
        "SGLang's kernel slides a window by the rows of a tree, not by their depth: texts past the window would change.",
        "tests/engines/test_gemma3.py",
        "SGLang's kernels take each row's position.",
    ),
    Seam(
        "environment SGLANG_SPEC_SKIP_ZERO_STEP_DRAFT_EXTEND",
        "SGLang's own switch, set before every step: whether the draft's pass is left out after a step that drafted nothing.",
        "While nothing is drafted the draft's pass costs and gains nothing; before drafting goes on it must run.",
        "tests/plugins/sglang/test_catch_up.py",
        "The switch becomes a parameter of the step.",
    ),
    Seam(
        "environment EAGLE3_TREES",
        "Our own variable, set to the default trees where the user gave none.",
        "SGLang's scheduler is another process and must choose among the same trees.",
        _HOOKS,
        "A server's arguments carry a plugin's settings.",
    ),
    Seam(
        "ServerArgs.speculative_draft_model_path",
        "The path of the converted copy, where the drafter would be read wrongly in silence.",
        "The copy is what is served.",
        "tests/plugins/sglang/test_preflight.py",
        "SGLang reads every dialect rightly.",
    ),
    Seam(
        "ServerArgs.speculative_draft_window_size",
        "The drafter's sliding window, where the flag was not given.",
        "SGLang reads a Llama drafter's window off this flag and not off its config.json.",
        "tests/engines/test_sglang_features.py",
        "SGLang reads `sliding_window` and `layer_types` of the drafter.",
    ),
    Seam(
        'logging.getLogger("sglang.srt.speculative.eagle_worker_v2").setLevel',
        "Raised to warnings while one tree's state takes another's place.",
        "SGLang logs every change of state; ours change many times a second.",
        "tests/engines/test_sglang.py",
        "SGLang logs them as debugging.",
    ),
)
