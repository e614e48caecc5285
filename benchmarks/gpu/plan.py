"""The steps, and the run of a plan: each step a child process with its own time limit, so that none takes another down."""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.sink import read_lines
from eagle3_serving.errors import InputError

GRACE = 20.0  # seconds between asking a step to end and ending it


@dataclass(frozen=True)
class Step:
    """`minutes` at full size; `reads` are the settings whose change makes the step's figures others, `asks` those whose
    change asks for more rows beside the ones that are there."""

    name: str
    module: str
    minutes: float
    reads: tuple[str, ...]
    question: str
    asks: tuple[str, ...] = ()

    def load(self) -> ModuleType:
        return importlib.import_module(f"benchmarks.gpu.{self.module}")


_SIMULATED = ("rate", "siblings", "context", "batches", "tokens", "graphs")
_LIVE_ASKS = ("in_flight", "pairs", "contenders", "rounds")
_LIVE = (
    "engine_python",
    "target",
    "drafter",
    "eval_prompts",
    "rate",
    "siblings",
    "tokens",
    "graph_mode",
    "attention_backend",
    "engine_dtype",
)
STEPS = {
    step.name: step
    for step in (
        Step("probe", "probe", 1, (), "what machine is this, and what are its floors?"),
        Step("correctness", "correctness", 4, ("target", "drafter", "prompts"), "is it right on this device?"),
        Step("attention", "tree_attention", 5, (), "which tree attention is nearest the bandwidth?"),
        Step("draft", "draft_step", 2, ("context", "batches", "graphs"), "what does drafting cost?"),
        Step("curve", "curve", 8, _SIMULATED, "what does speculation gain by batch size?"),
        Step(
            "train",
            "training",
            10,
            ("target", "prompts", "eval_prompts", "answers", "minutes", "draft_vocab", "ablations"),
            "what does more data give?",
        ),
        Step(
            "engines",
            "engines",
            10,
            ("engine_python", "target", "drafter", "eval_prompts"),
            "do the plugins hold on this device?",
        ),
        Step("vllm", "vllm_step", 10, _LIVE, "what do trees gain in a real vLLM?", _LIVE_ASKS),
        Step("sglang", "sglang_step", 3, _LIVE, "what do trees gain in a real SGLang?", _LIVE_ASKS),
    )
}


def parse_plan(text: str) -> list[Step]:
    """Names with commas, each with its own limit in minutes if wanted: probe,curve=6. Raises InputError."""
    steps = []
    for part in text.split(","):
        name, _, minutes = part.strip().partition("=")
        if name not in STEPS:
            raise InputError(f"--plan: step {name!r} is not known; known are {','.join(STEPS)}")
        step = STEPS[name]
        try:
            limit = float(minutes) if minutes else step.minutes
        except ValueError:
            limit = -1.0
        if not 0 < limit < 1e4:
            raise InputError(f"--plan: {part.strip()!r}: the limit is a number of minutes above 0")
        steps.append(replace(step, minutes=limit))
    return steps


def inputs_of(step: Step, settings: Settings) -> dict[str, Any]:
    """What a step's figures hang on: settings, device, torch, and the code of the step itself."""
    told = asdict(settings)
    name = torch.cuda.get_device_name(settings.torch_device) if settings.torch_device.type == "cuda" else "cpu"
    return {
        "step": step.name,
        "device": name,
        "torch": torch.__version__,
        "source": hashlib.sha256(source_of(step)).hexdigest()[:16],
        **{key: told[key] for key in ("tiny", "seed", *step.reads)},
    }


def source_of(step: Step) -> bytes:
    """The code that a step's figures hang on."""
    folder = Path(__file__).parent
    files = [folder / f"{step.module}.py", *(sorted(folder.glob("live/*.py")) if step.reads is _LIVE else [])]
    return b"".join(file.read_bytes() for file in files)


def asked_of(step: Step, settings: Settings) -> dict[str, Any]:
    told = asdict(settings)
    return {key: told[key] for key in step.asks}


def is_done(file: Path, step: Step, settings: Settings) -> bool:
    lines = read_lines(file)
    inputs, asked = json.loads(json.dumps([inputs_of(step, settings), asked_of(step, settings)]))
    if len(lines) < 2 or lines[0].get("inputs") != inputs:
        return False
    return lines[-1].get("status") == "done" and lines[-1].get("asked", {}) == asked


def run_plan(steps: Sequence[Step], settings: Settings, out: Path) -> dict[str, dict[str, Any]]:
    """Step name -> how it ended: {"status": done | skipped | wrong | unavailable | failed | out of time, "seconds", ...}."""
    (out / "logs").mkdir(parents=True, exist_ok=True)
    settings.save(out / "settings.json")
    ended: dict[str, dict[str, Any]] = {}
    for number, step in enumerate(steps, 1):
        file = out / f"{step.name}.jsonl"
        if is_done(file, step, settings):
            ended[step.name] = {**read_lines(file)[-1], "status": "skipped", "why": "done before with the same inputs"}
            print(f"[{number}/{len(steps)}] {step.name}: done before", flush=True)
            continue
        print(f"[{number}/{len(steps)}] {step.name}: {step.question} (at most {step.minutes:g} min)", flush=True)
        ended[step.name] = end = _child(step, out)
        print(f"      {end['status']} in {end['seconds']:.0f} s {end.get('why', '')}".rstrip(), flush=True)
    return ended


def _child(step: Step, out: Path) -> dict[str, Any]:
    log = out / "logs" / f"{step.name}.log"
    command = [sys.executable, "-m", "benchmarks.gpu.child", step.name, "--out", str(out)]
    begun = time.perf_counter()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "EAGLE3_STEP_MINUTES": str(step.minutes)}
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            code = _wait(child, step, out)
        finally:
            _end(child)
    seconds = time.perf_counter() - begun
    if code is None:
        return {
            "status": "out of time",
            "seconds": seconds,
            "why": f"cut at {step.minutes:g} min; the rows so far are kept",
        }
    lines = read_lines(out / f"{step.name}.jsonl")
    if code == 0 and lines and "status" in lines[-1]:
        return {**lines[-1], "seconds": seconds}
    words = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return {"status": "failed", "seconds": seconds, "why": f"exit {code}: {words[-1] if words else 'no output'}; {log}"}


def _wait(child: "subprocess.Popen[Any]", step: Step, out: Path) -> int | None:
    """The exit code, None at the limit. On a terminal a bar shows how much of the limit is used, and the rows so far."""
    limit, begun = step.minutes * 60, time.monotonic()
    with tqdm(total=round(limit), desc=step.name, unit="s", leave=False, disable=None) as bar:
        while (spent := time.monotonic() - begun) < limit:
            with suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=min(1.0, limit - spent))
            bar.update(round(spent) - bar.n)
            if not bar.disable:
                rows = [line["key"] for line in read_lines(out / f"{step.name}.jsonl") if "key" in line]
                bar.set_postfix_str(f"{len(rows)} rows, last {rows[-1] if rows else 'none'}")
    return None


def _end(child: "subprocess.Popen[Any]") -> None:
    """The child with all it started, first asked, then made to."""
    for how, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, how)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=patience)
            return


def finished(out: Path) -> Iterator[tuple[Step, list[dict[str, Any]]]]:
    """Every step that left rows in `out`."""
    for step in STEPS.values():
        rows = [line for line in read_lines(out / f"{step.name}.jsonl") if "key" in line]
        if rows:
            yield step, rows
