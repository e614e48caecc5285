"""Trees in a real vLLM beside plain decoding and vLLM's own chain, on Model Runner V2, in bf16 (on a CPU in fp32, through
Triton's interpreter, as a rehearsal).

Every engine captures CUDA graphs at exactly the sizes that are measured, cut at attention without torch.compile
(`VLLM_USE_BREAKABLE_CUDAGRAPH`): all start within a minute, and none has kernels that another has not. A row's `graphs`
says what vLLM resolved.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.live import report
from benchmarks.gpu.live.contenders import CHAIN, IN_FP8, USUAL, Contender, Pair, chosen, tree_named
from benchmarks.gpu.live.processes import ROOT
from benchmarks.gpu.live.step import Kind, kv_gib, run_race
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.simulate import AcceptanceLaw, expected_length
from benchmarks.gpu.sink import Sink
from eagle3_serving.engine.draft import TreeShape
from eagle3_serving.serve.gates import ACCEPTED_GATE

AUTO_NODES = 16
CONTEXT = 1024
RESERVE_GIB = 3.6  # of an engine beside the target's weights and cache: context, drafter, activations, graphs
MOST_ROWS = 1100  # of a batch that has a graph: beyond, a pass is compute and launches hide behind it
SHIM = ROOT / "tests" / "engines" / "mrv2_on_cpu"


def contenders(pair: Pair, settings: Settings) -> list[Contender]:
    return [_contender(name, pair, settings) for name in chosen("vllm", settings.contenders)]


def _contender(name: str, pair: Pair, settings: Settings) -> Contender:
    shape, modes = tree_named(name), {"vllm-chain-3": "vllm", "chain-3": "chain", "auto": "auto"}
    environment: dict[str, str] = {}
    if shape is not None:
        environment = {"EAGLE3_TREE_DEPTH": str(shape.depth), "EAGLE3_TREE_TOP_K": str(shape.top_k)}
        environment["EAGLE3_MODE"] = "tree"
        if name.endswith(IN_FP8):
            environment["EAGLE3_DRAFTER_WEIGHTS"] = "fp8"
    elif name == "load":
        environment = _by_load(pair, settings)
    elif name != "plain":
        environment["EAGLE3_MODE"] = modes[name]
        shape = None if name == "auto" else TreeShape.chain(CHAIN)
    nodes = 0 if name == "plain" else AUTO_NODES if name == "auto" else max(USUAL) if shape is None else shape.nodes
    cuda = settings.torch_device.type == "cuda"
    flight = max(settings.in_flight)
    positions = max(map(len, pair.prompts)) + settings.tokens + 2 * (nodes + 1)
    memory = kv_gib(pair.target, max(flight * positions, 2 * CONTEXT), settings.served_dtype.itemsize)
    arguments: dict[str, Any] = {
        "model": str(pair.target),
        "dtype": str(settings.served_dtype).removeprefix("torch."),
        "seed": settings.seed,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        "max_model_len": CONTEXT,
        "max_num_seqs": flight,
        "max_num_batched_tokens": 4096,
        "kv_cache_memory_bytes": int(max(memory, 0.1) * 2**30),
    }
    if pair.dummy:
        arguments["load_format"] = "dummy"
    if nodes:
        method = {"method": "eagle3", "model": str(pair.drafter), "num_speculative_tokens": nodes}
        arguments["speculative_config"] = method
    if settings.attention_backend:
        arguments["attention_backend"] = settings.attention_backend
    if cuda:
        arguments |= _on_cuda(name, nodes, settings)
    else:
        arguments["enforce_eager"] = True
    return Contender(name, pair, shape, pair.gib + memory + RESERVE_GIB, arguments, environment)


def _by_load(pair: Pair, settings: Settings) -> dict[str, str]:
    """All trees, a chain and nothing; where acceptance is simulated, what the law gives each is what the choice goes by."""
    shapes = [TreeShape.chain(CHAIN), *(TreeShape(nodes, *shape) for nodes, shape in USUAL.items())]
    trees = ";".join(f"{shape.depth},{shape.top_k},{shape.nodes + 1}" for shape in shapes)
    environment = {"EAGLE3_MODE": "tree", "EAGLE3_TREES": f"0;{trees}"}
    if pair.dummy:
        law = AcceptanceLaw(settings.rate, settings.siblings)
        gains = (f"{shape.nodes + 1}:{expected_length(law, shape) - 1:.3f}" for shape in shapes)
        environment["EAGLE3_ASSUMED_GAINS"] = ";".join(gains)
    return environment


def _on_cuda(name: str, nodes: int, settings: Settings) -> dict[str, Any]:
    sizes = {flight * rows for flight in settings.in_flight for rows in (1, 1 + nodes)}
    compilation: dict[str, Any] = {"cudagraph_capture_sizes": sorted(size for size in sizes if size <= MOST_ROWS)}
    if settings.graph_mode and tree_named(name) is not None:
        compilation["cudagraph_mode"] = settings.graph_mode
    # warm-ups of kernels that this model has not; the first rounds warm up the others
    kernels = {"enable_jit_warmup": False, "enable_cutedsl_warmup": False, "enable_flashinfer_autotune": False}
    # memory is told, not found out: engines start side by side
    return {"compilation_config": compilation, "kernel_config": kernels, "gpu_memory_utilization": 0.02}


def environment(contender: Contender, settings: Settings, cache: Path) -> Mapping[str, str]:
    made = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        # what vLLM finds out about a model class takes it seconds, and is the same for all
        "VLLM_CACHE_ROOT": os.environ.get("VLLM_CACHE_ROOT", str(cache)),
    }
    if contender.pair.dummy:
        made[ACCEPTED_GATE] = "0"  # nothing is accepted, and all is drafted the same
    if settings.torch_device.type == "cuda":
        return made | {"VLLM_USE_BREAKABLE_CUDAGRAPH": "1", "OMP_NUM_THREADS": "4"}
    return made | {"VLLM_CPU_KVCACHE_SPACE": "1"}


def path(settings: Settings) -> list[str]:
    """On a CPU Triton's interpreter stands in for a GPU."""
    return [str(SHIM)] if settings.torch_device.type == "cpu" else []


KIND = Kind("vllm", contenders, environment, path)


def run(settings: Settings, sink: Sink, out: Path) -> None:
    run_race(KIND, settings, sink, out)


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    return report.table(rows, "vllm")
