"""The figure of a run: accuracy and loss by epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyengm.utils.figures import figure_class
from pyengm.utils.io import atomic_write

SERIES = {
    "train_robust": ("training, attacked", "tab:blue", "--"),
    "natural": ("held out, natural", "tab:green", "-"),
    "robust": ("held out, PGD-20", "tab:red", "-"),
}


def plot_curves(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Writes the learning curves of a run as a PNG image.

    Args:
        rows: the lines of metrics.jsonl, one per epoch.
        path: file to write.
        title: title of the figure.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = figure_class()(figsize=(9, 4), dpi=120, layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    epochs = [row["epoch"] + 1 for row in rows]
    for key, (label, color, style) in SERIES.items():
        if rows and key in rows[0]:
            accuracy.plot(epochs, [100 * row[key] for row in rows], style, color=color, label=label)
    if best := [row for row in rows if row.get("best")]:
        accuracy.axvline(best[-1]["epoch"] + 1, color="gray", linewidth=0.8, label="best checkpoint")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 100), title=title)
    if accuracy.lines:
        accuracy.legend()
    loss.plot(epochs, [row["loss"] for row in rows], "--", color="tab:blue", label="training loss")
    if rows and "robust_loss" in rows[0]:
        held_out = [row["robust_loss"] for row in rows]
        loss.plot(epochs, held_out, color="tab:red", label="held-out loss, PGD-20")
    if rows and "clipped" in rows[0]:
        share = loss.twinx()
        share.plot(epochs, [100 * row["clipped"] for row in rows], color="tab:orange")
        share.set(ylabel="examples clipped (%)", ylim=(0, 100))
        loss.plot([], [], color="tab:orange", label="examples clipped (right)")
    loss.set(xlabel="epoch", ylabel="loss")
    loss.legend()
    atomic_write(path, lambda new: figure.savefig(new, format="png"))
