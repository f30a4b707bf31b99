"""The files of an analysis: arrays, scalars with how they were made, and the figure."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pyengm.cli.analyses import Found
from pyengm.utils.figures import figure_class
from pyengm.utils.io import atomic_write, make_dirs


def save_analysis(folder: Path, name: str, found: Found, description: Mapping[str, Any]) -> None:
    """Writes NAME.npz, NAME.svg, NAME.png and further files, and NAME.json last, which shows that all are whole.

    Args:
        folder: For the files.
        name: Of the analysis.
        found: What it found.
        description: How it was made, for NAME.json.

    Raises:
        StorageError: The disk is full or cannot be written to.
    """
    make_dirs(folder)
    arrays, scalars = _values(found)
    _write(folder / f"{name}.npz", lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]
    figure = _figure(found)
    for suffix in ("svg", "png"):
        # Without a date, so that equal figures are equal files.
        metadata = {"Date": None} if suffix == "svg" else {}
        _write(
            folder / f"{name}.{suffix}", lambda file, s=suffix, m=metadata: figure.savefig(file, format=s, metadata=m)
        )
    for file_name, text in found.files.items():
        _write(folder / f"{name}-{file_name}", lambda file, text=text: file.write(text.encode()))
    shapes = {key: list(value.shape) for key, value in arrays.items()}
    content = {**description, "scalars": scalars, "arrays": shapes}
    _write(folder / f"{name}.json", lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def _write(path: Path, write: Any) -> None:
    buffer = BytesIO()
    write(buffer)
    atomic_write(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def _values(found: Found) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All fields by name, as arrays; those of one value also as scalars of JSON, with None for nan and infinity."""
    arrays, scalars = {}, {}
    for prefix, result in found.results.items():
        for f in fields(result):
            value = np.asarray(getattr(result, f.name))
            key = f"{prefix}/{f.name}" if prefix else f.name
            arrays[key] = value
            if value.size == 1:
                item = value.item()
                scalars[key] = None if isinstance(item, float) and not math.isfinite(item) else item
    return arrays, scalars


def _figure(found: Found) -> Any:
    panels = found.figure_panels()
    columns = min(len(panels), 2 if len(panels) in (2, 4) else 3 if len(panels) <= 9 else 4)
    rows = -(-len(panels) // columns)
    figure = figure_class()(figsize=(6 * columns, 4.4 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, (title, plot) in zip(axes, panels.items(), strict=False):
        plot(ax)
        if title and not ax.get_title():
            ax.set_title(title)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return figure
