"""Engines side by side: who fails leaves the others, who hangs is ended, what is measured is measured once."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.live import contenders as names
from benchmarks.gpu.live.contenders import Contender, Pair, chosen, tree_named, waves
from benchmarks.gpu.live.processes import EngineError, EngineProcess, interpreter, plugin_site
from benchmarks.gpu.live.race import Clock, Course, Race
from benchmarks.gpu.simulate import AcceptanceLaw
from benchmarks.gpu.sink import Sink, Unavailable
from eagle3_serving.engine.draft import TreeShape
from eagle3_serving.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
REAL = Pair("real", Path(), Path(), ((1, 2), (3, 4), (5, 6)), 1.0)
COURSE = Course((1, 2), 2, 9, (1,), 3, 30.0, 20.0, AcceptanceLaw(0.8, 0.75))


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


class Track:
    """Races of toy engines, named by what they do, in one folder."""

    def __init__(self, folder: Path, course: Course = COURSE, seconds: float = 60.0) -> None:
        self.folder, self.course, self.seconds = folder, course, seconds
        self.sink = Sink(folder / "toy.jsonl", {})

    def race(self, *does: str, pair: Pair = REAL, gib: float = 100.0) -> list[str]:
        self.sink = Sink(self.folder / "toy.jsonl", {})
        runners = [Contender(name, pair, None, 1.0, {"does": name, "folder": str(self.folder)}) for name in does]
        race = Race(self.course, self.sink, Clock(self.seconds), self.folder / "answers", self.begin)
        return race.run(runners, gib)

    def begin(self, contender: Contender) -> EngineProcess:
        path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        spec = {"module": "toy_engine", "device": "cpu", "arguments": contender.arguments}
        slug = contender.name.replace(" ", "-")
        environment = {**os.environ, "PYTHONPATH": path}
        python = interpreter("torch", "")
        return EngineProcess(python, spec, environment, self.folder / f"{slug}.json", self.folder / f"{slug}.log")

    def order(self) -> list[str]:
        return (self.folder / "order").read_text().splitlines()

    def nobody_is_left(self) -> bool:
        pids = [int(line) for line in (self.folder / "workers").read_text().split()]
        for _ in range(50):
            if not any(map(alive, pids)):
                return True
            time.sleep(0.1)
        return False


def test_one_that_fails_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    track = Track(tmp_path)
    left = track.race("plain", "fails at start", "leaves at start", "is not in this version", "fails at two", "drafts")
    assert left == []
    rows = {row["key"]: row for row in track.sink.rows}
    assert rows["real/fails at start/start"]["why"] == "RuntimeError: no such kernel"
    assert rows["real/leaves at start/start"]["ok"] is False
    assert "ValueError: last words" in rows["real/leaves at start/start"]["why"]
    gone = rows["real/is not in this version/start"]
    assert gone["ok"] is None and gone["why"] == "version 0 has none"
    assert rows["real/fails at two/at 2/round 0"]["why"] == "RuntimeError: out of memory"
    assert rows["real/fails at two/at 1/round 0"]["step_ms"] == 2.0
    assert rows["real/drafts/detail at 1"]["launches"] == 21.0
    drafted = rows["real/drafts/at 2/round 1"]
    assert drafted["measured_accepted_length"] == 2.0 and drafted["nodes"] == 3.0
    assert drafted["step_ms"] == 8.0 and drafted["step_ms_mean"] == 18.667
    assert rows["real/plain/start"]["start_s"] > 0 and rows["real/plain/start"]["started_beside"] == 5
    assert (tmp_path / "answers" / "real-drafts-2.json").is_file()
    # measured by turns at each number in flight, and warmed up once at each
    measured = [line for line in track.order() if line.split()[-2] == "9"]
    assert [line.split()[-3] for line in measured if line.startswith("plain")] == ["1", "2", "1", "2"]
    firsts = [line.rsplit(" ", 3)[0] for line in measured[:3]]
    assert sorted(firsts) == ["drafts", "fails at two", "plain"]
    assert sum(line.startswith("plain 2 12") for line in track.order()) == 1
    assert track.nobody_is_left()


def test_one_that_hangs_is_ended_at_its_limit(tmp_path: Path) -> None:
    track = Track(tmp_path, replace(COURSE, rounds=1, each_s=3.0))
    track.race("plain", "hangs at two")
    rows = {row["key"]: row for row in track.sink.rows}
    assert rows["real/hangs at two/at 2/round 0"]["why"].startswith("no answer in 3 s")
    assert rows["real/plain/at 2/round 0"]["step_ms"] == 4.0
    assert track.nobody_is_left()
    track = Track(tmp_path, replace(COURSE, start_s=2.0))
    track.race("hangs at start")
    row = track.sink.get("real/hangs at start/start")
    assert row is not None and row["ok"] is False and row["why"].startswith("not ready in 2 s")


def test_a_second_race_measures_what_is_missing(tmp_path: Path) -> None:
    track = Track(tmp_path)
    track.race("plain")
    before = track.order()
    assert track.race("plain") == [] and track.order() == before
    # what failed is tried again, what is there stays
    track.sink.add("real/drafts/start", pair="real", contender="drafts", ok=False, why="no memory")
    assert track.race("plain", "drafts") == []
    assert [line for line in track.order() if line.startswith("plain")] == before
    assert "no memory" not in (tmp_path / "toy.jsonl").read_text()


def test_the_deadline_is_told_in_rows(tmp_path: Path) -> None:
    track = Track(tmp_path, seconds=0.0)
    left = track.race("plain")
    assert left[0] == "real/plain/at 1/round 0" and len(left) == 5 and not track.sink.rows
    # one that is still starting then has not failed
    track = Track(tmp_path, seconds=12.0)
    assert track.race("hangs at start") and not track.sink.rows


def test_a_process_that_ended_is_told_of(tmp_path: Path) -> None:
    process = Track(tmp_path).begin(Contender("plain", REAL, None, 1.0, {"does": "leaves at start", "folder": ""}))
    with pytest.raises(EngineError, match="the process ended; its log ends: ValueError: last words"):
        process.answer(20.0)
    process.end()
    process.end()


def test_waves_hold_what_fits() -> None:
    runners = [Contender(str(gib), REAL, None, gib) for gib in (20.0, 20.0, 3.0, 60.0, 90.0)]
    assert [[c.name for c in wave] for wave in waves(runners, 70.0)] == [["20.0", "20.0", "3.0"], ["60.0"], ["90.0"]]
    assert [len(wave) for wave in waves(runners, 0.0)] == [1] * 5


def test_contenders_by_name() -> None:
    assert tree_named("tree-16") == TreeShape(16, 5, 4)
    assert tree_named("tree-16-d8-k10") == tree_named("tree-16-d8-k10-fp8") == TreeShape(16, 8, 10)
    assert tree_named("chain-3") is None
    for name in ("tree-17", "tree-4-d5-k2", "tree-4-d0-k2"):
        with pytest.raises(InputError, match=f"--contenders {name}: "):
            tree_named(name)
    with pytest.raises(InputError, match="'tre' is not known .vllm: plain, "):
        names.check_names(["plain", "tre"])
    assert chosen("vllm", ["tree-16-d8-k10", "own:3:4:8", "plain"]) == ["plain", "tree-16-d8-k10"]
    assert chosen("sglang", []) == list(names.NAMES["sglang"])


def test_an_engine_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="no an_engine in .*python"):
        interpreter("an_engine", "")


def test_plugins_are_told_of_without_an_installation(tmp_path: Path) -> None:
    from importlib.metadata import distributions

    (found,) = distributions(path=[str(plugin_site(tmp_path))])
    points = {(point.group, point.value) for point in found.entry_points}
    assert ("vllm.general_plugins", "eagle3_vllm:register") in points
    assert ("sglang.srt.plugins", "eagle3_sglang:register") in points
