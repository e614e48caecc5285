"""Tab completion in real shells."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eagle3_serving.cli import completion
from eagle3_serving.cli.main import main

BASH = """
source "$1"
shift
function_of=$(complete -p "$1" | sed -E 's/.*-F ([^ ]+) .*/\\1/')
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"$function_of"
printf '%s\\n' "${COMPREPLY[@]}"
"""
# a pseudo-terminal, whose line a widget writes out once Tab has done its work
ZSH = r"""
zmodload zsh/zpty
zpty inner zsh -f -i
zpty -w inner 'PS1=; autoload -U compinit; compinit -u -D; eval "$(<script)"; bindkey "^I" complete-word'
zpty -w inner 'show() { print -r -- "<$BUFFER>" >> found; zle kill-whole-line }; zle -N show; bindkey "^X" show; : > ready'
repeat 100 { [[ -e ready ]] && break; sleep 0.05 }
for line in "$@"; do
    zpty -n -w inner "$line"$'\t\C-x'
    let wanted++
    repeat 100 { [[ -e found && $(wc -l < found) -ge $wanted ]] && break; sleep 0.05 }
done
cat found
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `eagle3 completion` prints for each shell, and a folder's worth of files to complete."""
    made = tmp_path_factory.mktemp("completion")
    for shell in completion.SHELLS:
        command = [sys.executable, "-m", "eagle3_serving.cli.main", "completion", shell]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (made / f"{shell}.script").write_text(done.stdout)
    (made / "my prompts.jsonl").touch()
    (made / "models").mkdir()
    (made / "models" / "llama").mkdir()
    return made


def tab(folder: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    command = ["bash", "--norc", "-c", BASH, "bash", "bash.script", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_flags_choices_and_files(folder: Path) -> None:
    assert tab(folder, "eagle3", "ev") == ["eval"]
    assert {"serve", "check", "convert", "schema"} <= set(tab(folder, "eagle3", ""))
    assert tab(folder, "eagle3", "eval", "--eng") == ["--engine"]
    assert tab(folder, "eagle3", "eval", "--engine", "") == ["embedded", "vllm", "sglang"]
    assert "--max-model-len" in tab(folder, "eagle3", "serve", "--engine", "vllm", "--max")
    assert tab(folder, "eagle3", "eval", "--dtype", "b") == ["bf16", "bfloat16"]
    assert set(tab(folder, "eagle3", "eval", "--prompts", "m")) == {"my prompts.jsonl", "models"}
    assert tab(folder, "eagle3", "eval", "--model", "m") == ["models"], "a model is a folder"
    assert tab(folder, "eagle3", "check", "models/l") == ["models/llama"]
    assert tab(folder, "eagle3", "schema", "ev") == ["eval"]
    assert tab(folder, "eagle3-convert", "m") == ["models"]
    assert tab(folder, "eagle3-convert", "a", "b", "--to", "un") == ["universal"]
    assert tab(folder, "eagle3", "convert", "a", "b", "--to", "un") == ["universal"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_them_too(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "zsh.script").rename(tmp_path / "script")
    lines = {
        "eagle3 ev": "eagle3 eval ",
        "eagle3 eval --engine e": "eagle3 eval --engine embedded ",
        "eagle3 eval --target mo": "eagle3 eval --target models/",
        "eagle3 eval --prompts my": "eagle3 eval --prompts my\\ prompts.jsonl ",
        "eagle3-convert a b --to un": "eagle3-convert a b --to universal ",
    }
    command = ["zsh", "-f", "-c", ZSH, "zsh", *lines]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.splitlines() == [f"<{line}>" for line in lines.values()], done.stderr


@pytest.mark.skipif(shutil.which("tcsh") is None, reason="tcsh is not installed")
def test_tcsh_takes_the_script(folder: Path) -> None:
    command = ["tcsh", "-f", "-c", "source tcsh.script; complete"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == "" and {line.split()[0] for line in done.stdout.splitlines()} == set(completion.PROGRAMS)


def test_one_program_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash", "--program", "eagle3-convert"]) == 0
    out = capsys.readouterr().out
    assert "complete -o bashdefault -F _shtab_eagle3_script_convert eagle3-convert" in out
    assert "-F _shtab_eagle3 " not in out


def test_without_shtab_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == "eagle3 completion: the package shtab is not installed: pip install shtab\n"
