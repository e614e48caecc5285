"""Every command: help and errors of usage at once and without torch, one line for whatever goes wrong, Ctrl-C at any time."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eagle3_serving.cli import exit_codes
from eagle3_serving.cli import main as command
from eagle3_serving.cli.main import COMMANDS, main

NAMES = [name.replace("_", "-") for name in COMMANDS]
PAIR = ["--target", "{folder}/no-target", "--drafter", "{folder}/no-drafter"]
WRONG = {  # besides an option that there is not: what its own checks find
    "demo": ["--target", "{folder}/nowhere"],
    "fetch-target": ["--dir"],
    "serve": ["--engine", "vllm", *PAIR],
    "check": ["{folder}/nowhere"],
    "convert": ["{folder}", "{folder}", "--to", "vllm"],
    "eval": ["--engine", "embedded", *PAIR, "--prompts", "x.jsonl"],
    "show": [*PAIR, "--prompt", "x"],
    "bench": ["--engine", "vllm", *PAIR, "--prompts", "x.jsonl", "--out", "{folder}/o.jsonl"],
    "tune": ["--engine", "vllm", *PAIR, "--out", "{folder}/p.json"],
    "train": ["--target", "owner/name", "--answers", "x.jsonl", "--out", "{folder}/run"],
    "features": ["--target", "{folder}/nowhere", "--store", "{folder}/store"],
    "calibrate": [*PAIR, "--prompts", "x.jsonl"],
    "completion": ["fish"],
    "schema": ["nothing"],
}
# one process for all: it tells what each of them imported
SCRIPT = """
import contextlib, io, json, sys
before = set(sys.modules)
from eagle3_serving.cli.main import main
said = []
for argv in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as left:
            code = left.code
    heavy = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
    said.append([argv, code, out.getvalue(), err.getvalue(), sorted(heavy)])
print(json.dumps(said))
"""


def test_neither_help_nor_an_error_of_usage_imports_what_takes_long(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("")
    wrong = [[name, *(part.format(folder=tmp_path) for part in WRONG[name])] for name in NAMES]
    asked = [
        ["--help"],
        [],
        ["nothing"],
        *([name, "--help"] for name in NAMES),
        *([name, "--x"] for name in NAMES),
        *wrong,
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked)], capture_output=True, text=True, check=True, timeout=60
    )
    for argv, code, out, err, heavy in json.loads(done.stdout):
        assert heavy == ["eagle3_serving"], argv  # no torch, numpy or transformers: nothing but Python's own library
        if argv[-1:] == ["--help"]:
            assert code == 0 and ("examples:" in out or len(argv) == 1) and out.endswith(exit_codes.table()), argv
        else:
            assert code == 2 and out == "" and err.startswith("eagle3") and err.count("\n") == 1, argv
    lines = {argv[0]: err for argv, _, _, err, _ in json.loads(done.stdout) if argv in wrong}
    for name in NAMES:
        assert lines[name].startswith(f"eagle3 {name}: "), lines[name]
    assert "--target: there is no folder owner/name; if it is a hub name" in lines["train"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="when torch is imported is seen in /proc")
def test_an_interrupt_while_torch_is_imported_is_one_line(tmp_path: Path, drafter_dir: Path) -> None:
    argv = ["convert", str(drafter_dir), str(tmp_path / "out"), "--to", "vllm"]
    process = subprocess.Popen(
        [sys.executable, "-m", "eagle3_serving.cli.main", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a runner in the background of a shell has it ignored, and hands that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "eagle3 convert: interrupted\n", err
    assert not list(tmp_path.iterdir())


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """`eagle3 fetch-target` where this happens."""
    from eagle3_serving.cli import fetch_target

    def run(args: Any) -> int:
        raise error

    monkeypatch.setattr(fetch_target, "run", run)
    return main(["fetch-target"])


def wrapped() -> ImportError:
    error = ImportError("failed to import")
    error.__cause__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "a/b: Permission denied"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            1,
            "a/b cannot be written: No space left on device; free some",
        ),
        (
            ModuleNotFoundError("No module named 'transformers'", name="transformers.models"),
            2,
            "'eagle3-serving[embedded]'",
        ),
        (ModuleNotFoundError("No module named 'other'", name="other"), 2, "pip install other"),
        (MemoryError(), 2, "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 768 bytes"),
            2,
            "not enough memory",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (wrapped(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_is_one_line(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert failing(error, monkeypatch) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("eagle3 fetch-target: ") and said in err
    assert signal.getsignal(signal.SIGINT) == before


MODEL = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "num_hidden_layers": 8}
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["eval", "--engine", "embedded", "--k", "9" * 23], "--k is 9{23}: it must be at most 2147483647"),
        (
            ["bench", "--engine", "vllm", "--out", "{t}/o", "--concurrency", "1,1000000000000"],
            "--concurrency is 1000000000000: ",
        ),
        (
            ["train", "--out", "{t}/run", "--answers", "{t}/p.jsonl", "--seed", "9" * 23],
            "--seed is 9{23}: it must be at most 63 bits",
        ),
        (["eval", "--engine", "embedded", "--top-p", "7"], "--top-p is 7.0: it must be above 0 and at most 1"),
        (["eval", "--engine", "embedded", "--min-p", "-1"], "--min-p is -1.0: it must be between 0 and 1"),
        (["eval", "--engine", "embedded", "--temperature", "1e300"], "--temperature is 1e.300: it must be finite"),
        (
            ["bench", "--engine", "vllm", "--out", "{t}/o", "--temperature", "1e300"],
            "--temperature: numbers of at least 0",
        ),
        (["bench", "--engine", "vllm", "--out", "{t}/o", "--timeout", "nan"], "--timeout is nan: seconds, above 0"),
        (["eval", "--engine", "vllm", "--profile", "{t}/deep.json"], "deep.json: not JSON that can be read"),
        (
            ["serve", "--engine", "vllm", "--profile", "{t}/list.json"],
            "list.json is no profile; eagle3 tune writes one",
        ),
        (["serve", "--engine", "vllm", "--log", "{t}"], "--log: .* is a directory; name a file"),
        (["serve", "--engine", "vllm", "--port", "99999"], "--port is 99999: it must be at most 65535"),
        (["serve", "--engine", "sglang", "--max-requests", "0"], "--max-requests is 0: it must be at least 1"),
        (["serve", "--engine", "vllm", "--ready-timeout", "nan"], "--ready-timeout is nan: seconds, above 0"),
        (["tune", "--engine", "embedded", "--out", "{t}"], "--out: .* is a directory; name a file"),
        (
            ["tune", "--engine", "embedded", "--out", "{t}/list.json/p.json"],
            "--out: .*list.json is a file, not a directory",
        ),
        (
            ["train", "--out", "{t}/run", "--answers", "{t}/p.jsonl", "--features", "{t}/list.json"],
            "--features: .*is a file",
        ),
        (
            ["eval", "--engine", "embedded", "--target", "{t}/drafter"],
            r"--target: .*drafter is a drafter \(LlamaForCausalLMEagle3\)",
        ),
    ],
)
def test_bad_values_are_one_line_before_anything_loads(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, label in (("model", "LlamaForCausalLM"), ("drafter", "LlamaForCausalLMEagle3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**MODEL, "architectures": [label]}))
    for name, text in (("p.jsonl", ""), ("deep.json", DEEP), ("list.json", "[]")):
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.iterdir())
    argv = [part.format(t=tmp_path) for part in argv]
    if "--target" not in argv:
        argv += ["--target", str(tmp_path / "model")]
    if argv[0] != "train":
        argv += ["--drafter", str(tmp_path / "drafter")]
    if argv[0] in ("eval", "bench"):
        argv += ["--prompts", str(tmp_path / "p.jsonl")]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.match(rf"eagle3 {argv[0]}: .*{said}", err), err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which root too can write nothing")
def test_a_place_that_takes_no_file_is_told_whoever_asks() -> None:
    from eagle3_serving.errors import InputError
    from eagle3_serving.files import require_writable

    with pytest.raises(InputError, match="--out: nothing can be written into /proc: "):
        require_writable(Path("/proc/nothing/here"), "--out")


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        failing(RuntimeError("a bug"), monkeypatch)
    with pytest.raises(ModuleNotFoundError):
        failing(ModuleNotFoundError("x", name="eagle3_serving.nothing"), monkeypatch)


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    script = (
        "import sys, time; from eagle3_serving.cli import fetch_target; from eagle3_serving.cli.main import main;"
        "fetch_target.run = lambda args: [print('x' * 1000, flush=True) or time.sleep(0.01) for _ in range(200)];"
        "sys.exit(main(['fetch-target']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None and process.stderr.read() == ""
    assert process.wait(timeout=30) == 141


def snapshot(cache: Path, name: str, files: list[str]) -> Path:
    """A model in a hub cache of the hub's own layout."""
    kept = cache / f"models--{name.replace('/', '--')}"
    folder = kept / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123abc")
    for file in files:
        (folder / file).write_text("{}")
    return folder


def test_a_hub_name_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eagle3_serving.errors import InputError
    from eagle3_serving.hub import local_model, model_name

    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    whole = snapshot(tmp_path / "xdg" / "huggingface" / "hub", "owner/model-7b", ["config.json", "model.safetensors"])
    assert local_model(Path("owner/model-7b"), "--target") == whole and model_name(whole) == "owner/model-7b"
    assert model_name(tmp_path / "mine") == "mine"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with pytest.raises(
        InputError, match=r"--drafter: there is no folder owner/model-7b; .*`hf download owner/model-7b`"
    ):
        local_model(Path("owner/model-7b"), "--drafter")
    snapshot(tmp_path / "home" / "hub", "owner/model-7b", ["config.json"])  # a tokenizer's user fetched no weights
    with pytest.raises(InputError, match="hf download"):
        local_model(Path("owner/model-7b"), "--drafter")
    folder = tmp_path / "owner" / "model-7b"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert local_model(Path("owner/model-7b"), "--target") == Path("owner/model-7b"), "a folder comes first"
    with pytest.raises(InputError, match=r"config.json is a file; give the folder"):
        local_model(folder / "config.json", "--target")
    with pytest.raises(InputError, match=r"owner/config.json is missing; .* there is one in .*owner/model-7b"):
        local_model(tmp_path / "owner", "--target")


@pytest.mark.parametrize(
    ("words", "short"),
    [
        (("fp32", "float32", "float", "torch.float32"), "fp32"),
        (("bf16", "bfloat16"), "bf16"),
        (("fp16", "float16", "half", "HALF"), "fp16"),
        (("auto",), "auto"),
    ],
)
def test_a_dtype_has_the_engines_words_in_every_command(words: tuple[str, ...], short: str) -> None:
    parser = command.build_parser()
    pair = ["--target", "t", "--drafter", "d"]
    for word in words:
        for argv in (
            ["eval", "--engine", "vllm", *pair, "--prompts", "p"],
            ["bench", "--engine", "vllm", *pair, "--prompts", "p", "--out", "o"],
            ["tune", "--engine", "vllm", *pair, "--out", "o"],
            ["serve", "--engine", "vllm", *pair],
            ["convert", "s", "d", "--to", "vllm"],
            ["demo"],
        ):
            assert parser.parse_args([*argv, "--dtype", word]).dtype == short


def test_auto_is_the_targets_own_dtype(tmp_path: Path) -> None:
    from eagle3_serving.cli.arguments import resolve_dtype
    from eagle3_serving.errors import InputError

    config = tmp_path / "config.json"
    for said, short in (
        ({"torch_dtype": "bfloat16"}, "bf16"),
        ({"dtype": "float16", "torch_dtype": "float16"}, "fp16"),
        ({"text_config": {"dtype": "bfloat16"}, "dtype": "float32"}, "bf16"),
        ({}, "fp32"),
    ):
        config.write_text(json.dumps(said))
        assert resolve_dtype("auto", tmp_path) == short and resolve_dtype("fp16", tmp_path) == "fp16"
    config.write_text('{"dtype": "float8_e4m3fn"}')
    with pytest.raises(InputError, match=r"float8_e4m3fn.*give --dtype"):
        resolve_dtype("auto", tmp_path)


def test_text_is_read_as_people_save_it(tmp_path: Path) -> None:
    from eagle3_serving.errors import InputError
    from eagle3_serving.files import read_text, require_writable

    file = tmp_path / "x"
    file.write_bytes(b"\xef\xbb\xbf{}")
    assert read_text(file) == "{}"
    file.write_bytes("{}".encode("utf-16"))
    with pytest.raises(InputError, match="x is not UTF-8 text"):
        read_text(file)
    with pytest.raises(InputError, match="is a directory"):
        read_text(tmp_path)
    with pytest.raises(InputError, match="there is no file"):
        read_text(tmp_path / "y")
    require_writable(tmp_path / "a" / "b", "--out")
    with pytest.raises(InputError, match="--out: .*x is a file"):
        require_writable(file / "run", "--out")
    assert not (tmp_path / "a").exists() and os.access(tmp_path, os.W_OK)
