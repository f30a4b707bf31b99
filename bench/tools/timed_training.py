"""One training run with the time of its epochs: cd bench && python -m tools.timed_training NEW.json OPTIONS

OPTIONS are those of pyengm train. The time of an epoch is that of its steps with loading, without the accuracies that
are measured between epochs. The last weights are evaluated on all test images. The file is written at the end, and also
after an interruption.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from pyengm.cli.train import parse_train
from pyengm.data import Batch, Loader
from pyengm.errors import Interrupted
from pyengm.evaluation import accuracy, create_attack
from pyengm.training.builders import build_components
from pyengm.training.loop import fit
from pyengm.training.run_folder import RunFolder


def main() -> int:
    path, options = Path(sys.argv[1]), sys.argv[2:]
    config = parse_train(options)
    components = build_components(config)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in config.flat().items()}
    result: dict[str, Any] = {"given": options, "options": plain}
    with TemporaryDirectory() as folder, timed_epochs(components.batches) as seconds:
        run = RunFolder.create(config.override(out=Path(folder, "run")))
        try:
            fit(config, components, run)
            measured = {"seed": config.run.seed, "device": components.device}
            result["natural"] = accuracy(components.model, components.test, None, **measured)
            pgd20 = create_attack("pgd20", config.threats()[0])
            result["pgd20"] = accuracy(components.model, components.test, pgd20, **measured)
        except Interrupted as interrupted:
            print(interrupted)
        result |= {"metrics": run.read_metrics(), "epoch_seconds": [*seconds.values()]}
    result |= {"images": len(components.batches.data), "test_images": len(components.test)}
    if components.device.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated(components.device) / 2**30
    path.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if "pgd20" in result else 1


@contextmanager
def timed_epochs(loader: Loader) -> Iterator[dict[int, float]]:
    """Within the context, times the epochs of a loader.

    Args:
        loader: Makes the batches of a training run.

    Yields:
        The seconds of each epoch, by its number. An epoch is added when all of its batches were used.
    """
    seconds: dict[int, float] = {}
    original_epoch = loader.epoch

    def epoch(epoch: int, start: int = 0, **options: bool) -> Iterator[Batch]:
        begin = _now(loader.device)
        yield from original_epoch(epoch, start, **options)
        seconds.setdefault(epoch, _now(loader.device) - begin)  # only the first pass of an epoch is training

    with mock.patch.object(loader, "epoch", epoch):
        yield seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
