"""vLLM's engine in a process of its own, for tests and benchmarks: a job of JSON goes in, tokens and counters come out.

In one process (no engine core beside it) it starts in seconds, and its counters can be asked. Model Runner V2 runs on a
CPU through Triton's interpreter (`tests/engines/mrv2_on_cpu`), slowly and exactly.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from eagle3_serving.errors import CheckError

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "tests" / "engines" / "mrv2_on_cpu"


@dataclass
class Round:
    """Prompts as token ids, handed in together, with vLLM's sampling parameters for each (or for all). `abort` prompts
    by place are aborted after that many engine steps."""

    prompts: Sequence[Sequence[int]]
    params: dict[str, Any] | Sequence[dict[str, Any]] = field(default_factory=dict)
    abort: dict[int, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        params = [self.params] * len(self.prompts) if isinstance(self.params, dict) else list(self.params)
        return {"prompts": [list(p) for p in self.prompts], "params": params, "abort": self.abort}


@dataclass
class Job:
    """`nodes` 0 is plain decoding. `runner` 1 or 2. `engine`: further arguments of `vllm.LLM`. `settings`: environment.

    `hands_on`: run after these rounds while this engine still stands, as the decoder of what it has read: the requests of its one
    round are told where the keys and values of this one's last round lie (a KV connector's `kv_transfer_params`)."""

    target: Path
    rounds: Sequence[Round]
    drafter: Path | None = None
    nodes: int = 0
    runner: int = 2
    engine: dict[str, Any] = field(default_factory=dict)
    speculative: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    hands_on: "Job | None" = None

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "Job":
        """Of what `dataclasses.asdict` made of one, through JSON; `hands_on` goes no further."""
        drafter = told["drafter"] and Path(told["drafter"])
        rounds = [Round(**part) for part in told["rounds"]]
        return cls(**{**told, "target": Path(told["target"]), "drafter": drafter, "rounds": rounds, "hands_on": None})


def run(job: Job, timeout_s: float = 3600.0) -> dict[str, Any]:
    """What came out: `rounds` (`tokens`, `seconds`, and where asked for `logprobs`, `drafted` and `accepted` by step), `metrics`, `blocks` (free KV blocks
    before and after), `log`, over several ranks `last_drafts` of each, `handed_on`: what came out there. Raises CheckError with the log's end where the engine failed."""
    arguments: dict[str, Any] = {
        "model": str(job.target),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 1024,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        **job.engine,
    }
    if job.drafter is not None and job.nodes:
        method = {"method": "eagle3", "model": str(job.drafter), "num_speculative_tokens": job.nodes}
        arguments["speculative_config"] = {**method, **job.speculative}
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_USE_V2_MODEL_RUNNER": str(job.runner - 1),
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # a function of this file is sent to other ranks
        **job.settings,
    }
    if job.runner == 2:
        environment["PYTHONPATH"] = os.pathsep.join([str(SHIM), *filter(None, [environment.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="eagle3-vllm-") as folder:
        paths = [Path(folder) / name for name in ("job.json", "out.json", "log.txt")]
        told = {"engine": arguments, "rounds": [r.to_json() for r in job.rounds]}
        if job.hands_on is not None:
            told["hands_on"] = asdict(job.hands_on)
        paths[0].write_text(json.dumps(told, default=str))
        with paths[2].open("wb") as log:
            command = [sys.executable, "-m", "benchmarks.vllm_engine", *map(str, paths[:2])]
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=timeout_s, check=False
            )
        text = paths[2].read_text(errors="replace")
        if done.returncode or not paths[1].exists():
            raise CheckError("the engine failed: " + " | ".join(text.splitlines()[-12:]))
        result: dict[str, Any] = {**json.loads(paths[1].read_text()), "log": text}
        return result


def _child(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    ranks, interpreted = job["engine"].get("tensor_parallel_size", 1), os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    if interpreted:
        _stand_in()
    llm = LLM(**job["engine"])
    if interpreted and ranks > 1:
        llm.collective_rpc(_stand_in)
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    before = pool.get_num_free_blocks()
    rounds = [_round(llm, part, SamplingParams) for part in job["rounds"]]
    handed_on = _hand_on(Job.from_json(job["hands_on"]), rounds[-1]["transfer"]) if "hands_on" in job else None
    if interpreted:
        from vllm.v1.worker.gpu import model_runner

        for trees in (getattr(model_runner, "eagle3_trees", None) or {}).values():
            trees.tally.write()  # the last second's counts too
    if (gating := getattr(scheduler, "eagle3_gating", None)) is not None:
        gating.tally.write()
    metrics: dict[str, Any] = {}
    for metric in llm.get_metrics():
        labels = {k: v for k, v in metric.labels.items() if k not in ("engine", "model_name")}
        value = getattr(metric, "value", getattr(metric, "values", None))
        name = "".join([metric.name, *(f"{{{k}={v}}}" for k, v in sorted(labels.items()))])
        metrics[name] = value
    result = {"rounds": rounds, "metrics": metrics, "blocks": [before, pool.get_num_free_blocks()]}
    if ranks > 1:
        result["last_drafts"] = llm.collective_rpc(_last_drafts)
    if handed_on is not None:
        result["handed_on"] = handed_on
    return result


def _hand_on(job: Job, transfer: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What another engine makes of the requests whose keys and values this one holds, each told where."""
    (part,) = job.rounds
    assert isinstance(part.params, dict)
    told = [{**part.params, "extra_args": {"kv_transfer_params": one}} for one in transfer]
    return run(replace(job, rounds=[replace(part, params=told)]))


def _stand_in(worker: Any = None) -> None:
    """In this process, or in a rank's: what Triton's interpreter trips up on is PyTorch's."""
    from torch_kernels import stand_in

    stand_in()


def _last_drafts(worker: Any) -> list[list[list[int]]]:
    """Of one rank: parents and tokens of the last tree that was drafted in each slot; nothing where chains are drafted."""
    runner = worker.model_runner
    trees = getattr(getattr(runner, "speculator", None), "trees", None)
    if trees is None:
        return []
    slots, nodes = runner.req_states.draft_tokens.shape
    return [trees.parents_SK[:slots, :nodes].tolist(), runner.req_states.draft_tokens.tolist()]


def _round(llm: Any, part: dict[str, Any], params_type: Any) -> dict[str, Any]:
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    engine, done, transfer = llm.llm_engine, {}, {}
    begun = time.perf_counter()
    for place, (prompt, said) in enumerate(zip(part["prompts"], part["params"], strict=True)):
        said = dict(said)
        if "structured_outputs" in said:
            said["structured_outputs"] = StructuredOutputsParams(**said["structured_outputs"])
        if "logit_bias" in said:  # JSON has text for keys
            said["logit_bias"] = {int(token): bias for token, bias in said["logit_bias"].items()}
        params = params_type(**said, output_kind=RequestOutputKind.FINAL_ONLY)
        engine.add_request(f"{place}-{begun}", {"prompt_token_ids": prompt}, params)
    abort = {int(place): steps for place, steps in part["abort"].items()}
    steps = 0
    while engine.has_unfinished_requests():
        gone = [place for place, after in abort.items() if after == steps]
        if gone:
            engine.abort_request([f"{place}-{begun}" for place in gone])
        for output in engine.step():
            if output.finished:
                place = int(output.request_id.split("-")[0])
                done[place], transfer[place] = output.outputs[0], output.kv_transfer_params
        steps += 1
    places = range(len(part["prompts"]))
    result: dict[str, Any] = {
        "tokens": [list(done[p].token_ids) if p in done else None for p in places],
        "seconds": time.perf_counter() - begun,
        "steps": steps,
    }
    if any(transfer.values()):
        result["transfer"] = [transfer.get(p) for p in places]
    told = [getattr(done[p], "spec_decode_metrics", None) if p in done else None for p in places]
    if any(told):  # asked for by `per_request_spec_decode_metrics`
        result["drafted"] = [one and list(one.per_step_drafted) for one in told]
        result["accepted"] = [one and list(one.per_step_accepted) for one in told]
    if any(done[p].logprobs for p in places if p in done):
        result["logprobs"] = [
            [{str(t): lp.logprob for t, lp in row.items()} for row in done[p].logprobs or []] if p in done else None
            for p in places
        ]
    return result


if __name__ == "__main__":
    out = Path(sys.argv[2])
    out.write_text(json.dumps(_child(json.loads(Path(sys.argv[1]).read_text()))))
