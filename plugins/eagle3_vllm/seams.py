"""The patch register of vLLM: every place that a registration changes. It imports nothing of vLLM, for the documentation
reads it too; a test holds it against what a registration leaves behind."""

from eagle3_serving.patches import Seam

_RUNNER = "vllm.v1.worker.gpu.model_runner"
_FAULTS = "tests/plugins/vllm/test_faults.py"

SEAMS = (
    *(
        Seam(
            f"ModelRegistry {name}",
            "This draft architecture is the shared drafter on vLLM's own layers.",
            "Drafters of every dialect are read by one reader; vLLM's reads one, and others wrongly in silence.",
            "tests/engines/test_vllm_loads.py",
            "vLLM reads every dialect rightly. The registry is public: nothing private is touched.",
        )
        for name in ("Eagle3LlamaForCausalLM", "Eagle3Qwen3ForCausalLM", "LlamaForCausalLMEagle3")
    ),
    Seam(
        "override of CPU_ATTN",
        "The attention backend attends over a tree's rows by their ancestors. On a GPU: FLASH_ATTN, FLASHINFER, TRITON_ATTN.",
        "vLLM's backends know causal masks alone. The override goes by vLLM's public `register_backend`.",
        "tests/engines/test_vllm_trees.py",
        "Tree attention returns to vLLM (removed by vllm#42121, asked for again in vllm#37396).",
    ),
    Seam(
        "collectors of metrics",
        "The plugin's counters join vLLM's `/metrics`.",
        "Tokens a pass, nodes verified and reasons of fallbacks are what tells whether it pays.",
        "tests/engines/test_vllm_trees_http.py",
        "A public hook for a plugin's metrics.",
    ),
    Seam(
        "environment EAGLE3_METRICS_DIR",
        "A folder that the server's processes share.",
        "Workers count, another process serves `/metrics`.",
        "tests/plugins/vllm/test_metrics.py",
        "A public hook for a plugin's metrics.",
    ),
    Seam(
        "vllm.config.vllm:VllmConfig.__post_init__",
        "Before the config is whole: trees or chains, how many draft tokens, which schedule by batch size.",
        "Caches, graphs and the scheduler are sized by these numbers, so that later is too late.",
        _FAULTS,
        "A public hook on a speculative config.",
    ),
    Seam(
        "vllm.sampling_params:SamplingParams._validate_spec_decode",
        "min-p and logit bias are let through on a server of trees.",
        "vLLM refuses them under speculation; acceptance by plain decoding's own draws serves them exactly.",
        "tests/engines/test_vllm_trees.py",
        "vLLM allows them under speculation, or asks the speculator.",
    ),
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler.__init__",
        "Where there are several trees, the scheduler's table of draft tokens by batch size is ours: the load chooses.",
        "vLLM's table is fixed at start; costs and gains are measured while serving.",
        "tests/engines/test_vllm_trees.py",
        "vLLM's dynamic speculation takes an object for its table.",
    ),
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler.make_spec_decoding_stats",
        "What was accepted is told to that choice too.",
        "The gain of a tree is what was accepted lately.",
        "tests/engines/test_vllm_trees.py",
        "As above.",
    ),
    Seam(
        "vllm.v1.sample.rejection_sampler:RejectionSampler.eagle3",
        "A mark that the plugin is registered.",
        "vLLM may load plugins more than once in a process.",
        _FAULTS,
        "With the seam below.",
    ),
    Seam(
        "vllm.v1.sample.rejection_sampler:RejectionSampler.forward",
        "On a CPU, runner V1: drafts of a chain are accepted by PyTorch operations.",
        "vLLM's Triton kernels do nothing there, and sampled answers follow another law (vllm#42638).",
        "tests/engines/test_vllm.py",
        "vllm#42638 is closed.",
    ),
    Seam(
        "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.propose",
        "Runner V1: a step that drafts nothing leaves the drafter out; its rows are taken in later, together.",
        "vLLM runs the drafter at each step, whether its draft is wanted or not (0.92x of plain at 16 in flight on two cores).",
        "tests/engines/test_vllm_idle.py",
        "vLLM leaves the drafter out itself where no draft is wanted.",
    ),
    Seam(
        f"{_RUNNER}:eagle3_trees",
        "Where this process keeps its trees, by server.",
        "The four seams below share them.",
        _FAULTS,
        "With those.",
    ),
    Seam(
        f"{_RUNNER}:init_speculator",
        "Model Runner V2: our speculator drafts trees.",
        "vLLM's draws chains.",
        "tests/engines/test_vllm_trees.py",
        "A registry of speculators.",
    ),
    Seam(
        f"{_RUNNER}:init_model_state",
        "Rows of a pass get a tree's positions and mask.",
        "vLLM's rows stand one after the other.",
        "tests/engines/test_vllm_trees.py",
        "vLLM's model states take positions from the speculator.",
    ),
    Seam(
        f"{_RUNNER}:DraftTokensHandler",
        "The scheduler is told as many draft tokens as the tree has nodes.",
        "vLLM's handler takes all columns of a chain.",
        "tests/engines/test_vllm_trees.py",
        "As for the speculator.",
    ),
    Seam(
        f"{_RUNNER}:ModelCudaGraphManager",
        "The target's full CUDA graphs are captured for passes of 1 + nodes rows a request.",
        "vLLM's manager captures chains. Not run on a GPU yet.",
        "tests/engines/test_vllm_launches.py",
        "As for the speculator.",
    ),
)
