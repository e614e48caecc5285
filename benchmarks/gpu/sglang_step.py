"""Trees in a real SGLang beside plain decoding, SGLang's own tree and its own adaptive chain; bf16 on a GPU, fp32 on a CPU."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.live import report
from benchmarks.gpu.live.contenders import Contender, Pair, chosen
from benchmarks.gpu.live.step import Kind, kv_gib, run_race
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.sink import Sink
from eagle3_serving.engine.draft import TreeShape
from eagle3_serving.serve.gates import ACCEPTED_GATE
from eagle3_serving.serve.sglang import CHECK, PROFILE, SWITCH
from eagle3_serving.serve.shape import TREES

RESERVE_GIB = 3.5  # of an engine beside weights and cache: context, activations, graphs of all trees
WIDEST = 12  # tokens of the largest tree that may be chosen
GRAPH_MEMORY = re.compile(r"Capture [^\n]*?graph end\.[^\n]*?mem usage=([\d.]+) GB", re.IGNORECASE)


def contenders(pair: Pair, settings: Settings) -> list[Contender]:
    return [_contender(name, pair, settings) for name in chosen("sglang", settings.contenders)]


def _contender(name: str, pair: Pair, settings: Settings) -> Contender:
    cuda = settings.torch_device.type == "cuda"
    flight = max(settings.in_flight)
    positions = flight * (max(map(len, pair.prompts)) + settings.tokens + 4 * WIDEST)
    arguments: dict[str, Any] = {
        "model_path": str(pair.target),
        "dtype": str(settings.served_dtype).removeprefix("torch."),
        "random_seed": settings.seed,
        "skip_tokenizer_init": True,
        "grammar_backend": "none",
        "disable_radix_cache": True,
        "max_running_requests": flight,
        "context_length": 1024,
        "max_total_tokens": positions,
        "page_size": 1,
        "log_level": "info",
    }
    if cuda:
        arguments |= {
            "attention_backend": settings.attention_backend or "triton",
            "sampling_backend": "pytorch",
            "mem_fraction_static": 0.95,
            "cuda_graph_bs_decode": sorted(settings.in_flight),
            "disable_prefill_cuda_graph": True,
            "disable_flashinfer_autotune": True,
        }
    else:
        # both by name: the plain choice asks for AMX, the split one does not
        amx = {"prefill_attention_backend": "intel_amx", "decode_attention_backend": "intel_amx"}
        arguments |= {"device": "cpu", "mem_fraction_static": 0.3, "sleep_on_idle": True, **amx}
    if pair.dummy:
        arguments["load_format"] = "dummy"
    shape = None
    environment = {SWITCH: "off"}
    if name != "plain":
        arguments |= {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": str(pair.drafter)}
        if pair.dummy:
            arguments["speculative_draft_load_format"] = "dummy"
    if name == "own-adaptive":
        arguments["speculative_adaptive"] = True
        if not cuda:
            arguments["disable_cuda_graph"] = True
    elif name == "auto":
        environment = {SWITCH: "on", TREES: "default"}
    elif name != "plain":
        steps, top_k, tokens = map(int, name.removeprefix("own:").split(":"))
        arguments |= {
            "speculative_num_steps": steps,
            "speculative_eagle_topk": top_k,
            "speculative_num_draft_tokens": tokens,
        }
        shape = TreeShape(tokens - 1, steps, top_k)
        environment = {SWITCH: "off" if name.startswith("own") else "on"}
    gib = pair.gib + kv_gib(pair.target, positions, settings.served_dtype.itemsize) + RESERVE_GIB
    return Contender(name, pair, shape, gib, arguments, environment)


def environment(contender: Contender, settings: Settings, cache: Path) -> Mapping[str, str]:
    cache.mkdir(parents=True, exist_ok=True)
    made = {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "SGLANG_CACHE_DIR": str(cache),
        PROFILE: str(cache / f"costs-{contender.key}.json".replace("/", "-").replace(" ", "-")),
    }
    if contender.pair.dummy:
        # a drafter of random weights agrees with nothing, and drafts all the same
        made |= {CHECK: "off", ACCEPTED_GATE: "0"}
    if settings.torch_device.type == "cpu":
        made |= {"SGLANG_USE_CPU_ENGINE": "1", "TORCH_COMPILE_DISABLE": "1"}
    return made


KIND = Kind("sglang", contenders, environment, graph_memory=GRAPH_MEMORY, details=False)


def run(settings: Settings, sink: Sink, out: Path) -> None:
    run_race(KIND, settings, sink, out)


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    return report.table(rows, "sglang")
