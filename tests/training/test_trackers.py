"""Loggers for experiment trackers, through the trackers' own clients and without a network."""

import pytest
from helpers.runs import always_stop, resume, train

from pyengm.errors import Interrupted
from pyengm.training import RunFolder


def test_mlflow(tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    monkeypatch.chdir(tmp_path)
    config = tiny.override(epochs=2, loggers=("mlflow",))
    with monkeypatch.context() as patch:
        always_stop(patch)
        with pytest.raises(Interrupted):
            train(tmp_path / "run", config)
    run = tmp_path / "run"
    name = (run / "mlflow" / "run-id").read_text().strip()
    resume(RunFolder(run))
    client = mlflow.MlflowClient()
    found = client.get_run(name)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert client.get_experiment(found.info.experiment_id).name == "digits"
    assert found.data.params["schedule.epochs"] == "2"
    losses = client.get_metric_history(name, "epoch/loss")
    assert [point.step for point in losses] == [4, 8]
    assert losses[0].value == pytest.approx(RunFolder(run).read_metrics()[0]["loss"])
    assert {point.step for point in client.get_metric_history(name, "step/lr")} == set(range(1, 9))


def test_wandb(tiny, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "digits")
    logged, started = [], []
    init, log = wandb.init, wandb.Run.log
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options) or init(**options))
    monkeypatch.setattr(
        wandb.Run, "log", lambda run, values, step: logged.append((step, values)) or log(run, values, step)
    )
    run = train(tmp_path / "run", tiny.override(epochs=1, loggers=("wandb",)))
    (recording,) = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    assert (run.path / "wandb" / "run-id").read_text().strip() in recording.name
    assert started[0]["config"]["schedule"]["epochs"] == 1
    assert started[0]["project"] == "digits"
    assert [step for step, values in logged if "step/loss" in values] == [1, 2, 3, 4]
    (final,) = (values for step, values in logged if "epoch/loss" in values)
    assert final["epoch/loss"] == run.read_metrics()[0]["loss"]
