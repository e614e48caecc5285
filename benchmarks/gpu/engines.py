"""Step 7: the plugins on real engines, where those are installed: their acceptance tests on this device, then the sweep.

An engine usually has an interpreter of its own (`--engine-python`). Nothing here knows an engine: the tests are those of
`tests/engines` that are marked gpu and named for it, the sweep is `eagle3 bench`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.sink import Sink, Unavailable

ROOT = Path(__file__).resolve().parent.parent.parent
ENGINES = ("vllm", "sglang")
CONCURRENCY = "1,2,4,8,16,24,32,48,56,64"


def run(settings: Settings, sink: Sink, out: Path) -> None:
    python = settings.engine_python or sys.executable
    found = [engine for engine in ENGINES if _installed(python, engine)]
    if not found:
        raise Unavailable(
            f"neither vLLM nor SGLang in {python}: carry their wheels with offline_install, or --engine-python"
        )
    for engine in found:
        if not sink.has(f"tests-{engine}"):
            sink.add(f"tests-{engine}", **_tests(settings, python, engine, out))
        if not sink.has(f"sweep-{engine}"):
            sink.add(f"sweep-{engine}", **_sweep(settings, python, engine, out))


def _installed(python: str, engine: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{engine}') is None)"
    return subprocess.run([python, "-c", code], check=False, capture_output=True).returncode == 0


def _tests(settings: Settings, python: str, engine: str, out: Path) -> dict[str, Any]:
    mark = re.compile(r"mark\.gpu\b")
    files = [p for p in sorted((ROOT / "tests" / "engines").rglob("test_*.py")) if engine in str(p.relative_to(ROOT))]
    marked = [str(path) for path in files if mark.search(path.read_text(encoding="utf-8"))]
    if not marked:
        return {"ok": None, "said": f"none of {len(files)} files in tests/engines holds a test marked gpu for {engine}"}
    report = out / "logs" / f"tests-{engine}.txt"
    command = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *marked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    report.write_text(done.stdout + done.stderr, encoding="utf-8")
    said = (done.stdout.strip().splitlines() or ["no word"])[-1]
    ran = settings.torch_device.type == "cpu" or "passed" in said
    return {"ok": done.returncode == 0 and ran, "said": said, "files": len(marked)}


def _sweep(settings: Settings, python: str, engine: str, out: Path) -> dict[str, Any]:
    if settings.torch_device.type == "cpu" or not (settings.target and settings.drafter and settings.eval_prompts):
        return {"ok": None, "said": "the sweep wants a GPU, --target, --drafter and --eval-prompts"}
    told = ["--engine", engine, "--target", settings.target, "--drafter", settings.drafter, "--dtype", "bf16"]
    told += ["--prompts", *settings.eval_prompts, "--concurrency", CONCURRENCY, "--repeats", "2", "--json"]
    told += ["--out", str(out / f"sweep-{engine}.jsonl")]
    command = [python, "-m", "eagle3_serving.cli.main", "bench", *told]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    try:
        rows = json.loads(done.stdout.strip().splitlines()[-1])["rows"]
    except (ValueError, KeyError, IndexError):
        return {"ok": False, "said": (done.stderr.strip().splitlines() or ["no word"])[-1]}
    return {"ok": done.returncode == 0, "said": f"{len(rows)} rows", "rows": rows}


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    right = {True: "yes", False: "NO", None: "-"}
    table = [["what", "right", "said"]]
    for row in rows:
        table.append([row["key"], right[row["ok"]], row["said"]])
        for figures in row.get("rows", []):
            told = [
                f"{name} {figures[name]}"
                for name in ("mode", "concurrency", "ratio", "accepted_length")
                if name in figures
            ]
            table.append(["", "", ", ".join(told)])
    return table
