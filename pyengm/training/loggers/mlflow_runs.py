"""MLflow, an optional extra: pip install "pyengm[mlflow]"."""

import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]  # an extra
from mlflow.entities import Metric, Param, RunStatus  # pyright: ignore[reportMissingImports]
from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME  # pyright: ignore[reportMissingImports]

from pyengm.training.loggers.base import Row
from pyengm.training.loggers.curves import CurveLogger
from pyengm.utils.io import atomic_write

PARAMS = 100  # that MLflow takes in one call


class MLflow(CurveLogger):
    """Records curves over the batches done as a run of MLflow, which is configured by its own environment variables.

    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the others apply. A resumed run continues the run of MLflow, whose
    identity is in RUN/mlflow/run-id.

    Args:
        folder: The run folder.
        config: The options of the run.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        self._folder, self._config = folder, config
        self._client = MlflowClient()
        self._run: str | None = None

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Begins the run of MLflow, or continues it."""
        super().start(config, batches, epoch, batch)
        record = self._folder / "mlflow" / "run-id"
        record.parent.mkdir(exist_ok=True)
        if record.exists():
            self._run = record.read_text().strip()
            self._client.update_run(self._run, status=RunStatus.to_string(RunStatus.RUNNING))
            return
        name = MLFLOW_EXPERIMENT_NAME.get() or "pyengm"
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=self._folder.name).info.run_id
        atomic_write(record, lambda path: path.write_text(f"{self._run}\n"))
        params = [
            Param(f"{group}.{option}", str(value))
            for group, options in self._config.items()
            for option, value in options.items()
        ]
        for first in range(0, len(params), PARAMS):
            self._client.log_batch(self._run, params=params[first : first + PARAMS])

    def add_points(self, values: dict[str, float], done: int) -> None:
        """Adds a point to each of the curves."""
        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, done) for name, value in values.items()])

    def close(self) -> None:
        """Ends the run of MLflow."""
        if self._run is not None:
            self._client.set_terminated(self._run)
