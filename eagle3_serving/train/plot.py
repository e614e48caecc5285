"""The training curves as a picture: loss and accuracy of each step of the training-time test."""

import json
from pathlib import Path
from typing import Any

from eagle3_serving.files import write_whole
from eagle3_serving.plotting import HEIGHT, WIDTH, canvas, colours, png


def plot_training(log: Path, out: Path) -> Path:
    """Read `log` (JSON lines of the run) and write `out` (PNG). Held-out values are drawn thick, training ones thin."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    training = [record for record in records if "loss" in record]
    held_out = [{**record["held_out"], "tokens": record["tokens"]} for record in records if record.get("held_out")]
    figure, axes = canvas("By draft step; thick: held out", panels=2, size=(WIDTH, 1.6 * HEIGHT), sharex=True)
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        _curves(axis, training, name, thick=False)
        _curves(axis, held_out, name, thick=True)
        axis.set_ylabel(name)
    axes[-1].set_xlabel("answer tokens seen, thousands")
    write_whole(out, png(figure))
    return out


def _curves(axis: Any, records: list[dict[str, Any]], name: str, thick: bool) -> None:
    if not records:
        return
    tokens = [record["tokens"] / 1000 for record in records]
    for step in range(len(records[0][name])):
        values = [record[name][step] for record in records]
        style = {"linewidth": 2.2, "label": f"step {step}"} if thick else {"linewidth": 0.8, "alpha": 0.45}
        axis.plot(tokens, values, color=colours(step)[0], **style)
