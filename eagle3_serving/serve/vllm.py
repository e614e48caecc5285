"""The command line and the environment of a vLLM server, plain or with an EAGLE-3 drafter."""

import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from eagle3_serving.dtypes import ENGINES
from eagle3_serving.errors import InputError
from eagle3_serving.serve.address import HOST
from eagle3_serving.serve.server import ServerCommand

SERVED_NAME = "target"
MODE = "EAGLE3_MODE"  # "vllm" leaves drafting to vLLM itself
PROFILE = "EAGLE3_PROFILE"  # a file of what was measured, by which the plugin decides
DEPTH, TOP_K = "EAGLE3_TREE_DEPTH", "EAGLE3_TREE_TOP_K"
_FEW_CPUS = 4


@dataclass(frozen=True)
class VllmOptions:
    """One server. `drafter` None is plain decoding; `k` is the number of draft tokens a step: a chain's, or the nodes of a
    tree of at most `depth` with `top_k` children a node (None: the plugin's own). `plugin` False leaves drafting to vLLM's
    own EAGLE-3, `only_chain` lets it draft no trees. `parallel`: the drafter drafts all tokens in one pass (P-EAGLE; with
    `plugin` False: vLLM's own code does that). `simulate`: vLLM's synthetic acceptance, this rate a depth. `told_by_step`:
    answers say what was accepted in each step."""

    target: Path
    drafter: Path | None = None
    k: int = 3
    dtype: str = "fp32"
    max_model_len: int = 2048
    max_num_seqs: int = 16
    compiled: bool = False
    kv_cache_gib: int = 1
    prefix_cache: bool = False  # a prefix kept from an earlier round would make the later rounds' prefill free
    plugin: bool = True
    only_chain: bool = False
    profile: Path | None = None
    parallel: bool = False
    simulate: float | None = None
    depth: int | None = None
    top_k: int | None = None
    host: str = HOST
    tensor_parallel: int = 1  # GPUs that share the target
    told_by_step: bool = False
    extra: tuple[str, ...] = ()


def vllm_command(options: VllmOptions) -> ServerCommand:
    """Raises InputError where vLLM is missing, a directory is, or an option is out of range."""
    require_vllm()
    _check(options)
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(options.target), "--served-model-name", SERVED_NAME]
    argv += ["--host", options.host, "--port", "{port}", "--dtype", ENGINES[options.dtype]]
    argv += ["--max-model-len", str(options.max_model_len), "--max-num-seqs", str(options.max_num_seqs)]
    if not options.prefix_cache:
        argv.append("--no-enable-prefix-caching")
    if not options.compiled:
        argv += ["--enforce-eager"]
    if options.tensor_parallel > 1:
        argv += ["--tensor-parallel-size", str(options.tensor_parallel)]
    name = "vLLM (plain)"
    if options.drafter is not None:
        speculative: dict[str, object] = {"method": "eagle3", "model": str(options.drafter)}
        speculative["num_speculative_tokens"] = options.k
        if options.parallel:
            speculative["parallel_drafting"] = True
        if options.simulate is not None:
            rates = [options.simulate ** (place + 1) for place in range(options.k)]
            speculative |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
        argv += ["--speculative-config", json.dumps(speculative)]
        if options.told_by_step:
            argv += ["--per-request-spec-decode-metrics", "detailed"]
        name = f"vLLM (EAGLE-3{'' if options.plugin else ' of its own'}, k={options.k})"
    return ServerCommand(name, [*argv, *options.extra], vllm_environment(options), options.host)


def vllm_environment(options: VllmOptions) -> dict[str, str]:
    """What the server's environment gets on top of ours; the CPU's own settings only where vLLM runs on the CPU."""
    environment = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if not options.plugin:
        environment[MODE] = "vllm"
    elif options.only_chain:
        environment[MODE] = "chain"
    if options.profile is not None:
        environment[PROFILE] = str(options.profile.resolve())
    environment |= {name: str(n) for name, n in ((DEPTH, options.depth), (TOP_K, options.top_k)) if n is not None}
    if on_cpu():
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(options.kv_cache_gib)
        # vLLM leaves one CPU of each core's pair idle; where there are few, both are worth having (measured: 1.27x)
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(cpus) <= _FEW_CPUS and cpus and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cpus))
    return environment


def on_cpu() -> bool:
    return not torch.cuda.is_available()


def require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise InputError("vLLM is not installed: pip install 'eagle3-serving[vllm]'")


def _check(options: VllmOptions) -> None:
    if options.dtype not in ENGINES:
        raise InputError(f"dtype {options.dtype!r} is unknown: one of {', '.join(ENGINES)}")
    if options.k < 1:
        raise InputError(f"k is {options.k}: at least one draft token a step is needed")
    for role, directory in (("target", options.target), ("drafter", options.drafter)):
        if directory is not None and not (directory / "config.json").is_file():
            raise InputError(f"no config.json in the {role} directory {directory}")
