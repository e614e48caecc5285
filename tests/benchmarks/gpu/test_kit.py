"""The whole kit at toy size on the CPU; its processes, limits and resumption; what it says on wrong usage."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import bring
from benchmarks.gpu import plan as plans
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.plan import STEPS, Step, parse_plan, run_plan
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.sink import Sink, read_lines
from eagle3_serving.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
# the real engines' steps have a rehearsal of their own, tests/engines/test_gpu_kit.py
OWN = [name for name in STEPS if name not in ("vllm", "sglang")]
TINY = ["--device", "cpu", "--tiny", "--batches", "2", "--tokens", "4", "--minutes", "1"]


def kit(*arguments: str, path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """`path` is put before all else on the steps' module path."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """On a bare machine: an import of blake3 or openai fails there."""
    folder = tmp_path_factory.mktemp("kit")
    bare = folder / "bare"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text("import sys\nsys.modules.update(blake3=None, openai=None)\n")
    return folder / "out", kit("--plan", ",".join(OWN), "--out", str(folder / "out"), *TINY, path=bare)


def test_every_step_runs_and_the_table_comes_last(whole: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    out, done = whole
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith((out / "summary.txt").read_text().rstrip())
    for name in OWN:
        lines = read_lines(out / f"{name}.jsonl")
        assert lines[0]["inputs"]["step"] == name
        assert lines[-1]["status"] == "done", (name, lines[-1])
        assert f"== {name}: " in done.stdout
    assert "toy sizes: no figure here means anything" in done.stdout
    assert "SIMULATED acceptance" in done.stdout
    assert "the paper, real acceptance: SGLang, H100, chain of 3" in done.stdout


def test_rows_hold_what_is_promised(whole: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    out, _ = whole
    rows = {name: {row["key"]: row for row in read_lines(out / f"{name}.jsonl") if "key" in row} for name in OWN}
    assert all(row["ok"] for row in rows["correctness"].values())
    assert rows["probe"]["copy"]["bytes_per_second"] > 1e8
    assert {"masked-1-8-16", "split-1-8-16", "best-1-8-16"} <= rows["attention"].keys()
    assert rows["attention"]["best-1-8-16"]["way"] in ("masked", "split", "split-triton", "split-kv")
    # the plugin's file was found, and its meaning is the reference's
    assert rows["attention"]["split-triton-1-8-16"]["ok"] and rows["attention"]["split-kv-1-8-16"]["ok"]
    for name in ("plain", "chain-3", "tree-16", "tree-60", "auto"):
        row = rows["curve"][f"{name}-2"]
        assert row["tokens_per_second"] > 0 and row["simulated"] == (name != "plain")
    assert rows["curve"]["tree-60-2"]["nodes"] == 60
    assert rows["draft"]["chain-3-2"]["draft_share"] > 0
    assert {"run-full", "run-half", "run-quarter", "run-eighth", "run-no-training-time-test"} <= rows["train"].keys()
    assert rows["train"]["run-full"]["tokens"] > rows["train"]["run-quarter"]["tokens"]


def test_what_is_brought_home_is_small_and_whole(
    whole: tuple[Path, "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    out, _ = whole
    to = tmp_path / "home"
    assert bring.main(["--out", str(out), "--to", str(to), "--size", "0.1"]) == 0
    sizes = {path.name: path.stat().st_size for path in to.iterdir()}
    assert len(sizes) <= 8 and max(sizes.values()) <= 0.1 * 2**20 and "weights.tar.02" in sizes
    done = subprocess.run(
        "sha256sum -c SHA256SUMS && tar xf results.tar.xz && cat weights.tar.* | tar x", shell=True, cwd=to, check=False
    )
    assert done.returncode == 0
    assert (to / "drafter" / "model.safetensors").read_bytes() == (
        out / "train" / "full" / "drafter" / "model.safetensors"
    ).read_bytes()
    assert read_lines(to / "curve.jsonl") == read_lines(out / "curve.jsonl")
    assert (to / "logs" / "train.log").stat().st_size > 0
    assert bring.main(["--out", str(out), "--to", str(tmp_path / "tight"), "--most", "2"]) == 2


def test_a_second_run_passes_over_what_is_done(whole: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    out, _ = whole
    before = (out / "probe.jsonl").read_bytes()
    done = kit("--plan", "probe,attention", "--out", str(out), *TINY)
    assert done.returncode == 0 and done.stdout.count("done before") >= 2
    assert (out / "probe.jsonl").read_bytes() == before


# ---- processes


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three steps beside the real ones: one that hangs, one that crashes, one that counts its rows."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import importlib.machinery, sys\n"
        "from pathlib import Path\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'benchmarks.gpu.child':\n"
        "            import benchmarks.gpu.plan as plan\n"
        "            for step in ('hang', 'crash', 'count'):\n"
        "                plan.STEPS[step] = plan.Step(step, 'probe', 1, (), 'a test')\n"
        "            plan.Step.load = lambda self: __import__('toy_' + self.name)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    (folder / "toy_hang.py").write_text(
        "import subprocess, sys, time\n"
        "def run(settings, sink, out):\n"
        "    sink.add('begun', value=1)\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    (out / 'grandchild').write_text(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    (folder / "toy_crash.py").write_text(
        "import os\ndef run(settings, sink, out):\n    print('last words', flush=True)\n    os.abort()\n"
    )
    (folder / "toy_count.py").write_text(
        "def run(settings, sink, out):\n"
        "    for n in range(3):\n"
        "        if not sink.has(str(n)):\n"
        "            if n == 2 and not (out / 'allowed').exists():\n"
        "                raise RuntimeError('stopped at two')\n"
        "            sink.add(str(n), value=n)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    monkeypatch.setattr(plans, "GRACE", 3.0)
    return tmp_path / "out"


def toy(name: str, minutes: float = 1.0) -> Step:
    return Step(name, "probe", minutes, (), "a test")


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


def test_a_step_that_hangs_or_crashes_leaves_the_others(steps: Path) -> None:
    ended = run_plan([toy("hang", 0.5), toy("crash"), toy("count")], Settings(device="cpu", tiny=True), steps)
    assert ended["hang"]["status"] == "out of time"
    assert [row["value"] for row in read_lines(steps / "hang.jsonl") if "key" in row] == [1]
    assert ended["crash"]["status"] == "failed" and "last words" in ended["crash"]["why"]
    assert ended["count"]["status"] == "failed" and "stopped at two" in ended["count"]["why"]
    grandchild = int((steps / "grandchild").read_text())
    for _ in range(50):
        if not alive(grandchild):
            break
        time.sleep(0.1)
    assert not alive(grandchild)


def test_a_step_goes_on_behind_its_last_row(steps: Path) -> None:
    settings = Settings(device="cpu", tiny=True)
    run_plan([toy("count")], settings, steps)
    with (steps / "count.jsonl").open("a") as file:
        file.write('{"key": "cut sho')  # as a kill leaves it
    (steps / "allowed").touch()
    assert run_plan([toy("count")], settings, steps)["count"]["status"] == "done"
    assert [row["value"] for row in read_lines(steps / "count.jsonl") if "key" in row] == [0, 1, 2]
    assert run_plan([toy("count")], settings, steps)["count"]["status"] == "skipped"


def test_other_inputs_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "step.jsonl"
    Sink(path, {"seed": 0}).add("a", value=1)
    assert Sink(path, {"seed": 0}).has("a")
    assert not Sink(path, {"seed": 1}).has("a")
    assert json.loads(path.with_name("step.jsonl.old").read_text().splitlines()[1])["value"] == 1


def test_more_that_is_asked_for_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    step, settings = STEPS["vllm"], Settings(device="cpu", tiny=True)
    path = tmp_path / "vllm.jsonl"
    sink = Sink(path, plans.inputs_of(step, settings))
    sink.add("a", value=1)
    assert not plans.is_done(path, step, settings)
    sink.end("done", asked=plans.asked_of(step, settings))
    assert plans.is_done(path, step, settings)
    more = replace(settings, contenders=("tree-8",))
    assert not plans.is_done(path, step, more)
    assert Sink(path, plans.inputs_of(step, more)).has("a")
    assert not Sink(path, plans.inputs_of(step, replace(settings, rate=0.7))).has("a")


def test_rows_are_forgotten_to_be_made_anew(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "step.jsonl", {})
    sink.add("a", ok=False)
    sink.add("b", ok=True)
    sink.forget(lambda row: row["ok"] is False)
    assert not sink.has("a") and [line.get("key") for line in read_lines(sink.path)] == [None, "b"]


# ---- usage


def test_a_plan_names_steps_and_limits() -> None:
    assert [(step.name, step.minutes) for step in parse_plan("probe, curve=2.5")] == [("probe", 1), ("curve", 2.5)]
    for text in ("probe,nothing", "curve=0", "curve=x", "curve=-1", ""):
        with pytest.raises(InputError):
            parse_plan(text)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--plan", "fly"], "step 'fly' is not known"),
        (["--plan", "probe", "--device", "abacus"], "--device abacus is not known"),
        (["--plan", "probe", "--device", "cpu", "--rate", "1.5"], "--rate must lie between 0 and 1"),
        (["--plan", "train", "--device", "cpu", "--target", "nowhere"], "holds no config.json"),
        (["--plan", "train", "--device", "cpu", "--prompts", "nowhere.jsonl"], "no file at nowhere.jsonl"),
        (["--steps", "vllm", "--device", "cpu", "--contenders", "plain,treee-8"], "'treee-8' is not known"),
        (["--steps", "vllm", "--device", "cpu", "--contenders", "tree-17"], "say its depth and top-k too"),
        (["--steps", "vllm", "--device", "cpu", "--pairs", "8b"], "--pairs 8b: shape, real, or both"),
        (["--steps", "vllm", "--device", "cpu", "--in-flight", "0"], "--in-flight and --rounds must be at least 1"),
        ([], "--plan is missing"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "examples:" in capsys.readouterr().out
