"""The patch register of vLLM. It imports nothing of vLLM, for the documentation reads it too.

`SEAMS`: every place that a registration changes; a test holds them against what one leaves behind. `VALUES`: what is set on
vLLM's own objects later; a test holds them against the assignments in the code.
"""

from eagle3_serving.patches import Seam

_RUNNER = "vllm.v1.worker.gpu.model_runner"
_FAULTS = "tests/plugins/vllm/test_vllm_faults.py"

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
        "ModelRegistry Gemma3ForCausalLM",
        "A server with EAGLE-3 gets vLLM's Gemma 3 with its auxiliary hidden states; others get vLLM's own.",
        "vLLM refuses it as a target of EAGLE-3: its class lacks `SupportsEagle3`.",
        "tests/engines/test_gemma3.py",
        "vLLM's Gemma 3 has `SupportsEagle3`. The registry is public.",
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
        "Where there are several trees, the scheduler's table of draft tokens by batch size is ours: the load chooses. Each "
        "scheduler gets the gates that turn drafting off for a request.",
        "vLLM's table is fixed at start, and is one for all requests; costs and gains are measured while serving.",
        "tests/engines/test_vllm_trees.py",
        "vLLM's dynamic speculation takes an object for its table.",
    ),
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler.make_spec_decoding_stats",
        "What was accepted is counted for that choice, and for the request's gate.",
        "The gain of a tree, and of a request's drafts, is what was accepted lately.",
        "tests/engines/test_vllm_trees.py",
        "vLLM's dynamic speculation takes an object for its table, and tells it what was accepted.",
    ),
    *(
        Seam(
            f"vllm.v1.core.sched.scheduler:Scheduler.{name}",
            "Drafts of a request whose gate is closed are cut before they are verified.",
            "vLLM drafts the same number for every request of a batch; one that gains nothing should not pay for them.",
            "tests/engines/test_vllm_idle.py",
            "vLLM lets a request say how many tokens are drafted for it.",
        )
        for name in ("schedule", "update_draft_token_ids")
    ),
    Seam(
        "vllm.v1.sample.rejection_sampler:RejectionSampler.eagle3",
        "A mark that the plugin is registered.",
        "vLLM may load plugins more than once in a process.",
        _FAULTS,
        "The sampling of chains on a CPU, whose class carries the mark, is no longer changed.",
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
        "Speculator, model state, draft tokens and graphs of one server share them, and vLLM makes each by itself.",
        _FAULTS,
        "A registry of speculators, where one object can make all four.",
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
        "A registry of speculators that may bring their own.",
    ),
    Seam(
        f"{_RUNNER}:ModelCudaGraphManager",
        "The target's full CUDA graphs are captured for passes of 1 + nodes rows a request.",
        "vLLM's manager captures chains. Not run on a GPU yet.",
        "tests/engines/test_vllm_launches.py",
        "A registry of speculators that may bring their own.",
    ),
)

_CONFIG = "vllm.config:SpeculativeConfig"
VALUES = (
    Seam(
        "vllm.model_executor.models.gemma3:Gemma3Model",
        "While our class of Gemma 3 is made, the decoder that it makes is one that gives its features; then vLLM's own again.",
        "vLLM's class names its decoder, and takes none.",
        "tests/engines/test_gemma3.py",
        "vLLM's Gemma 3 has `SupportsEagle3`.",
    ),
    Seam(
        "VllmConfig.speculative_config",
        "None where nothing can be drafted (runner V1 with several pipeline stages; a causal head without trees), with a line.",
        "vLLM 0.32 makes a drafter on the last stage, asks every stage for one, and ends at start.",
        "tests/plugins/vllm/test_fallback.py",
        "vLLM's runner V1 drafts under pipeline parallelism.",
    ),
    Seam(
        "ObservabilityConfig.per_request_spec_decode_metrics",
        '"none" where nothing can be drafted.',
        "vLLM refuses to be asked for figures of drafts without speculation, and ends at start.",
        "tests/plugins/vllm/test_fallback.py",
        "A server without drafts answers without their figures.",
    ),
    Seam(
        f"{_CONFIG}.num_speculative_tokens",
        "Set to the largest tree of `EAGLE3_TREES`, to a profile's most, or to a short chain where a tree cannot be served.",
        "vLLM sizes rows, caches and graphs by it; more than 8 tokens mean a tree, which as a chain would only cost.",
        "tests/plugins/vllm/test_fallback.py",
        "The speculator says itself how many tokens it may draft.",
    ),
    Seam(
        f"{_CONFIG}.parallel_drafting",
        "True where the drafter has the masks of P-EAGLE and a chain is drafted; False where trees are, which need no telling.",
        "Without it vLLM skips the masks in silence, and drafts a token a pass with weights that were not trained for that.",
        "tests/plugins/vllm/test_fallback.py",
        "vLLM reads it from config.json, as it does of speculators' format.",
    ),
    Seam(
        f"{_CONFIG}.num_speculative_tokens_per_batch_size",
        "The profile's schedule, or a first one until a step's costs are known; one that the user gave stays.",
        "It is vLLM's own way to draft less, or nothing, at a high load.",
        "tests/plugins/vllm/test_schedule.py",
        "vLLM measures by itself which number of draft tokens pays.",
    ),
    Seam(
        f"{_CONFIG}.disable_eagle_block_drop",
        "True: a prefix found in the cache is taken whole.",
        "vLLM gives the last block of each back (vllm#53670); a drafter whose cached rows hang on themselves need not read it anew.",
        "tests/engines/test_vllm_prefix.py",
        "vLLM keeps the block by itself.",
    ),
    Seam(
        "hf_config.eagle_aux_hidden_state_layer_ids",
        "The layers whose hidden states the drafter reads, whichever dialect says it, where vLLM looks for them.",
        "vLLM looks in one place, and takes defaults in silence where another dialect says it elsewhere.",
        "tests/engines/test_vllm_loads.py",
        "vLLM asks the draft model.",
    ),
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler.dynamic_sd_lookup",
        "The scheduler's table of draft tokens by batch size becomes one that looks at costs and gains.",
        "A table fixed at start knows neither.",
        "tests/engines/test_vllm_trees.py",
        "vLLM's dynamic speculation takes an object for its table.",
    ),
    Seam(
        "Request.eagle3_gate",
        "Each request carries its gate: what it asked, and what was accepted of its drafts.",
        "The gate then goes when the request goes.",
        "tests/engines/test_vllm_idle.py",
        "vLLM lets a request say how many tokens are drafted for it.",
    ),
    Seam(
        "Request.spec_token_ids",
        "Cut to what the request's gate lets through.",
        "The scheduler verifies what stands there.",
        "tests/engines/test_vllm_idle.py",
        "The same field of a request's own.",
    ),
    Seam(
        "SchedulerOutput.num_spec_tokens_to_schedule",
        "Nothing, where the gates of all requests of a step are closed.",
        "The worker drafts as many tokens as it says.",
        "tests/engines/test_vllm_idle.py",
        "vLLM drafts nothing by itself where no request wants a draft.",
    ),
    *(
        Seam(
            f"vllm.v1.worker.gpu.sample.sampler:Sampler.{name}",
            "False on a server of trees whose drafts go by the sampler's noise.",
            "That sampler, for top-k and top-p where nobody asked for a seed, draws by a noise of its own, which no draft can know.",
            "tests/plugins/vllm/kernels/test_noise_kernel.py",
            "vLLM lets a speculator ask for noise by seed, position and token.",
        )
        for name in ("use_flashinfer", "use_xpu_sampler")
    ),
    *(
        Seam(
            f"attention metadata of a pass: {name}",
            "Tells our attention which rows of the pass are trees, and their pages.",
            "Metadata is all that an attention backend is given with a pass.",
            "tests/engines/test_vllm_trees.py",
            "Metadata that a model state may extend.",
        )
        for name in ("eagle3_rows", "eagle3_table")
    ),
    *(
        Seam(
            f"attention metadata of a pass: {name}",
            "FlashAttention's plan made on the host is dropped for a pass of the drafter inside our graph.",
            "The plan is of other rows than those that the graph is replayed with. Not run on a GPU yet.",
            "tests/plugins/vllm/test_graphs.py",
            "vLLM plans inside the graph, or a speculator may say that it does.",
        )
        for name in ("scheduler_metadata", "max_num_splits")
    ),
)
