"""Short runs: started, trained, resumed and stopped."""

from pathlib import Path

import pytest

from pyengm.errors import Interrupted
from pyengm.training import RunFolder, TrainConfig, build_components, fit
from pyengm.training.loggers import Logger
from pyengm.training.signals import StopRequest


def start(path: Path, config: TrainConfig) -> tuple[TrainConfig, RunFolder]:
    """The resolved options and the new folder of a run."""
    config = config.override(out=path).resolve()
    return config, RunFolder.create(config)


def train(path: Path, config: TrainConfig, *loggers: Logger) -> RunFolder:
    """Trains a new run to its end."""
    config = config.override(out=path).resolve()
    components = build_components(config)
    run = RunFolder.create(config)
    fit(config, components, run, loggers)
    return run


def resume(run: RunFolder, *loggers: Logger) -> RunFolder:
    """Resumes a run with new components."""
    config = TrainConfig.load(run.config).resolve()
    fit(config, build_components(config), run, loggers)
    return run


def always_stop(patch: pytest.MonkeyPatch) -> None:
    """Makes every batch end with a request to stop."""
    patch.setattr(StopRequest, "requested", property(lambda self: True, lambda self, value: None), raising=False)


def stopped_after_every_batch(
    path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, stops: int
) -> RunFolder:
    """Trains a new run to its end, in calls that are each stopped after one batch, `stops` of them, and a last one."""
    _, run = start(path, config)
    with monkeypatch.context() as patch:
        always_stop(patch)
        for _ in range(stops):
            with pytest.raises(Interrupted):
                resume(run)
    return resume(run)
