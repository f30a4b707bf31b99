"""Run folders as `pyengm train` leaves them, without a training: options, metrics, times, results, environment."""

import json
from pathlib import Path
from typing import Any

from pyengm.training import TrainConfig

IMAGES = {"name": "digits", "split": "test", "images": 360, "labels": "a", "pixels": "b"}
TINY = {"model": "cnn4", "width": 4, "attack_steps": 1, "batch_size": 64, "epochs": 3, "eval_both_threats": False}


def write_run(path: Path, seed: int = 0, done: int | None = None, **options: Any) -> Path:
    """Writes a complete run, whose values are made up from its seed and alpha.

    Args:
        path: The folder.
        seed: Of the run.
        done: Epochs that it has done, where it stopped early.
        **options: Of the training, over `TINY`.
    """
    config = TrainConfig.from_flat(**{**TINY, "optimizer": "engm", "seed": seed, **options}).resolve()
    path.mkdir(parents=True)
    config.save(path / "config.yaml")
    base = 0.3 + 0.01 * seed + 0.02 * min(config.optimizer.alpha or 0, 10)
    selected = config.evaluation.select_on != "none"
    rows = [metrics(epoch, base, selected) for epoch in range(done or config.schedule.epochs)]
    write_lines(path / "metrics.jsonl", rows)
    times = [{"epoch": row["epoch"], "images_per_second": 100.0 + seed, "seconds_training": 2.0} for row in rows]
    write_lines(path / "timing.jsonl", times)
    (path / "results.json").write_text(json.dumps(results(config, base, selected)))
    uses = {"train": {**IMAGES, "split": "train"}, "test": IMAGES}
    environment = {"versions": {"pyengm": "0.1"}, "machine": {"cpu": "c", "gpus": []}, "processes": 1, "data": uses}
    environment |= {"git": {"pyengm": {"commit": "0" * 40, "dirty": False}}, "command": ["pyengm", "train"]}
    (path / "environment.json").write_text(json.dumps([environment]))
    return path


def metrics(epoch: int, base: float, selected: bool) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    row: dict[str, Any] = {"epoch": epoch, "loss": 2 - base - 0.1 * epoch, "train_robust": base, "train_pgd": base / 2}
    if selected:
        row |= {"natural": base + 0.1 * epoch, "robust": base / 2 + 0.05 * epoch, "robust_loss": 2.0, "best": True}
    return row


def results(config: TrainConfig, base: float, selected: bool) -> dict[str, Any]:
    """The content of results.json."""
    best = {"natural": base, "pgd20": base / 2, "autoattack": base / 4, "after_square": base / 4}
    last = {"natural": base + 0.1, "pgd20": base / 2 - 0.05, "autoattack": base / 4 - 0.01}
    found: dict[str, Any] = {"best": best if selected else dict(last), "last": last}
    if selected:
        found["robust_overfitting"] = 100 * 0.05 / (base / 2)
    found["threats"] = [{"norm": config.attack.threat, "eps": config.attack.eps}]
    return {**found, "images": {"all": 360, "autoattack": 50}}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows as lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
