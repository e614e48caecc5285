"""vLLM in this process, its core too, so that its steps can be timed and its kernels counted."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu.live.load import Load, steady
from benchmarks.gpu.live.profile import graph_gib, parts_of, profiled
from benchmarks.gpu.timing import synchronize

# of a step's parts: attribute of the model runner ("" is itself), method, name
PARTS = (
    ("", "execute_model", "execute_model"),
    ("", "sample_tokens", "sample and propose"),
    ("", "sample", "sample"),
    ("speculator", "propose", "propose"),
    ("cudagraph_manager", "run_fullgraph", "execute_model: the target's graph"),
    ("model_state", "prepare_attn", "execute_model: prepare_attn"),
    # where the second graph runs these three do not
    ("speculator", "_move", "propose: move KV"),
    ("speculator", "_absorb", "propose: verified rows"),
    ("speculator", "_draft", "propose: draft"),
)
QUIET_STEPS = 3  # steps after a request came before a step counts: an asynchronous step tells of an earlier one
DETAIL_STEPS = 24
PROFILED = 5  # steps


class Engine:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.device = torch.device(spec["device"])
        self.prefix = 0
        if spec["device"] == "cpu":
            from torch_kernels import stand_in

            stand_in()
        from vllm import LLM

        arguments = dict(spec["arguments"])
        arguments["kernel_config"] = _known_kernel_options(arguments.get("kernel_config", {}))
        self.llm = LLM(**arguments)

    @property
    def runner(self) -> Any:
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner

    def about(self) -> dict[str, Any]:
        import vllm

        config, runner = self.llm.llm_engine.vllm_config, self.runner
        compilation = config.compilation_config
        speculator = _name(getattr(runner, "speculator", None))
        return {
            "version": vllm.__version__,
            "graphs": str(compilation.cudagraph_mode).removeprefix("CUDAGraphMode."),
            "graph_sizes": list(compilation.cudagraph_capture_sizes or []),
            "graph_gib": graph_gib(self.device),
            "asynchronous": bool(config.scheduler_config.async_scheduling),
            "runner": type(runner).__module__,
            "speculator": speculator,
            "drafts_chains": speculator is not None and "Tree" not in speculator,
            "sampler": _name(getattr(runner, "rejection_sampler", None)),
            "mode": os.environ.get("EAGLE3_MODE"),
        }

    def load(self, prompts: Sequence[Sequence[int]], in_flight: int, tokens: int) -> dict[str, Any]:
        before = self._counted()
        done = self._run(prompts, in_flight, tokens)
        after = self._counted()
        done.drafts, done.drafted = (int(b - a) for a, b in zip(before, after, strict=True))
        return done.to_json()

    def detail(self, prompts: Sequence[Sequence[int]], in_flight: int) -> dict[str, Any]:
        targets = []
        for owner, method, name in PARTS:
            held = getattr(self.runner, owner, None) if owner else self.runner
            if held is not None and hasattr(held, method):
                targets.append((held, method, name))
        with parts_of(targets, self.device) as parts:
            synced = self._run(prompts, in_flight, DETAIL_STEPS)
        made: dict[str, Any] = {"parts_ms": parts.medians(), "parts_step_ms": None}
        if synced.step_ms:
            made["parts_step_ms"] = round(statistics.median(synced.step_ms), 3)
        if self.device.type == "cuda":
            with profiled(self.device, PROFILED, skip=6) as profile:
                self._run(prompts, in_flight, 20 * PROFILED, profile.step)
            made |= profile.counts()
        return made

    def _counted(self) -> tuple[float, float]:
        """Drafts and draft tokens so far, of all requests, as vLLM counts them."""
        found = {metric.name: getattr(metric, "value", 0) for metric in self.llm.get_metrics()}
        return found.get("vllm:spec_decode_num_drafts", 0), found.get("vllm:spec_decode_num_draft_tokens", 0)

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        in_flight: int,
        tokens: int,
        after_step: Callable[[int], bool] = lambda counted: False,
    ) -> Load:
        """`after_step` is told how many steps counted so far; True ends all."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        params = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        self.prefix += 1
        waiting = list(enumerate(prompts))
        said: dict[str, list[int]] = {}  # of the live ones
        answers: list[list[int]] = [[] for _ in prompts]
        done = Load(answers, 0.0)
        quiet = 0  # steps since a request came or went
        synchronize(self.device)
        begun = time.perf_counter()
        while waiting or said:
            while waiting and len(said) < in_flight:
                place, prompt = waiting.pop(0)
                name = f"{self.prefix}-{place}"
                engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
                said[name] = answers[place]
                quiet = 0
            decoding = all(said.values())
            started = time.perf_counter()
            outputs = engine.step()
            seconds = time.perf_counter() - started
            for output in outputs:
                new, answer = output.outputs[0].token_ids, said[output.request_id]
                if answer and new:
                    done.passes += 1
                    done.tokens += len(new)
                answer.extend(new)
                if output.finished:
                    del said[output.request_id]
                    quiet = 0
            quiet += 1
            if decoding and quiet > QUIET_STEPS:
                done.step_ms.append(seconds * 1e3)
                if after_step(len(done.step_ms)):
                    engine.abort_request(list(said))
                    said.clear()
                    waiting.clear()
        while engine.has_unfinished_requests():
            engine.step()
        synchronize(self.device)
        done.seconds = time.perf_counter() - begun
        done.step_ms = steady(done.step_ms, done.seconds)
        return done


def _known_kernel_options(wanted: dict[str, Any]) -> dict[str, Any]:
    """Those that this version has."""
    from vllm.config.kernel import KernelConfig

    return {name: value for name, value in wanted.items() if name in KernelConfig.__dataclass_fields__}


def _name(held: Any) -> str | None:
    return None if held is None else type(held).__name__
