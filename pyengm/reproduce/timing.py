"""The times of a run, from the timing.jsonl of its folder."""

import json
from pathlib import Path


def times_of(run: Path, batch_size: int) -> dict[str, float]:
    """Returns "seconds_per_step" and "hours" of training without evaluations; {} for a run that was not timed.

    They follow from the images per second of each epoch, which are right for interrupted epochs too.

    Args:
        run: The run folder.
        batch_size: Images per step.
    """
    file = run / "timing.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    timed = [row for row in rows if row["images_per_second"]]
    if not timed:
        return {}
    seconds_per_image = sum(1 / row["images_per_second"] for row in timed) / len(timed)
    images = max(row["images_per_second"] * row["seconds_training"] for row in timed)  # of a whole epoch
    return {
        "seconds_per_step": batch_size * seconds_per_image,
        "hours": len(rows) * images * seconds_per_image / 3600,
    }
