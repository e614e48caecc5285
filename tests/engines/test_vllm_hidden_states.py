"""A trainer without a target: a real vLLM server makes the passes and writes what the drafter learns from into a folder."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eagle3_serving.cli.main import main
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.vllm import VllmOptions
from eagle3_serving.serve.vllm_features import features_command
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.train import streamed
from eagle3_serving.train.data import Answer, read_answers
from eagle3_serving.train.features import extract_features
from eagle3_serving.train.streamed import FeatureServer, describe_store

pytest.importorskip("vllm")
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LAYERS, HIDDEN, VOCAB = 4, 64, 49152
AUX = (3, 1)  # in this order


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random target with a real tokenizer."""
    folder = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "num_hidden_layers": LAYERS}
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=96, initializer_range=0.3, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(fetch_target() / name, folder)
    return folder


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dice = random.Random(1)
    rows = [[dice.randrange(VOCAB) for _ in range(9 + n % 12)] for n in range(24)]
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    path.write_text(
        "".join(
            json.dumps({"id": str(n), "prompt_ids": r[:5], "response_ids": r[5:]}) + "\n" for n, r in enumerate(rows)
        )
    )
    return path


@pytest.fixture(scope="module")
def server(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    store = tmp_path_factory.mktemp("store")
    describe_store(store, (1, 3, LAYERS), HIDDEN)
    options = VllmOptions(directory, max_model_len=128)
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    with Server(features_command(options, store, (1, 3, LAYERS)), log) as running:
        yield running, store


def test_the_servers_features_are_the_targets(server: tuple[Server, Path], directory: Path, answers: Path) -> None:
    running, store = server
    some = read_answers([answers], 64)[:5]
    passes = FeatureServer(running.url, store, Target.load(directory, layers=False), AUX)
    passes.ahead(some[:3])
    found = passes.extract(some)
    target = Target.load(directory)
    target.watch(AUX)
    expected = extract_features(target, some)
    assert torch.equal(found.tokens_BL, expected.tokens_BL) and torch.equal(found.start_B, expected.start_B)
    for b, answer in enumerate(some):  # what is padded is nobody's
        here = slice(0, answer.length), slice(0, len(answer.response_ids))
        torch.testing.assert_close(found.aux_BLF[b, here[0]], expected.aux_BLF[b, here[0]], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(found.final_BRH[b, here[1]], expected.final_BRH[b, here[1]], atol=2e-4, rtol=2e-4)
    assert [path.name for path in store.iterdir()] == [streamed.CONTENTS], "what was read is gone"


def test_a_drafter_is_trained_without_the_target(
    server: tuple[Server, Path], directory: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running, store = server
    common = ["train", "--target", str(directory), "--answers", str(answers), "--draft-vocab-size", "256"]
    common += ["--tokens", "150", "--tokens-per-batch", "64", "--held-out", "4", "--no-bf16", "--aux-layers", "3", "1"]
    common += ["--ttt-steps", "2", "--eval-limit", "0", "--closed-form-batches", "3", "--warmup", "2"]
    away = ["--features-from", running.url, "--features-store", str(store)]
    ends = []
    for name, more in (("away", away), ("here", [])):
        assert main([*common, "--out", str(tmp_path / name), *more]) in (0, 1), capsys.readouterr().err  # a toy target
        ends.append(torch.load(tmp_path / name / "state.pt", weights_only=True)["average"])
    assert "not measured, since the whole target is not here" in capsys.readouterr().out
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


def test_a_wrong_store_is_one_line(server: tuple[Server, Path], directory: Path, tmp_path: Path) -> None:
    running, store = server
    target = Target.load(directory, layers=False)
    with pytest.raises(InputError, match=r"no features.json, .*: start the server with eagle3 features"):
        FeatureServer(running.url, tmp_path, target, AUX)
    with pytest.raises(InputError, match="writes boundaries 1 3 4, without 2: .* --aux-layers 2 3"):
        FeatureServer(running.url, store, target, (2, 3))
    describe_store(tmp_path, (1, 2, 3, LAYERS), HIDDEN)
    other = FeatureServer(running.url, tmp_path, target, (2, 3))
    other.store = store  # the files of another description
    with pytest.raises(
        CheckError, match=r"states of 4 tokens at 4 boundaries of 64 were asked for, there are \(4, 3, 64\)"
    ):
        other.extract([Answer("a", (1, 2), (3, 4))])


def test_a_server_that_is_gone_ends_the_run_in_one_line(
    server: tuple[Server, Path], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = server
    monkeypatch.setattr(streamed, "_PATIENCE_S", 1.5)
    passes = FeatureServer("http://127.0.0.1:9", store, Target.load(directory, layers=False), AUX)
    with pytest.raises(CheckError, match="no features of answer a for 2 s .* the same command goes on"):
        passes.extract([Answer("a", (1, 2), (3, 4))])
