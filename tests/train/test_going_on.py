"""Going on from a drafter: gently, with what it knew mixed in, held against what it was; and what contradicts it."""

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3_serving.checkpoint.dialects import WRITABLE
from eagle3_serving.checkpoint.save import refusals, save_drafter
from eagle3_serving.cli.main import main
from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.engine.pair import load_for
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.train.data import Answer, read_answers
from eagle3_serving.train.features import extract_features
from eagle3_serving.train.grow import grow_vocabulary
from eagle3_serving.train.job import fit, train
from eagle3_serving.train.mixture import mix, split
from eagle3_serving.train.options import TrainJob, TrainOptions
from eagle3_serving.train.parallel import as_parallel, begin_following, begin_masks, mask_token
from eagle3_serving.train.replies import greedy_answers
from eagle3_serving.train.ttt import unroll

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import VOCAB, tiny_drafter, tiny_target

OPTIONS: dict[str, Any] = {"tokens_per_batch": 60, "save_every": 4, "log_every": 1, "warmup": 2}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    tiny_target(1, layers=8).model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answers(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The target's own greedy answers, of two families: prompts of low tokens, and of high ones."""
    engine, folder = EmbeddedEngine(Target.load(directory)), tmp_path_factory.mktemp("answers")
    dice = random.Random(0)
    for name, least in (("mine", 0), ("known", VOCAB // 2)):
        prompts = [[dice.randrange(least, least + VOCAB // 2) for _ in range(4)] for _ in range(30)]
        said = greedy_answers(engine, prompts, 14, 10, progress=False)
        rows = [
            {"id": a.id, "temperature": 0.0, "prompt_ids": a.prompt_ids, "response_ids": a.response_ids} for a in said
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "mine.jsonl", folder / "known.jsonl"


def job(directory: Path, out: Path, files: Path, **changed: Any) -> TrainJob:
    options = TrainOptions(**{"tokens": 300, **OPTIONS, **changed.pop("options", {})})
    settings: dict[str, Any] = {"held_out": 6, "eval_tokens": 8, "eval_limit": 2, **changed}
    if "init" not in settings:
        settings.setdefault("draft_vocab_size", VOCAB)
    return TrainJob(directory, out, answers=(files,), options=options, **settings)


@pytest.fixture(scope="module")
def init(directory: Path, answers: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter in EAGLE-3.1's shape that knows the second family."""
    made = train(job(directory, tmp_path_factory.mktemp("first") / "run", answers[1], preset="eagle3.1"))
    assert made.right and made.comparison is None
    return made.directory


def test_the_preset_is_what_readers_call_eagle_3_1(directory: Path, init: Path) -> None:
    config = json.loads((init / "config.json").read_text())
    assert config["fc_norm"] is True and config["norm_output"] is True
    drafter = load_for(Target.load(directory), init)
    assert drafter.config.pre_fc_norm == "per_aux" and drafter.config.norm_output
    assert all(not torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in drafter.fusion.fc_norm)
    assert set(refusals(drafter, 8)) == {"eagle"}
    card = (init / "README.md").read_text()
    assert "a norm on each feature, post-norm feedback" in card and "`--to` eagle (norm_output: " in card


def test_it_goes_on_with_a_table_of_before_and_after(
    directory: Path, answers: tuple[Path, Path], init: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, known = answers
    command = [
        "train",
        "--target",
        str(directory),
        "--init",
        str(init),
        "--answers",
        str(mine),
        "--general",
        str(known),
    ]
    command += ["--out", str(tmp_path / "run"), "--tokens-per-batch", "60", "--held-out", "6", "--measure-every", "200"]
    assert main([*command, "--eval-tokens", "8", "--eval-limit", "2", "--measure-tree", "3,2,6", "--json"]) == 0
    said = capsys.readouterr().out
    compared = json.loads(said.splitlines()[-1])["compared"]
    assert compared["own"] == ["mine"]
    for when in ("before", "after"):
        assert set(compared[when]["tree"]) == {"mine", "known"} and min(compared[when]["tree"].values()) >= 1.0
    card = (tmp_path / "run" / "drafter" / "README.md").read_text()
    assert "general answers (known.jsonl) were mixed in" in card and "| mine (trained for) |" in card
    assert "## As served while it was trained" in card and "| 0 | " in card
    options = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["options"]
    assert options["learning_rate"] == 3e-4 and options["fusion_learning_rate"] == 5e-5
    assert options["tokens"] > 300, "twice what the answers hold"
    target = Target.load(directory)
    before, after = load_for(target, init), load_for(target, tmp_path / "run" / "drafter")
    assert torch.equal(before.vocabulary.target_ids, after.vocabulary.target_ids) and before.config == after.config


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"preset": "eagle3"}, r"--preset eagle3 contradicts --init .* a drafter with a norm on each feature"),
        ({"fc_norm": False}, r"--no-fc-norm contradicts"),
        ({"norm_output": False}, r"--no-norm-output contradicts .* post-norm feedback"),
        ({"aux_layers": (1, 2, 3)}, r"--aux-layers contradicts .* layers 2 4 5"),
        (
            {"draft_vocab_size": 5},
            rf"--draft-vocab-size is 5: the drafter in --init .* has {VOCAB} tokens, which it keeps",
        ),
        (
            {"draft_vocab_size": VOCAB + 1},
            rf"--draft-vocab-size is {VOCAB + 1}: the target has {VOCAB} tokens; give {VOCAB}",
        ),
    ],
)
def test_what_contradicts_the_drafter_is_one_line_and_loses_nothing(
    directory: Path, answers: tuple[Path, Path], init: Path, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as error:
        fit(job(directory, tmp_path / "run", answers[0], init=init, **changed))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    same = {"preset": "eagle3.1", "fc_norm": True, "aux_layers": (2, 4, 5), "draft_vocab_size": VOCAB}
    job(directory, tmp_path, answers[0], init=init, **same).asked.require_like(init, 8)


def test_a_larger_vocabulary_is_trained_on_from_a_smaller_one(
    directory: Path, answers: tuple[Path, Path], tmp_path: Path
) -> None:
    small = train(job(directory, tmp_path / "small", answers[1], draft_vocab_size=6)).directory
    made = train(job(directory, tmp_path / "run", answers[0], init=small, draft_vocab_size=10))
    target = Target.load(directory)
    before, after = (load_for(target, folder).vocabulary.target_ids.tolist() for folder in (small, made.directory))
    assert made.right and len(after) == 10 and set(before) < set(after)
    with pytest.raises(InputError, match="holds a run with draft_vocab_size 10, not 6"):
        fit(job(directory, tmp_path / "run", answers[0], init=small))


def test_what_a_grown_drafter_knew_is_unchanged_and_what_it_learns_is_the_targets_own() -> None:
    hidden, vocab = 8, 64
    known = torch.randperm(vocab, generator=torch.manual_seed(0))[:40]
    small = tiny_drafter(0, hidden=hidden, vocab=vocab, draft_ids=known.tolist())
    head_VH, map_HH = torch.randn(vocab, hidden), torch.randn(hidden, hidden)
    with torch.no_grad():
        weight_of(small.lm_head).copy_(head_VH[known] @ map_HH)
    said = [t for n, t in enumerate(sorted(set(range(vocab)) - set(known.tolist()))) for _ in range(n + 1)]
    grown = grow_vocabulary(small, [Answer("a", (1,), tuple(said))], 50, head_VH)
    ids = grown.vocabulary.target_ids
    assert set(ids.tolist()) == {*known.tolist(), *Counter(said).elements()} - {
        t for t, n in Counter(said).items() if n <= 14
    }
    old, new = (dict(zip(d.vocabulary.target_ids.tolist(), weight_of(d.lm_head), strict=True)) for d in (small, grown))
    assert all(torch.equal(row, new[token]) for token, row in old.items())
    torch.testing.assert_close(weight_of(grown.lm_head), head_VH[ids] @ map_HH, atol=0.02, rtol=0.02)
    assert all(
        torch.equal(value, grown.state_dict()[name]) for name, value in small.state_dict().items() if "layers" in name
    )


def test_a_drafter_becomes_a_parallel_one(
    directory: Path, answers: tuple[Path, Path], init: Path, tmp_path: Path
) -> None:
    """What it knew is its first depth; it is saved as vLLM reads P-EAGLE, read back, and gone on from."""
    asked = {"preset": "p-eagle", "layers": 2, "options": {"ttt_steps": 3}}
    made = train(job(directory, tmp_path / "run", answers[0], init=init, **asked))
    assert made.right and made.measured is not None and made.measured.identical
    config = json.loads((made.directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"] and config["num_hidden_layers"] == 2
    target = Target.load(directory)
    drafter = load_for(target, made.directory)
    assert drafter.config.mask_token_id == config["mask_token_id"] and drafter.config.num_layers == 2
    assert drafter.mask_hidden is not None and bool(drafter.mask_hidden.any())
    assert set(refusals(drafter, 8)) == {"eagle", "modelopt", "sglang", "specforge", "speculators", "universal"} & set(
        WRITABLE
    )
    with pytest.raises(InputError, match=r"--preset eagle3.1 contradicts --init .* a drafter with masks \(P-EAGLE\)"):
        fit(job(directory, tmp_path / "back", answers[0], init=made.directory, preset="eagle3.1"))
    with pytest.raises(InputError, match=r"--layers contradicts --init .* a drafter with 2 of them"):
        fit(job(directory, tmp_path / "more", answers[0], init=made.directory, preset="p-eagle", layers=3))
    with pytest.raises(InputError, match="--layers are of a parallel drafter: give --preset p-eagle"):
        job(directory, tmp_path / "none", answers[0], init=init, layers=2)
    fit(job(directory, tmp_path / "on", answers[0], init=made.directory, options={"ttt_steps": 3, "tokens": 60}))
    path = made.directory / "config.json"
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "mask_token_id"}))
    with pytest.raises(InputError, match="without mask_token_id in config.json"):
        load_for(target, made.directory)


def test_a_parallel_drafter_gets_a_causal_head(
    directory: Path, answers: tuple[Path, Path], init: Path, tmp_path: Path
) -> None:
    """Which is saved, read back and gone on from."""
    asked: dict[str, Any] = {"preset": "p-eagle", "layers": 1, "options": {"ttt_steps": 3, "tokens": 60}}
    made = train(job(directory, tmp_path / "run", answers[0], init=init, causal_head=True, **asked))
    assert made.right and made.measured is not None and made.measured.identical
    target = Target.load(directory)
    drafter = load_for(target, made.directory)
    assert drafter.causal is not None and bool(weight_of(drafter.causal.proj).any())
    assert "by a causal head" in (made.directory / "README.md").read_text()
    fit(job(directory, tmp_path / "on", answers[0], init=made.directory, options={"ttt_steps": 3, "tokens": 60}))
    for flag, start in (("--no-causal-head", made.directory), ("--causal-head", tmp_path / "masks")):
        if not start.exists():
            save_drafter(as_parallel(load_for(target, init), mask_token(target), 1), start, to="vllm")
        head = flag == "--causal-head"
        with pytest.raises(InputError, match=f"{flag} contradicts --init .* a drafter with (a|no) causal head"):
            fit(job(directory, tmp_path / "other", answers[0], init=start, preset="p-eagle", causal_head=head))
    with pytest.raises(InputError, match="--causal-head is of a parallel drafter: give --preset p-eagle"):
        job(directory, tmp_path / "none", answers[0], init=init, causal_head=True)


def test_a_parallel_drafter_begins_as_the_drafter_that_it_was(
    directory: Path, answers: tuple[Path, Path], init: Path
) -> None:
    target = Target.load(directory)
    before, prompts = load_for(target, init), [[1, 2, 3], [4, 5]]
    begun = as_parallel(before, mask_token(target), 2).eval().requires_grad_(False)
    assert begun.mask_hidden is not None
    begun.mask_hidden.fill_(0.5)
    one = DecodeOptions(12, "chain", k=1)
    first, second = (EmbeddedEngine(target, d).generate_many(prompts, one, 2) for d in (before, begun))
    assert [(a.token_ids, a.accepted) for a in first] == [(b.token_ids, b.accepted) for b in second]


def test_a_causal_head_begins_by_foretelling_what_true_rows_would_say(
    directory: Path, answers: tuple[Path, Path], init: Path
) -> None:
    target = Target.load(directory)
    drafter = as_parallel(load_for(target, init), mask_token(target), 1, causal_head=True)
    target.watch(drafter.config.aux_layers)
    batch = extract_features(target, read_answers([answers[0]], 100)[:20])
    begin_masks(drafter, [batch])

    def apart() -> float:
        """Squared distance of the second and third depth's states to the first's at the same rows."""
        true_BRH = torch.zeros_like(batch.final_BRH)
        (true_NH, mask_BR), *later = unroll(drafter, batch, batch.taught_BR, 3)
        true_BRH[mask_BR] = true_NH
        return sum(float((hidden_NH - true_BRH[mask_BR]).square().mean()) for hidden_NH, mask_BR in later)

    with torch.no_grad():
        before = apart()
        begin_following(drafter, [batch], 3)
        after = apart()
        assert after < 0.7 * before
        begin_following(drafter, [batch], 3)  # what has begun is left as it is
        assert apart() == after


def test_answers_of_another_target_are_told_from_its_own(
    directory: Path, answers: tuple[Path, Path], init: Path, tmp_path: Path
) -> None:
    tiny_target(2, layers=8).model.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"mine.jsonl: of its greedy answers this target would have said \d+% of"):
        fit(job(tmp_path / "other", tmp_path / "run", answers[0], init=init))
    assert not (tmp_path / "run" / "state.pt").exists()


def test_general_answers_need_a_drafter_that_knew_them(
    directory: Path, answers: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="there is none to go on from: give --init"):
        fit(job(directory, tmp_path / "run", answers[0], general=(answers[1],)))
    assert not (tmp_path / "run").exists()


def test_the_mixture_is_of_the_share_and_keeps_some_of_each_out() -> None:
    def some(name: str, count: int, length: int) -> list[Answer]:
        return [Answer(f"{name}{n}", (1,), (2,) * length) for n in range(count)]

    own = split(some("own", 50, 10), 10, 0, "mine")
    assert [len(own.train), len(own.held_out["mine"])] == [40, 10]
    mixed = mix(own, {"a": some("a", 100, 4), "b": some("b", 20, 4)}, 0.2, 10, 0)
    assert {name: len(family) for name, family in mixed.held_out.items()} == {"mine": 10, "a": 5, "b": 4}
    assert mixed.general == 25, "100 of 500 tokens"
    trained = {answer.id for answer in mixed.train}
    assert len(trained) == 65 and not trained & {answer.id for answer in mixed.all_held_out}
    assert mix(own, {"a": some("a", 10, 4)}, 0.9, 10, 0).general == 8, "as far as they go"
    assert mix(own, {"a": some("a", 100, 4)}, 0.2, 10, 0) == mix(own, {"a": some("a", 100, 4)}, 0.2, 10, 0)


def test_of_presets_and_flags_the_flag_counts() -> None:
    asked = TrainJob(Path(), Path(), preset="eagle3.1", norm_output=False).asked
    assert asked.norms_features is True and asked.feeds_post_norm is False
    assert TrainJob(Path(), Path()).asked.norms_features is None
