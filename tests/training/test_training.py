"""The loop: deterministic, resumable at every batch, and nothing lost when something goes wrong."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers.runs import always_stop, resume, start, train
from safetensors.torch import load_file

from pyengm.data import ImageDataset, load
from pyengm.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from pyengm.models import load_checkpoint
from pyengm.training import Interrupted, RunFolder, TrainConfig, build_components, checkpoints, fit, loop
from pyengm.training import train as run_training
from pyengm.training.checkpoints import Checkpoints, find_corruption
from pyengm.training.data_facts import describe_images
from pyengm.training.loggers import JsonLines
from pyengm.training.signals import StopRequest

BATCHES = 4  # 108 of 120 images train, in batches of 30


def contents(run: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def assert_same_files(run: RunFolder, other: RunFolder) -> None:
    for path, expected in ((run.last, other.last), (run.best, other.best)):
        weights, expected_weights = load_file(path), load_file(expected)
        assert weights.keys() == expected_weights.keys()
        for name, weight in weights.items():
            assert torch.equal(weight, expected_weights[name]), name
    assert run.read_metrics() == other.read_metrics()


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> RunFolder:
    return train(tmp_path_factory.mktemp("runs") / "finished", tiny)


class TestLoop:
    def test_leaves_the_files_of_a_run(self, finished):
        rows = finished.read_metrics()
        assert [row["epoch"] for row in rows] == [0, 1, 2]
        assert all(0 <= row[name] <= 1 for row in rows for name in ("natural", "robust", "train_robust", "clipped"))
        best = max(range(3), key=lambda i: (rows[i]["robust"], -i))
        assert load_checkpoint(finished.best)[1].epoch == best
        model, info = load_checkpoint(finished.last)
        assert (info.epoch, info.data, info.norm, info.eps) == (2, "digits", "linf", 0.2)
        assert not model.training
        assert not list(finished.path.glob(".*tmp"))

    def test_deterministic(self, tiny, finished, tmp_path):
        assert_same_files(train(tmp_path / "again", tiny), finished)

    @pytest.mark.parametrize("every", [2, 3, 100])
    def test_looking_seldom_changes_nothing(self, tiny, finished, tmp_path, monkeypatch, every):
        monkeypatch.setattr(loop, "sync_interval", lambda device: every)
        assert_same_files(train(tmp_path / "again", tiny), finished)

    def test_seed_counts(self, tiny, finished, tmp_path):
        other = load_file(train(tmp_path / "other", tiny.override(seed=1, epochs=1)).last)
        assert not torch.equal(other["dense.weight"], load_file(finished.last)["dense.weight"])

    @pytest.mark.parametrize("optimizer", ["engm", "msgd"])
    @pytest.mark.parametrize("method", ["natural", "pgd_at"])
    def test_every_method_learns_with_every_optimizer(self, tmp_path, method, optimizer):
        config = TrainConfig.from_flat(
            model="cnn4",
            width=4,
            method=method,
            optimizer=optimizer,
            attack_steps=None if method == "natural" else 2,
            epochs=2,
            eps=0.05,
            batch_size=64,
        )
        rows = train(tmp_path / "run", config).read_metrics()
        assert rows[-1]["natural"] > 0.5  # chance is 0.1
        assert (rows[0]["clipped"] > 0) == (optimizer == "engm")

    @pytest.mark.parametrize("select", ["none", "test"])
    def test_selection(self, tiny, tmp_path, select):
        run = train(tmp_path / "run", tiny.override(select_on=select, epochs=2))
        rows = run.read_metrics()
        assert ("robust" in rows[0]) == (select == "test")
        if select == "none":
            assert load_checkpoint(run.best)[1].epoch == 1
            assert run.best.read_bytes() == run.last.read_bytes()
        assert [row["best"] for row in rows].count(None) == (2 if select == "none" else 0)
        components = build_components(tiny.override(select_on=select).resolve())
        assert len(components.batches.data) == 120
        assert (components.held_out is components.test) == (select == "test")

    def test_l2_threat(self, tiny, tmp_path):
        run = train(tmp_path / "run", tiny.override(threat="l2", epochs=1))
        assert load_checkpoint(run.last)[1].eps == 0.5

    def test_indices(self, tiny, tmp_path):
        path = tmp_path / "some.txt"
        path.write_text("3\n5\n8\n" + "\n".join(map(str, range(100, 160))))
        components = build_components(tiny.override(train_indices=path, select_on="none").resolve())
        assert components.batches.data.index.tolist()[:4] == [3, 5, 8, 100]
        path.write_text("three")
        with pytest.raises(ConfigError, match="cannot read whole numbers"):
            build_components(tiny.override(train_indices=path).resolve())


class TestResume:
    def test_after_every_batch(self, tiny, finished, tmp_path, monkeypatch):
        """Stopped at each batch in turn, the run ends as the uninterrupted one."""
        _, run = start(tmp_path / "run", tiny)
        always_stop(monkeypatch)
        for stop in range(3 * BATCHES):
            with pytest.raises(
                Interrupted, match=f"batch {stop % BATCHES + 1} of epoch {stop // BATCHES + 1};.*--resume"
            ):
                resume(run)
        monkeypatch.undo()
        assert_same_files(resume(run), finished)

    @pytest.mark.parametrize("epoch", [0, 1, 2])
    @pytest.mark.parametrize(
        ("owner", "killed_before"),
        [
            (JsonLines, "epoch"),
            (RunFolder, "save_weights"),
            (Checkpoints, "save"),
            (checkpoints, "_write"),
            (Checkpoints, "_publish"),
            (checkpoints, "_flush_folder"),
        ],
    )
    def test_after_a_kill_between_files(self, tiny, finished, tmp_path, monkeypatch, epoch, owner, killed_before):
        """A process that dies anywhere in the writing of an epoch leaves a run that resumes to the same end."""
        config, run = start(tmp_path / "run", tiny)
        original = getattr(owner, killed_before)

        def die(*args):
            if len(run.read_metrics()) + (owner is JsonLines) == epoch + 1:
                raise KeyboardInterrupt("killed")
            return original(*args)

        monkeypatch.setattr(owner, killed_before, die)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            fit(config, build_components(config), run)
        monkeypatch.undo()
        assert_same_files(resume(run), finished)

    def test_a_finished_run_changes_nothing(self, finished, tmp_path):
        shutil.copytree(finished.path, tmp_path / "copy")
        assert_same_files(resume(RunFolder.open(tmp_path / "copy")), finished)

    def test_damaged_state(self, finished, tmp_path):
        shutil.copytree(finished.path, tmp_path / "copy")
        run = RunFolder.open(tmp_path / "copy")
        older, newer = run.checkpoints(2).complete()
        shorten(newer / "state.pt")
        with pytest.warns(UserWarning, match=r"epoch-0003.*state\.pt is damaged.*going back"):
            assert_same_files(resume(run), finished)
        assert [path.name for path in run.checkpoints(2).complete()] == [older.name, newer.name]
        assert find_corruption(newer) is None
        for path in run.checkpoints(2).complete():
            shorten(path / "process-0-of-1.pt")
        with (
            pytest.warns(UserWarning, match="going back"),
            pytest.raises(CheckpointError, match=r"no checkpoint of .*copy is whole.*last\.safetensors"),
        ):
            resume(run)
        assert load_checkpoint(run.last)[1].epoch == 2

    def test_files_of_another_format(self, finished, tmp_path):
        run = RunFolder(shutil.copytree(finished.path, tmp_path / "copy"))
        run.add_environment({})
        (start,) = json.loads(run.environment.read_text())
        assert start["format"] == "pyengm run 1"
        run.environment.write_text(json.dumps([start | {"format": "pyengm run 2"}]))
        with pytest.raises(DataError, match=r"environment.json has the format 'pyengm run 2'"):
            RunFolder.open(run.path)
        run.save_results({"format": "pyengm results 2"}, "")
        with pytest.raises(DataError, match=r"results.json has the format 'pyengm results 2'"):
            run.read_results()

    def test_checkpoints_that_are_gone(self, finished, tmp_path):
        """A run is not begun anew over what it has left."""
        shutil.copytree(finished.path, tmp_path / "copy")
        run = RunFolder.open(tmp_path / "copy")
        shutil.rmtree(run.path / "checkpoints")
        with pytest.raises(CheckpointError, match=r"no checkpoint to resume from; the weights are in .*last"):
            resume(run)
        assert run.read_metrics() == finished.read_metrics()

    def test_state_of_another_architecture(self, tiny, finished, tmp_path):
        config, run = start(tmp_path / "run", tiny.override(width=3))
        shutil.copytree(finished.path / "checkpoints", run.path / "checkpoints")
        with pytest.raises(CheckpointError, match="another architecture"):
            fit(config, build_components(config), run)


class TestTrouble:
    def test_nan_loss_keeps_the_last_good_weights(self, tiny, tmp_path, monkeypatch):
        config, run = start(tmp_path / "run", tiny)
        original = loop.update

        def step(config, components, batch, epoch):
            if epoch == 1:
                with torch.no_grad():
                    components.model.head.weight.fill_(float("nan"))
            return original(config, components, batch, epoch)

        monkeypatch.setattr(loop, "update", step)
        with pytest.raises(NonFiniteError, match=r"epoch 2, batch 1: .*last good weights are in .*last\.safetensors"):
            fit(config, build_components(config), run)
        model, info = load_checkpoint(run.last)
        assert info.epoch == 0
        assert all(p.isfinite().all() for p in model.parameters())
        assert len(run.read_metrics()) == 1

    @pytest.mark.parametrize("bad", [0, 1, 3])
    def test_nan_loss_where_the_loop_looks_seldom(self, tiny, tmp_path, monkeypatch, bad):
        """As on a GPU: the place is the right one, and nothing was written since."""
        config, run = start(tmp_path / "run", tiny)
        monkeypatch.setattr(loop, "sync_interval", lambda device: 3)
        original, batches = loop.update, []

        def step(config, components, batch, epoch):
            batches.append(epoch)
            if len(batches) == BATCHES + bad + 1:
                with torch.no_grad():
                    components.model.head.weight.fill_(float("nan"))
            return original(config, components, batch, epoch)

        monkeypatch.setattr(loop, "update", step)
        with pytest.raises(NonFiniteError, match=rf"epoch 2, batch {bad + 1}: .*last good weights are in .*last\.saf"):
            fit(config, build_components(config), run)
        model, info = load_checkpoint(run.last)
        assert info.epoch == 0
        assert all(p.isfinite().all() for p in model.parameters())
        assert len(run.read_metrics()) == 1

    def test_an_existing_folder_is_not_overwritten(self, tiny, finished):
        before = contents(finished)
        with pytest.raises(ConfigError, match=r"exists and is not overwritten.*--resume"):
            start(finished.path, tiny)
        assert contents(finished) == before

    def test_a_file_is_not_overwritten(self, tiny, tmp_path):
        path = tmp_path / "file"
        path.write_text("mine")
        with pytest.raises(ConfigError, match="not overwritten"):
            start(path, tiny)
        assert path.read_text() == "mine"

    def test_default_folders_are_numbered(self, tiny, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        paths = [RunFolder.create(tiny.resolve()).path for _ in range(2)]
        assert [str(path) for path in paths] == ["runs/digits-pgd_at-engm-001", "runs/digits-pgd_at-engm-002"]

    def test_no_run_folder(self, tmp_path):
        with pytest.raises(ConfigError, match="no run folder"):
            RunFolder.open(tmp_path)

    def test_unknown_model(self, tiny):
        with pytest.raises(ConfigError, match=r"unknown model 'resnet81'.*resnet18"):
            build_components(tiny.override(model="resnet81").resolve())

    def test_unknown_device(self, tiny):
        with pytest.raises(ConfigError, match="cannot be used here"):
            build_components(tiny.override(device="cuda:77").resolve())

    def test_first_signal_asks_second_interrupts(self):
        before = signal.getsignal(signal.SIGINT)
        with StopRequest() as stop:
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before

    def test_ctrl_c_saves(self, tiny, finished, tmp_path, monkeypatch):
        config, run = start(tmp_path / "run", tiny)
        original = loop.update

        def step(config, components, batch, epoch):
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return original(config, components, batch, epoch)

        monkeypatch.setattr(loop, "update", step)
        with pytest.raises(Interrupted, match="stopped after batch 1 of epoch 2"):
            fit(config, build_components(config), run)
        monkeypatch.undo()
        assert_same_files(resume(run), finished)


class TestMetricsFile:
    def test_lines_are_json(self, finished):
        lines = finished.metrics.read_text().splitlines()
        assert [json.loads(line) for line in lines] == finished.read_metrics()


def test_without_selection_nothing_is_said_of_overfitting(tiny, tmp_path):
    """Best and last are the same weights there; with selection the figure stays."""
    for select in ("none", "test"):
        config = tiny.override(
            select_on=select, epochs=1, autoattack_examples=2, eval_both_threats=False, out=tmp_path / select
        )
        results = run_training(config)
        assert ("robust_overfitting" in results) == (select == "test")
        run = RunFolder(tmp_path / select)
        assert ("overfitting" in run.table.read_text()) == (select == "test")
        (start_of_run,) = json.loads(run.environment.read_text())
        images = start_of_run["data"]
        assert images.keys() == {"train", "test"} | ({"held_out"} if select == "test" else set())
        assert (images["train"]["name"], images["train"]["split"], images["train"]["images"]) == (
            "digits",
            "train",
            120,
        )
        assert images["test"] == describe_images(load("digits", "test"))


def test_the_digests_of_images_tell_them_apart():
    digits = load("digits", "train")
    other = ImageDataset(digits.images.clone(), digits.labels, digits.classes, digits.name, digits.split)
    assert describe_images(other) == describe_images(digits)
    other.images[3, 0, 2, 2] ^= 1
    assert describe_images(other)["pixels"] != describe_images(digits)["pixels"]
    other = ImageDataset(digits.images, digits.labels.roll(1), digits.classes, digits.name, digits.split)
    assert describe_images(other)["labels"] != describe_images(digits)["labels"]
    assert describe_images(digits.subset([1, 0]))["labels"] != describe_images(digits.subset([0, 1]))["labels"]
