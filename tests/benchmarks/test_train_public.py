"""The comparison with a public trainer on a toy: what is handed over, our own side, and a trainer that fails."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.common import write_json
from benchmarks.train_data import Place, boundaries, check_setting, first_tokens, prepare
from benchmarks.train_public import export, main, run_one
from eagle3_serving.engine import Target
from eagle3_serving.errors import CheckError
from eagle3_serving.train.data import read_answers
from eagle3_serving.train.features import FeatureSource

MakeWork = Callable[[Path, int, int], argparse.Namespace]


@pytest.fixture(scope="module")
def args(directory: Path, make_work: MakeWork, tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    made = make_work(tmp_path_factory.mktemp("public"), 30, 400)
    made.speculators = shutil.which("false")
    place = Place(made.work)
    check_setting(made, place)
    prepare(made, directory, place)
    export(place, first_tokens(read_answers([place.answers], 640), 400), Target.load(directory))
    return made


def test_features_are_handed_over_as_they_stand(args: argparse.Namespace, directory: Path) -> None:
    data = args.work / "public"
    answers = read_answers([data / "answers.jsonl"], 640)
    target = Target.load(directory)
    source = FeatureSource(target, boundaries(target), Place(args.work).features)
    rows = [json.loads(line) for line in (data / "answers.jsonl").read_text().splitlines()]
    for number, (answer, row) in enumerate(zip(answers, rows, strict=True)):
        stored = load_file(data / "hidden_states" / f"hs_{number}.safetensors")
        assert stored["token_ids"].tolist() == row["input_ids"] == [*answer.prompt_ids, *answer.response_ids]
        assert sum(row["loss_mask"]) == len(answer.response_ids)
        assert torch.equal(stored["hidden_states"].flatten(1).float(), source([answer]).aux_BLF[0])
    # the last one is what the target's final norm reads
    answer = answers[0]
    with torch.inference_mode():
        states = torch.tensor([answer.prompt_ids + answer.response_ids])
        whole = target.model(input_ids=states, attention_mask=None, use_cache=False)
        final = load_file(data / "hidden_states" / "hs_0.safetensors")["hidden_states"][:, -1].float()
        logits = target.model.lm_head(target.body.norm(final))
    assert (logits - whole.logits[0]).abs().max() < 0.05 * whole.logits.abs().max()


def test_ours_sees_every_answer_once(args: argparse.Namespace, directory: Path) -> None:
    record = run_one(args, directory, "eagle3-serving", 0)
    log = (args.work / "public-runs" / "eagle3-serving-0" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[0])["batches"] == record["steps"]
    assert 0 <= record["late_step_seconds"] < record["seconds"]
    assert record["tokens_per_second"] > 0 and record["tree"] >= record["chain"] >= 1.0


def test_a_trainer_that_fails_names_its_log(args: argparse.Namespace, directory: Path) -> None:
    with pytest.raises(CheckError, match=r"speculators ended with 1: .*speculators.log says why"):
        run_one(args, directory, "speculators", 0)


def command(args: argparse.Namespace, directory: Path) -> list[str]:
    given = {"target": directory, "answers": args.answers[0], "prompts": "none", "work": args.work}
    given |= {
        "out": args.work / "table.json",
        "tokens": args.tokens,
        "limit": args.limit,
        "max-tokens": args.max_tokens,
    }
    given |= {"draft-vocab-size": args.draft_vocab_size, "seeds": 1}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def test_without_the_public_trainer_ours_can_be_asked_for(
    args: argparse.Namespace, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(command(args, directory))
    assert "--speculators is needed, or --only eagle3-serving eagle3-serving-compiled" in capsys.readouterr().err


def test_a_narrower_call_keeps_the_others_rows(args: argparse.Namespace, directory: Path) -> None:
    figures = {"seed": 0, "tokens_per_second": 1.0, "chain": 1.0, "tree": 1.0, "small_tree": 1.0}
    for name in ("eagle3-serving", "speculators"):
        folder = Place(args.work).public_run(name, 0)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", {"name": name, **figures})
    assert main([*command(args, directory), "--only", "eagle3-serving"]) == 0
    runs = json.loads((args.work / "table.json").read_text())["runs"]
    assert [run["name"] for run in runs] == ["eagle3-serving", "speculators"]
