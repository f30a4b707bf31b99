"""The times of a run, from the timing.jsonl of its folder."""

import json
from pathlib import Path

import numpy as np


def epoch_seconds(run: Path) -> np.ndarray:
    """Returns the seconds of training of each epoch, (E,), without evaluations; all nan for a run that was not timed.

    They follow from the images per second of each epoch, which are right for interrupted epochs too. An epoch whose
    rate is not known has the mean of the others.

    Args:
        run: The run folder.
    """
    rows = _rows(run)
    rates = np.array([row["images_per_second"] or np.nan for row in rows], float)
    if not np.isfinite(rates).any():
        return np.full(len(rows), np.nan)
    images = np.nanmax(rates * np.array([row["seconds_training"] for row in rows]))  # of a whole epoch
    seconds = images / rates
    return np.where(np.isnan(seconds), np.nanmean(seconds), seconds)


def times_of(run: Path, batch_size: int) -> dict[str, float]:
    """Returns "seconds_per_step", "seconds" and "hours" of training without evaluations; {} for an untimed run.

    Args:
        run: The run folder.
        batch_size: Images per step.
    """
    rates = [row["images_per_second"] for row in _rows(run) if row["images_per_second"]]
    if not rates:
        return {}
    seconds = float(epoch_seconds(run).sum())
    return {
        "seconds_per_step": batch_size * float(np.mean(1 / np.array(rates))),
        "seconds": seconds,
        "hours": seconds / 3600,
    }


def _rows(run: Path) -> list[dict[str, float]]:
    file = run / "timing.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
