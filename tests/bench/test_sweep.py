"""A whole sweep on the embedded engine with a tiny target: what is written, and going on after a stop."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from eagle3_serving.bench import embedded, sweep
from eagle3_serving.bench.embedded import EmbeddedSide
from eagle3_serving.bench.floors import Floors, measure_floors
from eagle3_serving.bench.load import Load, Outcome
from eagle3_serving.bench.options import BenchOptions
from eagle3_serving.bench.record import read_record
from eagle3_serving.cli.main import main
from eagle3_serving.engine import DecodeOptions
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.eval.law import Answers
from tests.engine.tiny import tiny_engine
from tests.json_contract import contract


def ids(_tokenizer: object, text: str) -> list[int]:
    return [ord(letter) % 12 for letter in text]


def options(folder: Path, **changed: object) -> BenchOptions:
    prompts = folder / "p.jsonl"
    lines = [{"id": str(n), "family": f"f{n % 2}", "turns": [f"prompt {n} of some"]} for n in range(5)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    values = {
        "engine": "embedded",
        "target": folder,
        "drafter": folder,
        "prompts": (prompts,),
        "out": folder / "out.jsonl",
        "settings": ("plain", "chain-2", "tree-6"),
        "concurrency": (1, 3),
        "tokens": 9,
        "least": 4,
        "repeats": 2,
    }
    return BenchOptions(**{**values, **changed})  # type: ignore[arg-type]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchOptions:
    """The real engine on a tiny target; only loading from a directory is replaced."""
    from eagle3_serving.engine import EmbeddedEngine
    from eagle3_serving.targets import chat

    engine = tiny_engine(3)
    monkeypatch.setattr(EmbeddedEngine, "load", classmethod(lambda cls, *_: engine))
    monkeypatch.setattr(chat, "load_tokenizer", lambda _: None)
    monkeypatch.setattr(chat, "chat_ids", ids)
    monkeypatch.setattr(sweep, "count_parameters", lambda _: 1000)
    monkeypatch.setattr(sweep, "measure_floors", lambda _: Floors(1e9, 1e9, "cpu"))
    made = options(tmp_path)
    (made.target / "config.json").write_text("{}")
    return made


def test_every_cell_is_measured_once_and_every_answer_is_plain_decodings(tiny: BenchOptions) -> None:
    record = sweep.run_sweep(tiny)
    assert len(record.rows) == 2 * 2 * 3
    assert all(row["identical"] == row["requests"] for row in record.rows)
    assert all(row["tokens"] == 9 * row["requests"] for row in record.rows)
    drafted = [row for row in record.rows if row["setting"] != "plain"]
    assert all(row["accepted_length"] > 1.0 and row["nodes_per_step"] > 0 for row in drafted)
    assert {row["requests"] for row in record.rows if row["concurrency"] == 3} == {3}
    assert sweep.run_sweep(tiny).rows == record.rows  # nothing is measured again


def test_a_failure_leaves_what_was_measured_and_the_next_run_goes_on(
    tiny: BenchOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = EmbeddedSide.run, 0

    def fails(self: EmbeddedSide, prompts: Sequence[str], load: Load) -> Outcome:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise CheckError("the server died")
        return real(self, prompts, load)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedSide, "run", fails)
        with pytest.raises(CheckError):
            sweep.run_sweep(tiny)
    before = read_record(tiny.out)[1]
    assert 0 < len(before) < 12
    after = sweep.run_sweep(tiny).rows
    assert after[: len(before)] == before and len(after) == 12


def test_a_request_is_sent_when_an_earlier_one_ends(tiny: BenchOptions) -> None:
    with embedded.open_embedded(tiny) as sides:
        outcome = sides["plain"].run([f"prompt {n}" for n in range(4)], Load(2, 6))
    assert all(0 < answer.first_token_s <= answer.total_s for answer in outcome.answers)
    # the third request waits for no-one's whole answer: its clock starts as the first ends
    assert outcome.answers[2].total_s < outcome.seconds


def test_a_natural_end_is_the_engines_own(tiny: BenchOptions) -> None:
    side = EmbeddedSide(tiny_engine(3), None, DecodeOptions(mode="plain"))
    assert len(side.run(["abc"], Load(1, 7, natural_end=True)).answers[0].token_ids) <= 7


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"settings": ("chain-2",)}, "must hold plain"),
        ({"settings": ("plain", "plain")}, "twice"),
        ({"concurrency": (0,)}, "--concurrency"),
        ({"tokens": 0}, "--tokens"),
        ({"simulate": 0.5}, "--simulate-acceptance"),
        ({"urls": {"plain": "http://x"}}, "--url"),
        ({"engine": "vllm", "simulate": 1.5, "settings": ("plain", "own-chain-2")}, "between 0 and 1"),
        ({"engine": "vllm", "settings": ("plain",), "urls": {"auto": "http://x"}}, "not among the settings"),
    ],
)
def test_wrong_options_are_told(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options(tmp_path, **changed)


def test_the_floors_are_of_a_real_machine() -> None:
    floors = measure_floors("fp32", repeats=1)
    assert 1e8 < floors.bandwidth < 1e14 and 1e8 < floors.rate < 1e16


def test_a_setting_of_another_law_is_not_measured(
    tiny: BenchOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eagle3_serving.targets import chat

    real = EmbeddedSide.draw

    def draw(self: EmbeddedSide, text: str, draws: int, tokens: int, temperature: float) -> Answers:
        return real(self, text, draws, tokens, 0.0 if self.decode.mode == "tree" else temperature)

    monkeypatch.setattr(chat, "load_tokenizer", lambda _: lambda text: {"input_ids": ids(None, text)})
    monkeypatch.setattr(EmbeddedSide, "draw", draw)
    command = ["bench", "--engine", "embedded", "--target", str(tiny.target), "--drafter", str(tiny.drafter)]
    command += ["--prompts", str(tiny.prompts[0]), "--out", str(tiny.out), "--settings", "plain,chain-2,tree-6"]
    command += ["--concurrency", "2", "--temperature", "1", "--tokens", "5", "--least", "2", "--repeats", "1", "--json"]
    for _ in range(2):  # nor by the run that goes on
        assert main(command) == 1
        out, error = capsys.readouterr()
        said = contract("bench", out)
        assert {point["mode"] for point in said["rows"]} == {"plain", "chain-2"}
        assert [law["lawful"] for law in said["laws"]] == [True, False]
        assert said["rows"][0]["law"] is None and said["rows"][1]["law"]["lawful"]
        assert "tree-6 at T=1 does not sample by the target's law (p = " in error
    assert len(read_record(tiny.out)[1]) == 2 + 2
