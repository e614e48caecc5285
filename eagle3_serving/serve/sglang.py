"""The command line and the environment of an SGLang server: plain, with its own EAGLE-3, or with ours.

SGLang lives in an environment of its own (its pins and vLLM's exclude each other). Its interpreter is, in this order:
`$EAGLE3_SGLANG_PYTHON`; this one, where SGLang can be imported; `.venv-sglang` beside this environment, which
`scripts/setup_env.py` makes.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from eagle3_serving.dtypes import ENGINES
from eagle3_serving.errors import InputError
from eagle3_serving.serve.address import HOST
from eagle3_serving.serve.server import ServerCommand
from eagle3_serving.serve.shape import TREES, Shape

INTERPRETER = "EAGLE3_SGLANG_PYTHON"
SWITCH = "EAGLE3_SERVING"  # "off" gives SGLang's own EAGLE-3 back
CHECK = "EAGLE3_CHECK"  # "off" serves a drafter that the check at start refuses
CHOICE = "EAGLE3_CHOICE"  # trees in turn: "cycle", a step each, for tests; "survey", some steps each, for tuning
PROFILE = "EAGLE3_PROFILE"  # a file of measured costs for trees that follow the batch
GRAPH_GB = "EAGLE3_GRAPH_GB"  # most GPU memory for the graphs of all trees but the largest, GiB
GRAPH_SECONDS = "EAGLE3_GRAPH_SECONDS"  # most time that capturing them takes at start


@dataclass(frozen=True)
class SglangOptions:
    """One server. `drafter` None is plain decoding. `shape` None leaves the tree to the server: with `plugin` it
    follows the batch, else it is SGLang's default. `kv_tokens` positions of all requests together, None: what fits."""

    target: Path
    drafter: Path | None = None
    shape: Shape | None = None
    plugin: bool = True
    dtype: str = "fp32"
    max_requests: int = 16
    kv_tokens: int | None = 16384
    context: int = 2048
    radix_cache: bool = False  # a prefix kept from an earlier round would make the later rounds' prefill free
    profile: Path | None = None
    trees: str = ""
    choice: str = ""
    host: str = HOST
    tensor_parallel: int = 1  # GPUs that share the target
    extra: tuple[str, ...] = ()


def sglang_command(options: SglangOptions) -> ServerCommand:
    """Raises InputError where SGLang is missing, a directory is, or an option is out of range."""
    python = sglang_python()
    _check(options)
    argv = [str(python), "-m", "sglang.launch_server", "--model-path", str(options.target)]
    argv += ["--host", options.host, "--port", "{port}", "--dtype", ENGINES[options.dtype], "--enable-metrics"]
    argv += ["--max-running-requests", str(options.max_requests)]
    if options.kv_tokens is not None:
        argv += ["--max-total-tokens", str(options.kv_tokens)]
    argv += ["--context-length", str(options.context)]
    if not options.radix_cache:
        argv.append("--disable-radix-cache")
    if options.tensor_parallel > 1:
        argv += ["--tensor-parallel-size", str(options.tensor_parallel)]
    if on_cpu():
        # both by name: the plain choice asks for AMX, the split one does not
        argv += ["--device", "cpu", "--mem-fraction-static", "0.3"]
        argv.append("--sleep-on-idle")  # an idle server would keep a core busy, and the one it is compared with waiting
        argv += ["--prefill-attention-backend", "intel_amx", "--decode-attention-backend", "intel_amx"]
    name = "SGLang (plain)"
    if options.drafter is not None:
        argv += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(options.drafter)]
        if options.shape is not None:
            argv += ["--speculative-num-steps", str(options.shape.steps)]
            argv += ["--speculative-eagle-topk", str(options.shape.top_k)]
            argv += ["--speculative-num-draft-tokens", str(options.shape.tokens)]
        name = f"SGLang (EAGLE-3{'' if options.plugin else ' of its own'}, {options.shape or 'its choice of tree'})"
    return ServerCommand(name, [*argv, *options.extra], sglang_environment(options), options.host)


def sglang_environment(options: SglangOptions) -> dict[str, str]:
    """What the server's environment gets on top of ours; the CPU's own settings only where SGLang runs on the CPU."""
    environment = {"HF_HUB_OFFLINE": "1", SWITCH: "on" if options.plugin else "off"}
    if options.profile is not None:
        environment[PROFILE] = str(options.profile.resolve())
    if options.choice:
        environment[CHOICE] = options.choice
    if options.trees:
        environment[TREES] = options.trees
    if on_cpu():
        environment |= {"SGLANG_USE_CPU_ENGINE": "1", "TORCH_COMPILE_DISABLE": "1"}
        # one thread unless told: where cores are shared, more of them wait for each other
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    return environment


def sglang_python() -> Path:
    """The interpreter that SGLang is installed for. Raises InputError where there is none."""
    if named := os.environ.get(INTERPRETER):
        if not Path(named).is_file():
            raise InputError(f"{INTERPRETER} names {named}, which is not a file: name the Python that SGLang runs in")
        return Path(named)
    if importlib.util.find_spec("sglang") is not None:
        return Path(sys.executable)
    beside = Path(sys.prefix).parent / ".venv-sglang" / "bin" / "python"
    if beside.is_file():
        return beside
    raise InputError(
        f"SGLang is not installed: pip install 'eagle3-serving[sglang]', or let {INTERPRETER} name a Python that has it"
    )


def on_cpu() -> bool:
    return not torch.cuda.is_available()


def _check(options: SglangOptions) -> None:
    if options.dtype not in ENGINES:
        raise InputError(f"dtype {options.dtype!r} is unknown: one of {', '.join(ENGINES)}")
    for role, directory in (("target", options.target), ("drafter", options.drafter)):
        if directory is not None and not (directory / "config.json").is_file():
            raise InputError(f"no config.json in the {role} directory {directory}")
    if options.shape is not None and (wrong := options.shape.wrong()):
        raise InputError(wrong)
