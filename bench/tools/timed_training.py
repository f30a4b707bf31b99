"""One training run with the time of its epochs: python bench/tools/timed_training.py NEW.json OPTIONS OF pyengm train

The time of an epoch is that of its steps, loading included; the accuracies measured between epochs are left out. The
last weights are evaluated on all test images. The file is written at the end, also after an interruption.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pyengm.cli.train import parse_train
from pyengm.data import Batch, Loader
from pyengm.evaluation import accuracy, create_attack
from pyengm.training.builders import build_components
from pyengm.training.loop import fit
from pyengm.training.run_folder import RunFolder
from pyengm.training.signals import Interrupted


def main() -> int:
    path, options = Path(sys.argv[1]), sys.argv[2:]
    config = parse_train(options)
    parts = build_components(config)
    seconds = time_epochs(parts.batches)
    result = {"given": options, "options": {name: _plain(value) for name, value in config.flat().items()}}
    with TemporaryDirectory() as folder:
        run = RunFolder.create(config.override(out=Path(folder, "run")))
        try:
            fit(config, parts, run)
            measured = {"seed": config.run.seed, "device": parts.device}
            result["natural"] = accuracy(parts.model, parts.test, None, **measured)
            pgd20 = create_attack("pgd20", config.threats()[0])
            result["pgd20"] = accuracy(parts.model, parts.test, pgd20, **measured)
        except Interrupted as stop:
            print(stop)
        result |= {"metrics": run.read_metrics(), "epoch_seconds": [*seconds.values()]}
    result |= {"images": len(parts.batches.data), "test_images": len(parts.test)}
    if parts.device.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated(parts.device) / 2**30
    path.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if "pgd20" in result else 1


def time_epochs(batches: Loader) -> dict[int, float]:
    """Seconds of each epoch whose batches were all used; filled while the training goes on."""
    seconds: dict[int, float] = {}
    epoch_of = batches.epoch

    def epoch(number: int, start: int = 0) -> Iterator[Batch]:
        begun = _now(batches.device)
        yield from epoch_of(number, start)
        seconds.setdefault(number, _now(batches.device) - begun)  # the first pass of an epoch is the training's

    batches.epoch = epoch
    return seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
