"""The training curves as a picture: loss and accuracy of each step of the training-time test, and what was measured as served."""

from pathlib import Path
from typing import Any

from eagle3_serving.files import write_whole
from eagle3_serving.plotting import HEIGHT, OURS, PLAIN, WIDTH, canvas, colours, png
from eagle3_serving.train.log import read_log


def plot_training(log: Path, out: Path) -> Path:
    """Read `log` (JSON lines of the run) and write `out` (PNG). Held-out values are drawn thick, training ones thin; a panel
    more shows the drafter as served, where that was measured."""
    records = read_log(log)
    training = [record for record in records if "loss" in record]
    held_out = [{**record["held_out"], "tokens": record["tokens"]} for record in records if record.get("held_out")]
    served = [{**record["served"], "tokens": record["tokens"]} for record in records if "served" in record]
    panels = 3 if served else 2
    size = (WIDTH, 0.8 * panels * HEIGHT)
    figure, axes = canvas("By draft step; thick: held out", panels=panels, size=size, sharex=True)
    for axis, name in zip(axes, ("loss", "accuracy"), strict=False):
        _curves(axis, training, name, thick=False)
        _curves(axis, held_out, name, thick=True)
        axis.set_ylabel(name)
    if served:
        _served(axes[-1], served)
    axes[-1].set_xlabel("answer tokens seen, thousands")
    write_whole(out, png(figure))
    return out


def _served(axis: Any, records: list[dict[str, Any]]) -> None:
    tokens = [record["tokens"] / 1000 for record in records]
    for mode, colour, marker in (("chain", PLAIN, "s"), ("tree", OURS, "o")):
        axis.plot(tokens, [record[mode] for record in records], marker=marker, color=colour, label=f"{mode}, as served")
    kept = [record["tokens"] for record in records if record["best"]][-1]
    axis.axvline(kept / 1000, color=PLAIN, linestyle=":", label="kept")
    axis.set_ylabel("tokens a target pass")


def _curves(axis: Any, records: list[dict[str, Any]], name: str, thick: bool) -> None:
    if not records:
        return
    tokens = [record["tokens"] / 1000 for record in records]
    for step in range(len(records[0][name])):
        values = [record[name][step] for record in records]
        style = {"linewidth": 2.2, "label": f"step {step}"} if thick else {"linewidth": 0.8, "alpha": 0.45}
        axis.plot(tokens, values, color=colours(step)[0], **style)
