"""What is broken is counted and named, or one clear line; what was written before stays whole."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3_serving.cli.main import main
from eagle3_serving.engine import Generation
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.train.data import DataReport, read_answers
from eagle3_serving.train.finish import by_context
from eagle3_serving.train.job import fit, train
from eagle3_serving.train.options import TrainJob, TrainOptions
from tests.json_contract import contract

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import VOCAB, tiny_target


def line(id_: str, prompt: list[int], response: list[int]) -> str:
    return json.dumps({"id": id_, "prompt_ids": prompt, "response_ids": response}) + "\n"


GOOD = [line(f"good-{n}", [n % VOCAB, 1, 2], [(n * k) % VOCAB for k in range(3, 15)]) for n in range(24)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    tiny_target(1, layers=8).model.save_pretrained(folder)
    return folder


def job(directory: Path, tmp_path: Path, lines: list[str], **changed: Any) -> TrainJob:
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(lines))
    options: dict[str, Any] = {"tokens": 300, "tokens_per_batch": 60, "save_every": 4, "log_every": 1, "warmup": 2}
    options |= changed.pop("options", {})
    settings: dict[str, Any] = {"draft_vocab_size": VOCAB, "held_out": 4, "eval_tokens": 8, "eval_limit": 2, **changed}
    return TrainJob(directory, tmp_path / "run", answers=(file,), options=TrainOptions(**options), **settings)


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    lines = [
        line("good", [1, 2], [3, 4, 5]),
        line("empty", [1, 2], []),
        line("no prompt", [], [3, 4, 5]),
        line("short", [1], [2, 3]),
        line("long", [1] * 9, [3, 4, 5]),
        line("fills", [1] * 7, [3, 4, 5]),
        line("cut", [1, 2], [3] * 20),
    ]
    file.write_text("".join(lines))
    report = DataReport()
    answers = read_answers([file], 8, 7, VOCAB, report)
    assert [(answer.id, len(answer.response_ids)) for answer in answers] == [("good", 3), ("cut", 6)]
    assert (report.lines, report.used, report.tokens) == (7, 2, 9)
    assert (report.empty, report.short, report.long_prompts, report.cut) == (2, 1, 2, 1)
    assert f"2 left out, empty (first: {file.name}:2)" in str(
        report
    ) and f"1 cut to the length (first: {file.name}:7)" in str(report)


def test_answers_of_another_tokenizer_are_refused(directory: Path, tmp_path: Path) -> None:
    for wrong in (VOCAB, -1):
        with pytest.raises(InputError, match=rf"answers.jsonl:25: token {wrong} is outside .* another tokenizer"):
            fit(job(directory, tmp_path, [*GOOD, line("bad", [1], [2, wrong, 3])]))


def test_nothing_usable_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(line("a", [1], []) + line("b", [1], [2]))
    with pytest.raises(InputError, match=r"no usable answers: 0 of 2 .* 1 left out, empty .*; 1 left out, shorter"):
        read_answers([file], 100)


def test_prompts_to_measure_on_are_read_before_anything_is_trained(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    asked = job(directory, tmp_path, GOOD, eval_prompts=(tmp_path / "empty.jsonl",), eval_limit=2)
    with pytest.raises(InputError, match=r"no prompt in .*empty.jsonl"):
        fit(asked)
    assert not asked.out.exists()


def test_answers_of_another_tokenizer_leave_no_folder(directory: Path, tmp_path: Path) -> None:
    asked = job(directory, tmp_path, [*GOOD, line("far", [1, 9999], [1, 2, 3])], eval_limit=0)
    with pytest.raises(InputError, match="token 9999 is outside the target's vocabulary"):
        fit(asked)
    assert not asked.out.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": 1, "prompt_ids": [1], "response_ids": "123"}', "response_ids is not a list of token ids"),
        ('{"id": 1, "prompt_ids": [1, 2.5], "response_ids": [1]}', "prompt_ids is not a list of token ids"),
        ('{"id": 1, "prompt_ids": [true], "response_ids": [1]}', "prompt_ids is not a list of token ids"),
        ('{"id": 1, "conversations": [{"from": "human"}]}', "lacks prompt_ids; 'conversations' is text: .*--prompts"),
        ('{"prompt_ids": [1], "response_ids": [1]}', "not an answer: a JSON object with id"),
        ("[1]", "not an answer"),
        ('{"id": ', "not JSON"),
    ],
)
def test_a_line_that_is_no_answer_says_why(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(line("a", [1], [1, 2, 3]) + text + "\n")
    with pytest.raises(InputError, match=rf"answers.jsonl:2: .*{said}") as error:
        read_answers([file], 100)
    assert "\n" not in str(error.value)


def test_a_file_with_a_mark_and_windows_ends_is_read(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + (line("a", [1], [1, 2, 3]) * 2).replace("\n", "\r\n").encode() + b"\r\n \r\n")
    report = DataReport()
    assert len(read_answers([file], 100, report=report)) == 2 and report.lines == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"draft_vocab_size": 0}, r"--draft-vocab-size is 0: it must be at least 1"),
        ({"draft_vocab_size": -1}, r"--draft-vocab-size is -1: it must be at least 1"),
        (
            {"draft_vocab_size": VOCAB + 1},
            rf"--draft-vocab-size is {VOCAB + 1}: the target has {VOCAB} tokens; give 1 to {VOCAB}",
        ),
        ({"aux_layers": (1, 2, 9)}, r"--aux-layers 9: the target has 8 layers"),
        ({"aux_layers": (2, 2, 3)}, r"--aux-layers 2 2 3: they must differ"),
        ({"max_length": 0}, r"--max-length is 0"),
        ({"held_out": -1}, r"--held-out is -1"),
        ({"options": {"learning_rate": float("nan")}}, r"--learning-rate is nan"),
        ({"options": {"ttt_steps": 100_000}}, r"--ttt-steps is 100000: at most 128"),
        ({"options": {"ema": 1.0}}, r"--ema is 1.0"),
    ],
)
def test_what_the_target_has_not_is_refused_before_anything_is_loaded(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("eagle3_serving.engine.target.Target.load", None)
    with pytest.raises(InputError, match=said):
        fit(job(directory, tmp_path, GOOD, **changed))
    assert not (tmp_path / "run").exists()


def test_a_target_with_nan_is_named_with_the_answer_and_the_boundary(directory: Path, tmp_path: Path) -> None:
    for where, place in ((lambda m: m.layers[3].mlp.up_proj, "boundary 4"), (lambda m: m.norm, "its final norm")):
        target = Target.load(directory)
        where(target.body).weight.data.flatten()[0] = float("nan")
        with pytest.raises(
            CheckError, match=rf"gives NaN or infinities at {place}, first seen in answer good-\d+"
        ) as error:
            fit(job(directory, tmp_path, GOOD), target)
        assert "\n" not in str(error.value)
        assert not list((tmp_path / "run" / "features").iterdir()) and not (tmp_path / "run" / "state.pt").exists()


def poison(monkeypatch: pytest.MonkeyPatch, batches: set[int]) -> None:
    """NaN features in some batches."""
    from eagle3_serving.train.run import Trainer

    true = Trainer.features

    def features(self: Trainer, index: int) -> Any:
        batch = true(self, index)
        if index in batches and self.step > 0:
            batch.final_BRH = batch.final_BRH * torch.nan
        return batch

    monkeypatch.setattr(Trainer, "features", features)


def test_a_batch_without_finite_gradients_changes_nothing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2})
    run = fit(job(directory, tmp_path, GOOD, options={"replay": False}))
    assert run.skipped >= 1 and run.complete
    assert all(bool(p.isfinite().all()) for p in run.drafter.parameters())
    records = [json.loads(text) for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert next(r for r in records if "skipped" in r)["first_answer"].startswith("good-")


def test_nan_without_end_stops_with_one_line(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(100)))
    with pytest.raises(CheckError, match=r"nothing to learn .* in 20 batches in a row, the last from answer good-"):
        fit(job(directory, tmp_path, GOOD, options={"tokens": 100_000}))
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert all(bool(tensor.isfinite().all()) for tensor in state["average"])


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from eagle3_serving.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[3:]))
"""


def trained_on_a_full_disk(limit: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    """`eagle3 train` where no file can grow past `limit` bytes."""
    here = str(Path(__file__).parent)
    return subprocess.run(
        [sys.executable, "-c", FULL, str(limit), here, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_full_disk_loses_nothing(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = job(directory, tmp_path, GOOD)
    command = ["train", "--target", str(directory), "--answers", str(made.answers[0]), "--out", str(made.out)]
    command += [
        "--tokens-per-batch",
        "60",
        "--save-every",
        "4",
        "--log-every",
        "1",
        "--warmup",
        "2",
        "--eval-limit",
        "2",
    ]
    command += ["--draft-vocab-size", str(VOCAB), "--held-out", "4", "--eval-tokens", "8"]
    whole = 300 * 1024
    done = trained_on_a_full_disk(whole, [*command, "--tokens", "150"])
    assert done.returncode == 0, done.stderr[-2000:]
    state, log = (made.out / "state.pt").read_bytes(), (made.out / "log.jsonl").read_text()
    assert 30_000 < len(state) < whole
    # a step more, and no room for its state
    done = trained_on_a_full_disk(30_000, [*command, "--tokens", "400"])
    assert done.returncode == 1, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert "state.pt cannot be written" in last and "Traceback" not in done.stderr
    assert (made.out / "state.pt").read_bytes() == state and not list(made.out.glob(".*partial"))
    assert (made.out / "log.jsonl").read_text().startswith(log[: log.rindex("held_out")][:200])
    # features that find no room
    done = trained_on_a_full_disk(1000, [*command[:-1], "9", "--tokens", "400", "--features", str(tmp_path / "new")])
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) < 400
    # room again: it goes on
    capsys.readouterr()
    assert main([*command, "--tokens", "400", "--json"]) == 0
    drafter = contract("train", capsys.readouterr().out)["drafter"]
    pair = ["--target", str(directory), "--drafter", drafter]
    assert main(["calibrate", *pair, "--answers", str(made.answers[0]), "--json"]) == 0
    assert Path(contract("calibrate", capsys.readouterr().out)["calibration"]).is_file()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_the_cache_says_its_size_and_keeps_to_a_limit(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"features would take 0\.00 GiB .* more than --cache-limit-gib 0\.00"):
        fit(job(directory, tmp_path, GOOD, cache_limit_gib=1e-6))
    assert "the target's features will take" in capsys.readouterr().out
    assert not list((tmp_path / "run" / "features").iterdir())
    assert fit(job(directory, tmp_path, GOOD, cache_features=False, cache_limit_gib=1e-6)).complete


def test_a_run_ends_checked_measured_and_with_a_card(directory: Path, tmp_path: Path) -> None:
    made = train(job(directory, tmp_path, GOOD, calibrate=True), "eagle3 train ...")
    assert made.right and made.measured is not None and made.measured.identical
    assert made.measured.prompts == 2 and set(made.measured.accepted_length) == {"chain", "tree"}
    assert made.measured.mean("tree") >= made.measured.mean("chain") >= 1.0
    contexts = made.measured.by_context
    assert set(contexts["chain"]) == set(contexts["tree"]) and min(contexts["tree"].values()) >= 1.0
    card = made.directory / "README.md"
    text = card.read_text()
    assert "24 of 24 answers used" in text and "`eagle3 train ...`" in text and "`--mode tree --nodes 60" in text
    assert f"**{made.measured.mean('chain'):.2f}**" in text
    assert (made.directory / "calibration.json").exists() and (made.directory / "training.png").exists()
    card.write_text("mine")
    train(job(directory, tmp_path, GOOD, eval_limit=0))
    assert card.read_text() == "mine"


def test_accepted_length_by_context_counts_each_token_once() -> None:
    one = Generation(token_ids=tuple(range(8)), accepted=(2, 0, 5), passes=4, seconds=0.0)
    # the prompt of 3 and the prefill's token: passes begin at 4, 7 and 8 tokens, and end at 11
    assert by_context([[1, 2, 3]], [one]) == {4: 3.0, 8: (1 + 3) / 2}


def test_it_stops_where_held_out_acceptance_stands_still(directory: Path, tmp_path: Path) -> None:
    made = job(
        directory,
        tmp_path,
        GOOD,
        options={"tokens": 100_000, "patience": 2, "save_every": 2, "learning_rate": 0.0, "fusion_learning_rate": 0.0},
    )
    run = fit(made)
    assert run.complete and run.tokens < 2000
    assert fit(made).steps == run.steps, "a run that stopped by itself stays stopped"
