"""The tree's benchmark at a tiny size: it runs from the root, and its JSON has the keys that readers use."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--batch",
    "1,2",
    "--nodes",
    "6",
    "--depth",
    "3",
    "--top-k",
    "2",
    "--draft-vocab",
    "16",
    "--target-vocab",
    "24",
    "--repeats",
    "2",
]


def tree_ops(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.tree_ops", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_json_contract(tmp_path: Path) -> None:
    out = tmp_path / "tree-ops.json"
    done = tree_ops(*TINY, "--json", "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(out.read_text()) == report
    assert {"command", "torch", "threads", "nodes", "depth", "top_k", "draft_vocab", "repeats"} <= set(report)
    assert report["command"].endswith("--json --out tree-ops.json")  # no folder of this machine
    assert [row["batch"] for row in report["rows"]] == [1, 2]
    for row in report["rows"]:
        assert {"expand", "pool", "select", "layout", "positions", "accept"} <= set(row["parts"])
        assert set(row["ours"]) == {"build", "accept", "whole"}
        for figures in (row["sum"], *row["parts"].values(), *row["ours"].values()):
            assert 0 < figures["p10"] <= figures["median"] <= figures["p90"]
        assert row["accepted"] == 2
        # nothing public was named, so nothing is claimed about it
        assert row["theirs"] is row["ratio"] is row["same_tree"] is None


def test_a_table_for_a_person() -> None:
    done = tree_ops(*TINY)
    assert done.returncode == 0, done.stderr
    assert "expand" in done.stdout and "batch 2" in done.stdout


def test_wrong_usage_is_one_line_and_code_2(tmp_path: Path) -> None:
    for wrong in (["--batch", "one"], ["--nodes", "1000"], ["--eagle", str(tmp_path)]):
        done = tree_ops(*wrong)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("python -m benchmarks.tree_ops: error: --")
        assert "Traceback" not in done.stderr


def test_help_has_examples() -> None:
    done = tree_ops("--help")
    assert done.returncode == 0 and "examples:" in done.stdout
