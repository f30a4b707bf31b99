"""Early stopping: after so many epochs without a better one, for good, with the reason on the terminal."""

import pytest
import torch
from helpers.runs import always_stop

from pyengm.errors import ConfigError
from pyengm.evaluation.accuracy import Predictions
from pyengm.models import load_checkpoint
from pyengm.training import Interrupted, RunFolder, TrainConfig, build_components, fit, loop


@pytest.fixture
def tiny(tmp_path) -> TrainConfig:
    path = tmp_path / "first.txt"
    path.write_text("\n".join(map(str, range(60))))
    return TrainConfig.from_flat(
        train_indices=path,
        model="cnn4",
        width=2,
        epochs=6,
        attack_steps=1,
        batch_size=30,
        patience=2,
        out=tmp_path / "run",
    )


def with_scores(monkeypatch, natural, robust):
    """Held-out accuracies epoch by epoch, in place of measured ones; a resumed run takes those of its epochs."""

    def predict(model, data, attack, **_):
        score = torch.tensor([next(natural if attack is None else robust)], dtype=torch.float64)
        return Predictions(score, score, score)

    monkeypatch.setattr(loop, "predict", predict)


def train(config, monkeypatch, robust, natural=None):
    with_scores(monkeypatch, iter(natural or [0.5] * len(robust)), iter(robust))
    config = config.resolve()
    run = RunFolder.create(config)
    fit(config, build_components(config), run)
    return run


@pytest.mark.parametrize(
    ("patience", "scores", "epochs", "best"),
    [
        (2, [0.1, 0.3, 0.2, 0.25], 4, 1),
        (1, [0.3, 0.3], 2, 0),  # as good is no better
        (2, [0.3, 0.2, 0.4, 0.3, 0.4], 5, 2),  # a better epoch between begins the count anew
        (6, [0.6, 0.1, 0.1, 0.1, 0.1, 0.1], 6, 0),
    ],
)
def test_stops(tiny, monkeypatch, capsys, patience, scores, epochs, best):
    run = train(tiny.override(patience=patience), monkeypatch, scores)
    assert len(run.read_metrics()) == epochs
    assert load_checkpoint(run.best)[1].epoch == best
    assert load_checkpoint(run.last)[1].epoch == epochs - 1
    said = f"stopped early: no epoch since epoch {best + 1} was better"
    assert (said in capsys.readouterr().out.replace("\n", " ")) == (epochs < 6)


def test_without_patience_a_run_goes_on(tiny, monkeypatch):
    assert len(train(tiny.override(patience=None), monkeypatch, [0.9] + [0.1] * 5).read_metrics()) == 6


def test_the_last_epoch_is_no_early_stop(tiny, monkeypatch, capsys):
    run = train(tiny.override(epochs=3), monkeypatch, [0.9, 0.1, 0.1])
    assert len(run.read_metrics()) == 3
    assert "stopped early" not in capsys.readouterr().out


def test_natural_training_is_judged_by_natural_accuracy(tiny, monkeypatch):
    config = tiny.override(method="natural", attack_steps=None)
    run = train(config, monkeypatch, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], natural=[0.5, 0.4, 0.3])
    assert len(run.read_metrics()) == 3
    assert load_checkpoint(run.best)[1].epoch == 0


def test_the_count_outlives_stops_and_the_end_is_the_end(tiny, monkeypatch):
    scores = [0.1, 0.3, 0.2, 0.25]
    with_scores(monkeypatch, iter([0.5] * 4), iter(scores))
    config = tiny.resolve()
    run = RunFolder.create(config)
    with monkeypatch.context() as patch:
        always_stop(patch)
        for _ in range(4 * 2):
            with pytest.raises(Interrupted):
                fit(config, build_components(config), run)
    fit(config, build_components(config), run)
    assert [row["robust"] for row in run.read_metrics()] == scores
    files = {
        path: path.read_bytes()
        for path in (run.best, run.last, run.metrics, run.checkpoints(2).complete()[-1] / "state.pt")
    }
    fit(config, build_components(config), run)  # needs no score: there is none left
    assert all(path.read_bytes() == content for path, content in files.items())


def test_needs_held_out_images(tiny):
    with pytest.raises(ConfigError, match="patience is 0; expected at least 1"):
        TrainConfig.from_flat(patience=0)
    with pytest.raises(ConfigError, match="patience counts epochs by held-out accuracy, and select_on is none"):
        tiny.override(select_on="none")
    with pytest.raises(ConfigError, match="give --select-on val"):
        TrainConfig.from_flat(data="cifar10", method="fgsm_rs", patience=3).resolve()  # by its recipe
    assert (
        TrainConfig.from_flat(data="cifar10", method="fgsm_rs", patience=3, select_on="test")
        .resolve()
        .evaluation.patience
        == 3
    )


def test_not_for_a_method_that_begins_again(tiny):
    with pytest.raises(ConfigError, match="sub_at begins anew at epoch 2: leave patience out"):
        build_components(tiny.override(method="sub_at", method_options=("sampling_epochs=2",)).resolve())
