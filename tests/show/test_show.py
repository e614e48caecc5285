"""`eagle3 show` on the real target and the drafter that ships: what is drawn is what was decoded."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from eagle3_serving.cli.main import main
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.show.pieces import Pieces
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from tests.json_contract import contract

PROMPT = "Say <script>alert(1)</script> and count: one two three one two"
TOKENS = 20


@pytest.fixture(scope="module")
def told(target_dir: Path, drafter_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("show")
    argv = ["show", "--target", str(target_dir), "--drafter", str(drafter_dir), "--prompt", PROMPT, "--nodes", "24"]
    argv += [
        "--max-tokens",
        str(TOKENS),
        "--lookup",
        "--out",
        str(folder / "a.html"),
        "--svg",
        str(folder / "a.svg"),
        "--json",
    ]
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: said.append(text))
        assert main(argv) == 0
    result: dict[str, Any] = contract("show", said[-1])
    assert sorted(path.name for path in folder.iterdir()) == ["a.html", "a.svg"]
    return result


def test_the_steps_are_the_engines(told: dict[str, Any], target_dir: Path) -> None:
    story = told["prompts"][0]
    ids = [token["id"] for step in story["steps"] for token in step["tokens"]]
    engine = EmbeddedEngine.load(target_dir)
    prompt = chat_ids(load_tokenizer(target_dir), PROMPT)
    assert tuple(ids) == engine.generate(prompt, DecodeOptions(TOKENS, "plain")).token_ids
    assert story["tokens"] == len(ids) and story["passes"] == len(story["steps"]) < len(ids)
    assert story["accepted_length"] == pytest.approx((len(ids) - 1) / (len(story["steps"]) - 1))


def test_every_node_has_a_fate_that_the_walk_explains(told: dict[str, Any]) -> None:
    drafting = [step for step in told["prompts"][0]["steps"] if step["own"]]
    assert drafting and sum(len(step["path"]) for step in drafting) > 3
    for step in drafting:
        path, nodes = step["path"], step["nodes"]
        assert 0 < len(nodes) <= 24
        walked = [nodes[index]["token"]["id"] for index in path] + [step["own"]["id"]]
        assert walked[: len(step["tokens"])] == [token["id"] for token in step["tokens"]]
        assert [nodes[index]["parent"] for index in path] == [-1, *path[:-1]][: len(path)]
        end = path[-1] if path else -1
        for index, node in enumerate(nodes):
            reached = node["parent"] == -1 or node["parent"] in path
            assert node["fate"] == ("accepted" if index in path else "refused" if reached else "unreached")
            assert 0 <= node["target_probability"] <= 1 and 0 < node["chance"] <= 1
            assert node["probability"] is None or 0 < node["probability"] <= 1
            if node["parent"] == end:  # greedy: the target's own token is its likeliest
                assert node["target_probability"] <= step["own_probability"] and node["token"] != step["own"]
            if index in path:  # the target's likeliest token there, of all that it knows
                beside = [other for other in nodes if other["parent"] == node["parent"]]
                assert node["target_probability"] == max(other["target_probability"] for other in beside) > 0.02
            above = nodes[node["parent"]]["reach"] if node["parent"] >= 0 else 1.0
            assert node["reach"] == pytest.approx(above * node["chance"], rel=1e-3)


def test_a_branch_out_of_the_text_is_told_apart(told: dict[str, Any]) -> None:
    found = [node for step in told["prompts"][0]["steps"] for node in step["nodes"] if node["probability"] is None]
    assert found, "the prompt repeats itself: lookup finds something"
    assert (
        'class="accepted found"' in Path(told["page"]).read_text() or "refused found" in Path(told["page"]).read_text()
    )


def test_the_files_hold_no_markup_of_the_prompts(told: dict[str, Any]) -> None:
    html = Path(told["page"]).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in html and "<script>alert" not in html
    ElementTree.parse(told["svg"])


def test_tokens_that_are_no_text_by_themselves_are_shown_as_bytes(target_dir: Path) -> None:
    tokenizer = load_tokenizer(target_dir)
    pieces = Pieces(tokenizer)
    text = "naïve 日本 😀\n done"
    shown = [pieces.of(token).text for token in tokenizer(text)["input_ids"]]
    assert not any("\ufffd" in piece for piece in shown)
    spelled = b"".join(
        bytes.fromhex(piece.replace("⟨", "").replace("⟩", "")) if piece.startswith("⟨") else piece.encode()
        for piece in shown
    )
    assert spelled.decode() == text
    assert pieces.of(10**6).text == "⟨1000000⟩"
