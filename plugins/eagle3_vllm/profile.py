"""Measure what steps cost and drafts yield on this machine, for `EAGLE3_PROFILE`.

    python -m eagle3_vllm.profile --model TARGET --drafter DRAFTER --out profile.json
    python -m eagle3_vllm.profile --model TARGET --drafter DRAFTER --batches 1 8 32 --tokens 1 2 4 --dtype bfloat16 --out p.json
    python -m eagle3_vllm.profile --model TARGET --drafter DRAFTER --prompts mine.jsonl --out profile.json

Two engines, one plain and one with the drafter, take turns, so that a busy minute hits both. It runs on whichever model
runner vLLM chooses. On two CPU cores it takes some minutes.
"""

import argparse
import itertools
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

from eagle3_serving.cli.arguments import add_dtype
from eagle3_serving.dtypes import ENGINES
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.serve.vllm import VllmOptions, vllm_environment
from eagle3_serving.tune.traffic import OURS
from eagle3_vllm.schedule import Profile, Watched

PROMPTS = OURS[:4]
STEPS, WARM_UP = 24, 4
ANSWER = 64
MAX_MODEL_LEN = 1024
DRAFTED = 8  # no more tokens a step are measured
ROOM = (STEPS + WARM_UP + 2) * (DRAFTED + 1)  # tokens that the timed steps may add to a prompt
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

    def ask(self, batch: int, tokens: int, first: int = 0) -> dict[str, Any]:
        """What steps of `batch` requests with a chain of `tokens` take, on the prompts from the one numbered `first` on."""
        return self._asked({"batch": batch, "tokens": tokens, "first": first})

    def watch(self, batch: int, tokens: int, answer: int) -> list[Watched]:
        """Every prompt with a chain of `tokens`, until it has `answer` tokens."""
        found = self._asked({"batch": batch, "tokens": tokens, "answer": answer})["watched"]
        return [Watched(prompt, tuple(accepted)) for prompt, accepted in found]

    def _asked(self, job: dict[str, int]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        time.sleep(SETTLE_S)
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
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
    model: str,
    drafter: str,
    batches: Sequence[int],
    tokens: Sequence[int],
    repeats: int,
    engine: dict[str, Any],
    prompts: Sequence[str] = PROMPTS,
    answer: int = ANSWER,
) -> Profile:
    """The median of `repeats` rounds; in every round each batch size with each number of tokens has its turn. Acceptance
    is that of whole answers of `answer` tokens to `prompts`."""
    arguments = {"model": model, "max_num_seqs": max(batches), "prompts": list(prompts), "answer": answer, **engine}
    most = max(tokens)
    speculative = {
        "method": "eagle3",
        "model": drafter,
        "num_speculative_tokens": most,
        "num_speculative_tokens_per_batch_size": [[1, max(batches), most]],
    }
    engines = [Engine(arguments), Engine({**arguments, "speculative_config": speculative})]
    seconds: dict[tuple[int, int], list[float]] = {}
    prefill: dict[str, list[tuple[int, float]]] = {"plain": [], "drafting": []}
    idle: dict[int, list[float]] = {}
    try:
        with tqdm(total=repeats * len(batches) + 1, desc="measuring", unit="batch size") as bar:
            watched = engines[1].watch(max(batches), most, answer)
            bar.update()
            first = 0
            for _ in range(repeats):
                for batch in batches:
                    for k in (0, *tokens):
                        timed = engines[k > 0].ask(batch, k, first)
                        seconds.setdefault((batch, k), []).append(timed["seconds"])
                        prefill["drafting" if k else "plain"].append((timed["prompt_tokens"], timed["prefill"]))
                    # what the drafter costs where nothing is drafted
                    idle.setdefault(batch, []).append(engines[1].ask(batch, 0, first)["seconds"])
                    first += batch
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
    steps = max(1, sum(len(one.accepted) for one in watched))
    acceptance = tuple(sum(n > place for one in watched for n in one.accepted) / steps for place in range(most))
    return Profile(acceptance, table, about, {name: line(seen) for name, seen in prefill.items()}, tuple(watched))


def line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds at no token, and a token more, by least squares; neither is negative. `points` are (tokens, seconds)."""
    tokens, seconds = zip(*points, strict=True)
    if len(set(tokens)) > 1:
        each, once = statistics.linear_regression(tokens, seconds)
        if each >= 0 and once >= 0:
            return once, each
    return 0.0, sum(seconds) / sum(tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the target, as vLLM takes it")
    parser.add_argument("--drafter", help="the drafter, as vLLM takes it")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="requests in flight")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 3, 4], help="draft tokens a step")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument(
        "--prompts", type=Path, nargs="+", help="JSONL files of your own traffic (default: four of ours)"
    )
    parser.add_argument("--answer", type=int, default=ANSWER, help=f"tokens an answer (default {ANSWER})")
    add_dtype(parser, "auto")
    parser.add_argument("--max-model-len", type=int, default=MAX_MODEL_LEN)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--out", type=Path, help="the profile")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        return _child(json.loads(args.child))
    for name in ("model", "drafter", "out"):
        if getattr(args, name) is None:
            parser.error(f"--{name} is needed")
    engine = {"dtype": ENGINES[args.dtype], "max_model_len": args.max_model_len, "enforce_eager": args.enforce_eager}
    try:
        prompts = [prompt.turns[0] for prompt in read_prompts(args.prompts)] if args.prompts else PROMPTS
        sizes = sorted(args.batches), sorted(args.tokens)
        profile = measure(args.model, args.drafter, *sizes, args.repeats, engine, prompts, args.answer)
    except (CheckError, InputError) as error:
        print(f"eagle3: {error}", file=sys.stderr)
        return error.exit_code
    profile.save(args.out)
    for first, last, tokens in profile.schedule(max(args.tokens)):
        print(f"batch {first}-{last}: {tokens} draft tokens")
    return 0


def _child(arguments: dict[str, Any]) -> int:
    from vllm import LLM

    from eagle3_serving.targets.chat import chat_ids

    texts, answer = arguments.pop("prompts"), arguments.pop("answer")
    llm = LLM(**arguments, disable_log_stats=False, enable_prefix_caching=False)
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    tokenizer = llm.get_tokenizer()
    # what is longer than the server's texts may be is cut in front
    longest = max(1, arguments["max_model_len"] - answer - ROOM)
    prompts = [chat_ids(tokenizer, text)[-longest:] for text in texts]
    for row in sys.stdin:
        job = json.loads(row)
        if scheduler.dynamic_sd_lookup is not None:
            scheduler.dynamic_sd_lookup[:] = [job["tokens"]] * len(scheduler.dynamic_sd_lookup)
        said = _watched(llm, prompts, job) if "answer" in job else _timed(llm, prompts, job)
        print("\n" + json.dumps(said), flush=True)
    return 0


def _timed(llm: Any, prompts: list[list[int]], job: dict[str, int]) -> dict[str, Any]:
    """The median of some steps of a whole batch, and what taking in its prompts took."""
    asked = [prompts[place % len(prompts)] for place in range(job["first"], job["first"] + job["batch"])]
    names = _send(llm, asked, (STEPS + WARM_UP + 2) * (job["tokens"] + 1))
    begun: set[str] = set()
    prefill = 0.0
    seconds: list[float] = []
    while len(seconds) < STEPS + WARM_UP:
        started = time.perf_counter()
        outputs = llm.llm_engine.step()
        spent = time.perf_counter() - started
        if len(begun) < len(names):
            prefill += spent
        else:
            seconds.append(spent)
        begun |= {output.request_id for output in outputs}
    llm.llm_engine.abort_request(names)
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    llm.llm_engine.step()
    return {"seconds": statistics.median(seconds[WARM_UP:]), "prefill": prefill, "prompt_tokens": sum(map(len, asked))}


def _watched(llm: Any, prompts: list[list[int]], job: dict[str, int]) -> dict[str, Any]:
    """Prompt tokens of each request, and what it accepted step by step."""
    watched = []
    for start in range(0, len(prompts), job["batch"]):
        asked = prompts[start : start + job["batch"]]
        told: dict[str, list[int]] = {name: [] for name in _send(llm, asked, job["answer"])}
        while llm.llm_engine.has_unfinished_requests():
            for output in llm.llm_engine.step():
                told[output.request_id].append(len(output.outputs[0].token_ids))
        for ids, counts in zip(asked, told.values(), strict=True):
            watched.append((len(ids), [now - then - 1 for then, now in itertools.pairwise(counts)]))
    return {"watched": watched}


def _send(llm: Any, asked: list[list[int]], tokens: int) -> list[str]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    names = [f"{time.perf_counter_ns()}-{place}" for place in range(len(asked))]
    for name, ids in zip(names, asked, strict=True):
        llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, params)
    return names


if __name__ == "__main__":
    raise SystemExit(main())
