"""SGLang's engine, whose scheduler is a process of its own: its steps cannot be timed one by one, so a step's time is the
difference of a long and a short batch of the same prompts, divided by the difference of their passes. What comes before
the first step and after the last cancels out.
"""

import inspect
import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.live.load import Load
from benchmarks.gpu.sink import Unavailable
from eagle3_serving.serve.shape import TREES

SHORT = 4  # the short batch has a fourth of the tokens
LEAST_SAMPLES = 3


class Engine:
    def __init__(self, spec: dict[str, Any]) -> None:
        import sglang
        from sglang.srt.server_args import ServerArgs

        if os.environ.get(TREES) == "default":
            from eagle3_sglang.settings import DEFAULT_TREES

            os.environ[TREES] = DEFAULT_TREES
        self.version: str = sglang.__version__
        known = inspect.signature(ServerArgs).parameters
        arguments = dict(spec["arguments"])
        if arguments.get("speculative_adaptive") and "speculative_adaptive" not in known:
            raise Unavailable(f"SGLang {self.version} has no adaptive chain")
        self.engine = sglang.Engine(**{name: value for name, value in arguments.items() if name in known})

    def about(self) -> dict[str, Any]:
        info = self.engine.get_server_info()
        states = (info.get("internal_states") or [{}])[0]
        memory = states.get("memory_usage") or {}
        graphs = not (info.get("disable_cuda_graph") or info.get("disable_decode_cuda_graph"))
        return {
            "version": self.version,
            "graphs": "decode" if graphs and info.get("device") == "cuda" else "NONE",
            "graph_gib": graph_gib(memory.get("graph")),
            "asynchronous": not info.get("disable_overlap_schedule"),
            "attention": info.get("decode_attention_backend") or info.get("attention_backend"),
            "trees": os.environ.get(TREES),
        }

    def load(self, prompts: Sequence[Sequence[int]], in_flight: int, tokens: int) -> dict[str, Any]:
        groups = [prompts[first : first + in_flight] for first in range(0, len(prompts), in_flight)]
        groups = [group for group in groups if len(group) == in_flight]
        done = Load([], 0.0)
        begun = time.perf_counter()
        for turn in range(-(-LEAST_SAMPLES // len(groups))):
            for group in groups:
                short, long = self._batch(group, max(2, tokens // SHORT)), self._batch(group, tokens)
                if long.passes > short.passes:
                    done.step_ms.append((long.seconds - short.seconds) / (long.passes - short.passes) * 1e3)
                if turn == 0:
                    done.answers += long.answers
                    for answer, about in zip(long.answers, long.about, strict=True):
                        passes = about.get("spec_verify_ct") or 0
                        done.drafts += passes
                        done.drafted += about.get("spec_num_proposed_drafts") or 0
                        done.tokens += len(answer) - 1
                        done.passes += passes or len(answer) - 1
        done.seconds = time.perf_counter() - begun
        return done.to_json()

    def _batch(self, prompts: Sequence[Sequence[int]], tokens: int) -> "Batch":
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        begun = time.perf_counter()
        got = self.engine.generate(input_ids=[list(prompt) for prompt in prompts], sampling_params=sampling)
        return Batch(time.perf_counter() - begun, got)

    def detail(self, prompts: Sequence[Sequence[int]], in_flight: int) -> dict[str, Any]:
        raise NotImplementedError  # its steps are another process's


def graph_gib(told: float | dict[str, float] | None) -> float | None:
    """What all captures took: some versions tell it phase by phase."""
    return round(sum(told.values()), 3) if isinstance(told, dict) else told


class Batch:
    """`passes`: of the request that took the most, which the batch waited for."""

    def __init__(self, seconds: float, got: list[dict[str, Any]]) -> None:
        self.seconds = seconds
        self.answers = [list(one["output_ids"]) for one in got]
        self.about = [one["meta_info"] for one in got]
        both = zip(self.answers, self.about, strict=True)
        self.passes = max(about.get("spec_verify_ct") or len(answer) - 1 for answer, about in both)
