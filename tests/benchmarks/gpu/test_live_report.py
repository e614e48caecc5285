"""What is said of a race: simulated acceptance is called so, an unknown one stays unknown, ratios are of one round."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import sglang_step, vllm_step
from benchmarks.gpu.live import report, sglang_engine
from benchmarks.gpu.live.bars import PAIR, bars
from benchmarks.gpu.live.contenders import Contender, Pair
from benchmarks.gpu.live.identity import compare
from benchmarks.gpu.live.load import Load, figures, spread, steady
from benchmarks.gpu.live.pairs import SMALL, pairs
from benchmarks.gpu.live.profile import Profile, counted, parts_of
from benchmarks.gpu.live.step import course, in_turn, kv_gib, seconds_for
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.simulate import AcceptanceLaw, expected_length
from benchmarks.gpu.sink import Sink, Unavailable
from benchmarks.gpu.summary import table
from eagle3_serving.engine.draft import TreeShape

LAW = {"rate": 0.8, "siblings": 0.75}
CPU = torch.device("cpu")


def row(name: str, flight: int, turn: int, ms: float, simulated: bool = True, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"key": f"8B shape/{name}/at {flight}/round {turn}", "pair": "8B shape", "contender": name}
    made |= {"shape": None, "simulated": simulated, "law": LAW, "in_flight": flight, "round": turn}
    made |= {"step_ms": ms, "step_ms_mean": ms, "measured_accepted_length": 1.0, "nodes": 0.0, "drafts": 0}
    return made | more


def test_a_ratio_is_of_one_round_and_by_the_law_of_its_shape() -> None:
    tree: dict[str, Any] = {"shape": [16, 5, 4], "drafts": 9, "nodes": 16.0}
    rows = [row("plain", 1, 0, 6.0), row("plain", 1, 1, 12.0)]
    rows += [row("tree-16", 1, 0, 12.0, **tree), row("tree-16", 1, 1, 24.0, **tree)]
    plain, found = report.results(rows)
    length = expected_length(AcceptanceLaw(**LAW), TreeShape(16, 5, 4))
    assert 4.2 < length < 4.5
    assert found["accepted_length"] == round(length, 3) and found["to_plain"] == round(length / 2, 3)
    assert found["simulated"] is True and found["law"] == LAW and found["step_ms_range"] == [12.0, 24.0]
    assert plain["to_plain"] == 1.0 and plain["accepted_length"] == 1.0


def test_what_auto_drafted_decides_its_length() -> None:
    def auto(**more: Any) -> float | None:
        rows = [row("plain", 1, 0, 6.0), row("auto", 1, 0, 6.0, **more)]
        start = {"key": "8B shape/auto/start", "pair": "8B shape", "contender": "auto", "drafts_chains": chains}
        length: float | None = report.results([*rows, start])[1]["accepted_length"]
        return length

    chains = True
    assert auto(drafts=0) == 1.0
    chain = round(expected_length(AcceptanceLaw(**LAW), TreeShape.chain(3)), 3)
    assert auto(drafts=5, nodes=3.0) == chain
    chains = False
    assert auto(drafts=5, nodes=11.4) is None


def test_a_measured_length_is_the_engines() -> None:
    rows = [row("plain", 4, 0, 6.0, False), row("tree-16", 4, 0, 9.0, False, measured_accepted_length=2.4)]
    found = report.results(rows)[1]
    assert found["accepted_length"] == 2.4 and found["to_plain"] == 1.6 and "law" not in found


def test_the_table_says_simulated_and_failed(tmp_path: Path) -> None:
    labels = {"pair": "8B shape", "contender": "tree-16", "simulated": True, "law": LAW}
    rows = [row("plain", 1, 0, 6.0), row("tree-16", 1, 0, 10.9, shape=[16, 5, 4], drafts=3, nodes=16.0)]
    rows += [{"key": "8B shape/tree-16/start", **labels, "start_s": 43.1, "graphs": "FULL", "graph_gib": 0.9}]
    counts = {"parts_ms": {"propose": 4.4}, "launches": 21.0, "memcpys": 6.0, "syncs": 0.0}
    rows += [{"key": "8B shape/tree-16/detail at 1", **labels, "in_flight": 1, **counts}]
    rows += [{"key": "8B shape/tree-60/start", **labels, "contender": "tree-60", "ok": False, "why": "no memory"}]
    sink = Sink(tmp_path / "vllm.jsonl", {})
    for one in rows:
        sink.add(**one)
    report.add_results(sink)
    report.add_results(sink)
    assert [r["key"] for r in sink.rows if "to_plain" in r] == ["8B shape/plain/at 1", "8B shape/tree-16/at 1"]
    said = table(report.table(sink.rows, "vllm"))
    for words in (
        "SIMULATED acceptance",
        "10.90",
        "21/6/0",
        "43.1",
        "propose 4.4",
        "tree-60: FAILED: no memory",
        "9.5: 10.9, MISSED",
    ):
        assert words in said, words


def test_bars_are_met_missed_or_unproven() -> None:
    def one(name: str, flight: int, ms: float, ratio: float | None) -> dict[str, Any]:
        return {"pair": PAIR, "contender": name, "in_flight": flight, "step_ms": ms, "to_plain": ratio}

    found = [one("plain", 1, 6.4, 1.0), one("plain", 4, 6.5, 1.0), one("vllm-chain-3", 1, 7.8, 2.4)]
    found += [one("tree-16-d6-k10", 1, 9.4, 3.0), one("tree-60", 1, 12.5, 3.1), one("load", 1, 9.4, 2.3)]
    found += [one("load", 4, 9.5, None), one("3:4:8", 8, 9.6, 1.0), {**one("tree-16", 4, 1.0, 9.0), "pair": "real"}]
    details = [{"contender": "tree-16-d6-k10", "launches": n, "syncs": 0.2} for n in (21.0, 26.0)]
    said = {bar.what: str(bar).rsplit(": ", 1)[1] for bar in bars(found, details, "vllm")}
    assert said["a tree of 16, ms at 1"] == "9.4, met" and said["a tree of 16, ms at 4"] == "unproven"
    assert said["a tree of 60, ms at 1"] == "12.5, MISSED"
    assert said["a tree of 16, launches a step"] == "26, MISSED" and said["a tree of 16, syncs a step"] == "0.2, MISSED"
    assert said["the best tree, simulated, x the best chain at 1"] == "1.292, met"
    assert said["the best tree, simulated, x plain at 1"] == "3.1, met"
    better = "load, x the better of plain and vllm-chain-3 at"
    assert said[f"{better} 1"] == "0.958, MISSED" and said[f"{better} 4"] == "unproven"
    of_sglang = {bar.what: str(bar).rsplit(": ", 1)[1] for bar in bars(found, [], "sglang")}
    assert of_sglang["SGLang, 3:4:8, ms at 8"] == "9.6, met" and of_sglang["SGLang, 3:4:8, ms at 1"] == "unproven"


def test_answers_are_held_against_plain_ones() -> None:
    prompts, plain = ((1,), (2,)), [[5, 6, 7], [5, 5, 5]]
    said = [[5, 6, 7], [5, 8, 5], [5, 6, 9], [5, 5, 5]]
    asked: list[tuple[list[int], int, int]] = []

    def between(text: list[int], one: int, other: int) -> float:
        asked.append((text, one, other))
        return 0.2 if other == 8 else gap

    gap = 0.3
    gaps: Any = SimpleNamespace(between=between)
    found = compare(prompts, plain, said, gaps, exact=False)
    assert found == {"answers": 4, "differing": 2, "first_places": [1, 2], "largest_gap": 0.3, "ok": True}
    assert asked == [([2, 5], 5, 8), ([1, 5, 6], 7, 9)]
    gap = 0.6
    assert compare(prompts, plain, said, gaps, exact=False)["ok"] is False
    assert compare(prompts, plain, said[:2], gaps, exact=True)["ok"] is False
    assert compare(prompts, plain, plain, gaps, exact=True)["ok"] is True


def test_gaps_are_the_targets_own(tmp_path: Path) -> None:
    from benchmarks.gpu.live.identity import Gaps
    from benchmarks.gpu.live.pairs import toy_pair
    from eagle3_serving.engine import DecodeOptions, EmbeddedEngine

    pair = toy_pair(tmp_path, Settings(device="cpu", tiny=True))
    gaps = Gaps(pair.target, CPU)
    engine = EmbeddedEngine.load(pair.target, None, torch.float32, "cpu")
    prompt = pair.prompts[0]
    said = engine.generate(list(prompt), DecodeOptions(4, "plain", eos_ids=())).token_ids
    logits_V = gaps._logits([*prompt, *said[:2]], 1)[0]
    assert int(logits_V.argmax()) == said[2]
    other = int(logits_V.topk(2).indices[1])
    best = logits_V.topk(2).values
    assert gaps.between([*prompt, *said[:2]], said[2], other) == pytest.approx(float(best[0] - best[1]))
    assert 0 <= gaps.close_share(prompt, said) <= 1


def test_figures_of_a_load() -> None:
    done = figures(Load([[1, 2]], 2.0, [1.0, 2.0, 9.0], 30, 10, 5, 40), 4)
    assert done["step_ms"] == 2.0 and done["step_ms_mean"] == 4.0 and done["steps"] == 3
    assert done["measured_accepted_length"] == 3.0 and done["nodes"] == 8.0
    assert done["tokens_per_second"] == 3000.0
    assert spread([])["step_ms"] is None
    assert figures(Load([[1]], 2.0), 1)["tokens_per_second"] is None
    assert steady([5.0, 6.0], 0.1) == [5.0, 6.0] and not steady([5.0, 4.0], 0.1), "steps that ran ahead are no figure"


def test_a_step_of_sglang_is_the_difference_of_two_batches() -> None:
    engine = object.__new__(sglang_engine.Engine)
    drafted: list[int] = []

    def batch(prompts: Sequence[Sequence[int]], tokens: int) -> sglang_engine.Batch:
        """A second before the first step, 10 ms a pass; the second request takes the fewer passes."""
        drafted.append(tokens)
        got = []
        for n in range(len(prompts)):
            passes = (tokens - 1) // (1 + n)
            about = {"spec_verify_ct": passes, "spec_num_proposed_drafts": 7 * passes} if speculative else {}
            got.append({"output_ids": [n] * tokens, "meta_info": about})
        return sglang_engine.Batch(1 + 0.01 * (tokens - 1), got)

    engine._batch = batch  # type: ignore[method-assign]
    for speculative, passes in ((True, 8 + 4), (False, 8 + 8)):
        done = Load(**engine.load([[1], [2], [3]], 2, 9))
        # the third has no company: a batch of another size is another figure
        assert len(done.answers) == 2 and done.step_ms == pytest.approx([10.0] * 3)
        assert (done.tokens, done.passes) == (16, passes)
        assert figures(done, 2)["nodes"] == (7.0 if speculative else 0.0)
    assert drafted[:2] == [2, 9]
    assert sglang_engine.graph_gib({"decode": 0.5, "draft": 0.25}) == 0.75 and sglang_engine.graph_gib(None) is None


def test_launches_copies_and_waits_are_counted_a_step() -> None:
    calls = {"cudaLaunchKernel": 90, "cuLaunchKernelEx": 5, "cudaGraphLaunch": 10, "cudaMemcpyAsync": 30}
    calls |= {"cudaStreamSynchronize": 11, "cudaEventSynchronize": 5, "cudaDeviceSynchronize": 2, "aten::mm": 70}
    events = [SimpleNamespace(key=key, count=n, self_device_time_total=0.0) for key, n in calls.items()]
    events.append(SimpleNamespace(key="a kernel", count=3, self_device_time_total=5e4))
    wanted = {"launches": 21.0, "graph_launches": 2.0, "memcpys": 6.0, "syncs": 2.2, "event_waits": 1.0}
    assert counted(events, 5) == wanted | {"kernels_ms": 10.0}


def test_the_profiler_sees_the_steps_that_it_is_told_of() -> None:
    profile = Profile(CPU, steps=2, skip=1)
    ended = []
    for step in range(1, 5):
        torch.ones(3).add_(step)
        ended.append(profile.step(step))
    assert ended == [False, False, True, True]
    adds = [event.count for event in profile.profiler.key_averages() if event.key == "aten::add_"]
    assert adds == [2]
    assert Profile(CPU, 2, 1).counts()["launches"] is None


def test_parts_are_timed_and_left_as_they_were() -> None:
    class Runner:
        def step(self, value: int) -> int:
            return value + 1

    runner = Runner()
    own = Runner()
    own.step = lambda value: value + 2  # type: ignore[method-assign]
    with parts_of([(runner, "step", "one"), (own, "step", "other")], CPU) as parts:
        assert runner.step(1) == 2 and own.step(1) == 3 and runner.step(2) == 3
    assert {name: len(times) for name, times in parts.times_ms.items()} == {"one": 2, "other": 1}
    assert "step" not in vars(runner) and own.step(1) == 3 and set(parts.medians()) == {"one", "other"}


# ---- what is started


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return pairs(Settings(device="cpu", tiny=True, pairs=("shape",)), tmp_path)[0]


def on_cuda(module: Any, pair: Pair, **more: Any) -> dict[str, Contender]:
    made: list[Contender] = module.contenders(pair, Settings(device="cuda", target="t", **more))
    return {contender.name: contender for contender in made}


def test_vllm_is_started_as_it_is_named(pair: Pair) -> None:
    found = on_cuda(vllm_step, pair)
    assert list(found) == ["plain", "vllm-chain-3", "tree-16", "load", "tree-60", "tree-8", "chain-3", "auto"]
    assert "speculative_config" not in found["plain"].arguments and not found["plain"].environment
    modes = {name: one.environment.get("EAGLE3_MODE") for name, one in found.items()}
    assert modes["vllm-chain-3"] == "vllm" and modes["chain-3"] == "chain" and modes["auto"] == "auto"
    tree = found["tree-16"]
    assert tree.environment == {"EAGLE3_TREE_DEPTH": "5", "EAGLE3_TREE_TOP_K": "4", "EAGLE3_MODE": "tree"}
    assert tree.arguments["speculative_config"]["num_speculative_tokens"] == 16
    assert tree.arguments["load_format"] == "dummy" and tree.arguments["dtype"] == "bfloat16"
    compilation = tree.arguments["compilation_config"]
    assert compilation == {"cudagraph_capture_sizes": [1, 4, 16, 17, 64, 68, 272, 1088]}
    sizes = found["tree-60"].arguments["compilation_config"]["cudagraph_capture_sizes"]
    assert max(sizes) == 16 * 61  # 64 requests of 61 rows run without a graph
    load = found["load"].environment
    assert load["EAGLE3_TREES"] == "0;3,1,4;4,3,9;5,4,17;8,10,61" and load["EAGLE3_MODE"] == "tree"
    # nothing is right here: the choice goes by what the law gives each tree
    gains = dict(part.split(":") for part in load["EAGLE3_ASSUMED_GAINS"].split(";"))
    assert (
        list(gains) == ["4", "9", "17", "61"] and 1.9 < float(gains["4"]) < float(gains["17"]) < float(gains["61"]) < 6
    )
    assert found["load"].arguments["speculative_config"]["num_speculative_tokens"] == 60
    told = on_cuda(
        vllm_step, pair, graph_mode="PIECEWISE", attention_backend="FLASHINFER", contenders=("tree-8", "tree-8-fp8")
    )
    assert told["tree-8-fp8"].environment == told["tree-8"].environment | {"EAGLE3_DRAFTER_WEIGHTS": "fp8"}
    assert told["tree-8"].arguments["compilation_config"]["cudagraph_mode"] == "PIECEWISE"
    assert "cudagraph_mode" not in told["plain"].arguments["compilation_config"]
    assert told["plain"].arguments["attention_backend"] == "FLASHINFER"
    exact = on_cuda(vllm_step, pair, engine_dtype="float32")["tree-8"].arguments
    assert exact["dtype"] == "float32"


def test_sglang_is_started_as_it_is_named(pair: Pair, tmp_path: Path) -> None:
    found = on_cuda(sglang_step, pair)
    assert list(found) == ["plain", "own:3:4:8", "auto", "3:4:8", "own-adaptive", "5:4:12", "1:4:3"]
    switches = [one.environment["EAGLE3_SERVING"] for one in found.values()]
    assert switches == ["off", "off", "on", "on", "off", "on", "on"]
    assert "speculative_algorithm" not in found["plain"].arguments
    tree = found["5:4:12"].arguments
    flags = [tree[f"speculative_{name}"] for name in ("num_steps", "eagle_topk", "num_draft_tokens")]
    assert flags == [5, 4, 12] and found["5:4:12"].shape == TreeShape(11, 5, 4)
    assert found["auto"].environment["EAGLE3_TREES"] == "default" and found["auto"].shape is None
    assert "speculative_num_steps" not in found["auto"].arguments
    assert found["own-adaptive"].arguments["speculative_adaptive"] is True
    assert sglang_step.environment(tree_of := found["auto"], Settings(), tmp_path / "c")["EAGLE3_CHECK"] == "off"
    assert tree_of.arguments["cuda_graph_bs_decode"] == [1, 4, 16, 64]


def test_graph_memory_is_read_from_sglangs_log() -> None:
    log = "Capture target decode CUDA graph end. elapsed=1.20 s, mem usage=0.25 GB, avail mem=3.00 GB.\n" * 2
    log += "Load weight end. mem usage=15.00 GB.\n"
    assert sglang_step.GRAPH_MEMORY.findall(log) == ["0.25", "0.25"]


def test_pairs_are_what_was_asked_for(tmp_path: Path) -> None:
    settings = Settings(device="cpu", tiny=True)
    made = pairs(settings, tmp_path)
    assert [(p.name, p.dummy) for p in made] == [("small shape", True), ("toy", False)]
    assert not list((made[0].target).glob("*.safetensors")) and list(made[1].target.glob("*.safetensors"))
    assert (made[0].drafter / "model.safetensors").is_file()
    with pytest.raises(Unavailable, match="--pairs real wants --target"):
        pairs(Settings(device="cpu", pairs=("real",)), tmp_path)
    # a GiB a weight of two bytes, keys and values of eight layers, two heads of 32
    assert kv_gib(made[0].target, 2**20, 2) == pytest.approx(1.1 * 2**20 * 8 * 2 * 2 * 32 * 2 / 2**30)
    assert SMALL.hidden // SMALL.heads == 32


def test_the_best_comes_first_of_every_pair(pair: Pair) -> None:
    other = replace(pair, name="other")
    lists = [[Contender(n, p, None, 1.0) for n in names] for p, names in ((pair, "abc"), (other, "ab"))]
    assert [c.key for c in in_turn(lists)][:4] == ["small shape/a", "other/a", "small shape/b", "other/b"]


def test_the_deadline_stays_within_the_steps_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLE3_STEP_MINUTES", "10")
    assert seconds_for(Settings()) == 585.0
    assert seconds_for(Settings(deadline=300.0)) == 300.0
    assert seconds_for(Settings(deadline=900.0)) == 585.0
    assert course(Settings(in_flight=(1, 4)), details=True).detail_at == (1,)
    assert course(Settings(), details=False).detail_at == ()
