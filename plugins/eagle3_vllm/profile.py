"""Measure what steps cost and drafts yield on this machine, for `EAGLE3_PROFILE`.

    python -m eagle3_vllm.profile --model TARGET --drafter DRAFTER --out profile.json
    python -m eagle3_vllm.profile --model TARGET --drafter DRAFTER --batches 1 8 32 --tokens 1 2 4 --dtype bfloat16 --out p.json

Two engines, one plain and one with the drafter, take turns, so that a busy minute hits both. It runs on whichever model
runner vLLM chooses. On two CPU cores it takes some minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.serve.vllm import VllmOptions, vllm_environment
from eagle3_vllm.schedule import Profile

PROMPTS = (
    "Explain how a kite flies, step by step, to a curious child.",
    "Write a Python function that returns the prime numbers below n, with a short docstring.",
    "A shop sells pens at 3 for 2 euros. What do 27 pens cost? Show each step.",
    "Write a friendly letter to a neighbour who looked after the garden in summer.",
)
STEPS, WARM_UP = 24, 4
SETTLE_S = 0.3  # OpenMP's threads spin for 0.2 s after their last work, and would slow the other engine's first steps


class Engine:
    """A vLLM engine in a child process that times steps when asked."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        # the environment that `eagle3 serve` gives: on a CPU the threads it serves with
        environment = {**os.environ, **vllm_environment(VllmOptions(Path(arguments["model"])))}
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "EAGLE3_MODE": "chain"}
        environment.pop("EAGLE3_PROFILE", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "--child", json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def ask(self, batch: int, tokens: int) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        time.sleep(SETTLE_S)
        try:
            self.process.stdin.write(json.dumps({"batch": batch, "tokens": tokens}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise CheckError("the engine ended at start; start the server itself to see why") from None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise CheckError(f"the engine ended (exit code {self.process.wait()}); start the server itself to see why")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def measure(
    model: str, drafter: str, batches: Sequence[int], tokens: Sequence[int], repeats: int, engine: dict[str, Any]
) -> Profile:
    """The median of `repeats` rounds; in every round each batch size with each number of tokens has its turn."""
    arguments = {"model": model, "max_num_seqs": max(batches), **engine}
    most = max(tokens)
    speculative = {
        "method": "eagle3",
        "model": drafter,
        "num_speculative_tokens": most,
        "num_speculative_tokens_per_batch_size": [[1, max(batches), most]],
    }
    engines = [Engine(arguments), Engine({**arguments, "speculative_config": speculative})]
    seconds: dict[tuple[int, int], list[float]] = {}
    accepted, drafts = [0] * most, 0
    idle: dict[int, list[float]] = {}
    try:
        with tqdm(total=repeats * len(batches), desc="measuring steps", unit="batch size") as bar:
            for _ in range(repeats):
                for batch in batches:
                    for k in (0, *tokens):
                        answer = engines[k > 0].ask(batch, k)
                        seconds.setdefault((batch, k), []).append(answer["seconds"])
                        if k == most:
                            drafts += answer["drafts"]
                            accepted = [a + b for a, b in zip(accepted, answer["accepted"], strict=True)]
                    # what the drafter costs where nothing is drafted
                    idle.setdefault(batch, []).append(engines[1].ask(batch, 0)["seconds"])
                    bar.update()
    finally:
        for one in engines:
            one.stop()
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    about = {
        "model": Path(model).name,
        "drafter": Path(drafter).name,
        "engine": engine,
        "repeats": repeats,
        "idle_drafter": {str(b): round(medians[b, 0] / statistics.median(s), 4) for b, s in idle.items()},
    }
    table = {b: {k: medians[b, k] for k in (0, *tokens)} for b in batches}
    return Profile(tuple(a / max(drafts, 1) for a in accepted), table, about)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the target, as vLLM takes it")
    parser.add_argument("--drafter", help="the drafter, as vLLM takes it")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="requests in flight")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 3, 4], help="draft tokens a step")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--out", type=Path, help="the profile")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        return _child(json.loads(args.child))
    for name in ("model", "drafter", "out"):
        if getattr(args, name) is None:
            parser.error(f"--{name} is needed")
    engine = {"dtype": args.dtype, "max_model_len": args.max_model_len, "enforce_eager": args.enforce_eager}
    try:
        profile = measure(args.model, args.drafter, sorted(args.batches), sorted(args.tokens), args.repeats, engine)
    except (CheckError, InputError) as error:
        print(f"eagle3: {error}", file=sys.stderr)
        return 1
    profile.save(args.out)
    for first, last, tokens in profile.schedule(max(args.tokens)):
        print(f"batch {first}-{last}: {tokens} draft tokens")
    return 0


def _child(arguments: dict[str, Any]) -> int:
    from vllm import LLM, SamplingParams

    llm = LLM(**arguments, disable_log_stats=False, enable_prefix_caching=False)
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    tokenizer = llm.get_tokenizer()
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    for line in sys.stdin:
        asked = json.loads(line)
        if scheduler.dynamic_sd_lookup is not None:
            scheduler.dynamic_sd_lookup[:] = [asked["tokens"]] * len(scheduler.dynamic_sd_lookup)
        before = _counters(llm)
        params = SamplingParams(
            temperature=0, max_tokens=(STEPS + WARM_UP + 2) * (asked["tokens"] + 1), ignore_eos=True
        )
        names = [f"{time.perf_counter_ns()}-{place}" for place in range(asked["batch"])]
        for place, name in enumerate(names):
            engine.add_request(name, {"prompt_token_ids": prompts[place % len(prompts)]}, params)
        seconds = []
        for _ in range(STEPS + WARM_UP):
            begun = time.perf_counter()
            engine.step()
            seconds.append(time.perf_counter() - begun)
        engine.abort_request(names)
        while engine.has_unfinished_requests():
            engine.step()
        engine.step()
        after = _counters(llm)
        spent = [b - a for a, b in zip(before, after, strict=True)]
        answer = {"seconds": statistics.median(seconds[WARM_UP:]), "drafts": spent[0], "accepted": spent[1:]}
        print("\n" + json.dumps(answer), flush=True)
    return 0


def _counters(llm: Any) -> list[int]:
    """Drafts, then accepted tokens by position."""
    found = {metric.name: metric for metric in llm.get_metrics()}
    if "vllm:spec_decode_num_drafts" not in found:
        return [0]
    return [
        found["vllm:spec_decode_num_drafts"].value,
        *found["vllm:spec_decode_num_accepted_tokens_per_pos"].values,
    ]


if __name__ == "__main__":
    raise SystemExit(main())
