"""Do the answers stay plain decoding's? In fp32 token for token. In bf16 another order of summation turns a near tie, so
there every first difference is looked at in fp32: how far apart stood the two tokens that were said?
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.live.contenders import Contender
from benchmarks.gpu.live.race import answers_file
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.sink import Sink
from eagle3_serving.engine import EmbeddedEngine
from eagle3_serving.engine.rows import plan_rows

NEAR = 0.5  # of logits: two steps of bf16 at 32 to 64, where real ones stand; an H100's answers parted at most at 0.24
CLOSE = 0.125  # how many places of plain text have two tokens so near each other is told beside


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which two answers of one length differ."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)


class Gaps:
    """Distances between tokens' logits, by the target in fp32."""

    def __init__(self, target: Path, device: torch.device) -> None:
        self.target = EmbeddedEngine.load(target, None, torch.float32, str(device)).target

    @torch.inference_mode()
    def _logits(self, text: Sequence[int], last: int) -> Tensor:
        """[T, V] after each of the `last` last tokens of `text`."""
        target = self.target
        plan = plan_rows(0, [0], [len(text)], target.device)
        tokens_T = torch.tensor(list(text), device=target.device)
        rows_T = torch.arange(len(text) - last, len(text), device=target.device)
        return target.forward(tokens_T, plan.place_T, target.new_pool(1, len(text)), plan, rows_T).logits_TV.cpu()

    def between(self, text: Sequence[int], one: int, other: int) -> float:
        """Of two tokens that were said after `text`."""
        last_V = self._logits(text, 1)[0]
        return abs(float(last_V[one] - last_V[other]))

    def close_share(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """The share of an answer's places where the two best tokens stand less than `CLOSE` apart."""
        best_T2 = self._logits([*prompt, *answer[:-1]], len(answer)).topk(2).values
        return float((best_T2[:, 0] - best_T2[:, 1] < CLOSE).float().mean())


def compare(
    prompts: Sequence[Sequence[int]],
    plain: Sequence[Sequence[int]],
    said: Sequence[Sequence[int]],
    gaps: Gaps,
    exact: bool,
) -> dict[str, Any]:
    """Answers against plain decoding's of the same prompts, which come round again where there are more answers."""
    places, apart = [], []
    for n, answer in enumerate(said):
        prompt, base = prompts[n % len(prompts)], plain[n % len(plain)]
        place = first_difference(base, answer)
        if place is not None:
            places.append(place)
            apart.append(gaps.between([*prompt, *base[:place]], base[place], answer[place]))
    made: dict[str, Any] = {"answers": len(said), "differing": len(places), "first_places": sorted(places)[:10]}
    made["largest_gap"] = round(max(apart), 4) if apart else None
    made["ok"] = not places if exact else all(gap <= NEAR for gap in apart)
    return made


def add_identity(
    contenders: Sequence[Contender], flights: Sequence[int], folder: Path, settings: Settings, sink: Sink
) -> None:
    """Rows `PAIR/NAME/answers at N` of every contender whose answers are in `folder`, plain decoding at another number in
    flight among them: it parts from itself too."""
    exact = settings.served_dtype == torch.float32
    loaded: dict[Path, Gaps] = {}
    plain = {c.pair.name: c for c in contenders if c.plain}
    for contender in contenders:
        pair = contender.pair
        base = answers_file(folder, plain[pair.name], flights[0])
        for flight in flights:
            key, file = f"{contender.key}/answers at {flight}", answers_file(folder, contender, flight)
            if sink.has(key) or not file.exists() or not base.exists() or file == base:
                continue
            if pair.target not in loaded:
                loaded[pair.target] = Gaps(pair.target, settings.torch_device)
            texts = json.loads(base.read_text()), json.loads(file.read_text())
            figures = compare(pair.prompts, *texts, loaded[pair.target], exact)
            labels = {"pair": pair.name, "contender": contender.name, "simulated": False, "in_flight": flight}
            sink.add(key, **labels, against=f"plain at {flights[0]}", dtype=str(settings.served_dtype)[6:], **figures)
    for pair in {c.pair.name: c.pair for c in contenders}.values():
        key, file = f"{pair.name}/near ties", answers_file(folder, plain[pair.name], flights[0])
        if pair.target in loaded and not sink.has(key):
            shares = [
                loaded[pair.target].close_share(p, a)
                for p, a in zip(pair.prompts, json.loads(file.read_text()), strict=False)
            ]
            sink.add(key, pair=pair.name, simulated=False, below=CLOSE, share=round(sum(shares) / len(shares), 4))
