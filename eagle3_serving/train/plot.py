"""The training curves as a picture: loss and accuracy of each step of the training-time test."""

import json
from pathlib import Path
from typing import Any

from eagle3_serving.errors import InputError


def plot_training(log: Path, out: Path) -> Path:
    """Read `log` (JSON lines of the run) and write `out` (PNG). Held-out values are drawn thick, training ones thin."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("matplotlib is missing: pip install 'eagle3-serving[train]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    training = [record for record in records if "loss" in record]
    held_out = [{**record["held_out"], "tokens": record["tokens"]} for record in records if record.get("held_out")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        _curves(axis, training, name, thick=False)
        _curves(axis, held_out, name, thick=True)
        axis.set(xlabel="answer tokens seen", ylabel=name, title=f"{name} by draft step")
        axis.grid(alpha=0.3)
    axes[0].legend(title="thick: held out", fontsize=8)
    beside = out.with_name(f".{out.name}.partial.png")
    figure.savefig(beside, dpi=120)
    plt.close(figure)
    return beside.replace(out)


def _curves(axis: Any, records: list[dict[str, Any]], name: str, thick: bool) -> None:
    if not records:
        return
    tokens = [record["tokens"] for record in records]
    for step in range(len(records[0][name])):
        values = [record[name][step] for record in records]
        style = {"linewidth": 2.2, "label": f"step {step}"} if thick else {"linewidth": 0.8, "alpha": 0.35}
        axis.plot(tokens, values, color=f"C{step}", **style)
