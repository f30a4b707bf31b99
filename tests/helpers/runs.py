"""Short runs: started, trained, resumed and stopped."""

from pathlib import Path

import pytest

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
