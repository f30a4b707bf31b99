"""What a run records for analyses: snapshots, the probe and the log of the training images."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import resume, start, stopped_after_every_batch, train
from torch import distributed
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pyengm.attacks import PGD
from pyengm.attacks.fosc import FOSCPGD, FOSCRecord, fosc_of
from pyengm.data import load
from pyengm.errors import ConfigError
from pyengm.evaluation import find_source
from pyengm.methods import ATAS, ATTA, FGSMRS, DatasetSpec
from pyengm.models import load_checkpoint
from pyengm.ops import Key
from pyengm.optim import MSGD
from pyengm.training import RunFolder, TrainConfig, build_components, probe
from pyengm.training.config_groups import ALL_OPTIMIZERS
from pyengm.training.disk_space import run_size
from pyengm.training.probe import corrected_mean, measure_probe
from pyengm.training.snapshots import snapshot_epochs

RECORDED = ("snapshots", "probe", "instances")


def recorded(run: RunFolder) -> dict[str, bytes]:
    """The content of the recorded files by path."""
    folders = (run.path / name for name in RECORDED)
    return {str(path.relative_to(run.path)): path.read_bytes() for folder in folders for path in folder.glob("*")}


@pytest.fixture(scope="module")
def recording(tiny) -> TrainConfig:
    return tiny.override(
        method="atas",
        attack_steps=None,
        method_options=("warmup=1",),
        augment="shift",
        snapshots=(1, "every=2"),
        probe=50,
        instance_log=True,
    )


@pytest.fixture(scope="module")
def finished(recording, tmp_path_factory) -> RunFolder:
    return train(tmp_path_factory.mktemp("recorded") / "run", recording)


class TestRun:
    def test_files(self, finished):
        assert sorted(recorded(finished)) == [
            *(f"instances/epoch-000{n}.npz" for n in (1, 2, 3)),
            *(f"probe/epoch-000{n}.npz" for n in (1, 2, 3)),
            *(f"snapshots/epoch-000{n}.safetensors" for n in (1, 2)),
        ]

    def test_recording_changes_nothing(self, recording, finished, tmp_path):
        plain = train(tmp_path / "run", recording.override(snapshots=(), probe=None, instance_log=False))
        assert plain.last.read_bytes() == finished.last.read_bytes()
        rows = [{name: row[name] for name in row if not name.startswith("probe_")} for row in finished.read_metrics()]
        assert plain.read_metrics() == rows
        assert recorded(plain) == {}

    @pytest.mark.parametrize("method", ["atas", "atta", "fgsm_rs"])
    def test_stopped_and_resumed_after_every_batch(self, recording, tmp_path, monkeypatch, method):
        config = recording.override(method=method, method_options=(), epochs=2)
        whole = train(tmp_path / "whole", config)
        run = stopped_after_every_batch(tmp_path / "stopped", config, monkeypatch, stops=2 * 4)
        assert recorded(run) == recorded(whole)
        assert run.read_metrics() == whole.read_metrics()

    def test_killed_before_the_state_is_saved(self, recording, finished, tmp_path, monkeypatch):
        _, run = start(tmp_path / "killed", recording)
        with monkeypatch.context() as patch:
            patch.setattr("pyengm.training.loop.finish_method_epoch", lambda *_: (_ for _ in ()).throw(MemoryError))
            with pytest.raises(MemoryError):
                resume(run)
        assert "instances/epoch-0001.npz" in recorded(run)
        (run.snapshots / ".epoch-0001.safetensors.1.tmp").write_bytes(b"half")
        with run.locked():
            assert not list(run.snapshots.glob(".*"))
        resume(run)
        assert recorded(run) == recorded(finished)

    def test_room_on_the_disk(self, recording):
        config = recording.resolve()
        components = build_components(config)
        plain = config.override(snapshots=(), probe=None, instance_log=False)
        more = run_size(config, components) - run_size(plain, components)
        weights = sum(t.numel() * t.element_size() for t in components.model.state_dict().values())
        assert more >= 2 * weights + 3 * (50 * 8 * 3 + 108 * (8 + 4 * 4))
        size, last = run_size(plain, build_components(plain)), plain.schedule.epochs - 1
        for average, copies in (({"average": "ema"}, 1), ({"average": "median", "swa_start": last - 1}, 3)):
            averaged = plain.override(**average)  # in three checkpoints
            assert run_size(averaged, build_components(averaged)) - size == 3 * copies * weights


class TestSnapshots:
    def test_are_the_weights_of_their_epoch(self, recording, finished, tmp_path):
        short = train(tmp_path / "run", recording.override(milestones=None, epochs=3, snapshots=(3,)))
        assert load_checkpoint(short.snapshots / "epoch-0003.safetensors")[1].epoch == 2
        assert (short.snapshots / "epoch-0003.safetensors").read_bytes() == short.last.read_bytes()

    def test_can_be_evaluated(self, finished):
        source = find_source(finished.snapshots / "epoch-0002.safetensors", load("digits", "test"))
        source.check(load("digits", "test"))
        assert source.load()(torch.rand(2, 1, 8, 8)).shape == (2, 10)

    def test_of_averaged_weights(self, recording, tmp_path):
        run = train(tmp_path / "run", recording.override(average="ema", snapshots=(3,), probe=None))
        assert (run.snapshots / "epoch-0003.safetensors").read_bytes() == run.last.read_bytes()

    def test_epochs(self):
        assert snapshot_epochs(("3", "every=4"), 10) == {3, 4, 8}
        assert snapshot_epochs((), 10) == set()

    @pytest.mark.parametrize(
        "words", [("0",), ("-1",), ("every=0",), ("every=",), ("last",), ("1.5",), ("²",), (True,)]
    )
    def test_other_words(self, words):
        with pytest.raises(ConfigError, match="expected numbers of epochs"):
            TrainConfig.from_flat(snapshots=words)

    @pytest.mark.parametrize("words", [("11",), ("every=11",)])
    def test_epochs_that_are_not_reached(self, words):
        with pytest.raises(ConfigError, match="the run has 10 epochs"):
            TrainConfig.from_flat(snapshots=words, epochs=10).resolve()


class TestProbe:
    @pytest.mark.parametrize("method", ["pgd_at", "natural"])
    @pytest.mark.parametrize("norm_layer", ["bn", "gn"])
    def test_against_one_gradient_at_a_time(self, tiny, method, norm_layer, monkeypatch):
        """mu and sigma^2 in float64; with batch norm, each gradient is that of the whole batch."""
        monkeypatch.setattr(probe, "EXACT", 31)
        config = tiny.override(method=method, norm_layer=norm_layer, probe=31, batch_size=16, attack_steps=None)
        config = config.resolve()
        components = build_components(config)
        found = measure_probe(config, components, components.probe)
        assert found.exact.all()
        assert found.mu_error == found.sigma2_error == 0
        model, data = components.model, components.probe
        norms, inputs, total, first = [], [], 0, 0
        for rows in torch.arange(31).split(16):
            x, y = data.images[rows] / 255, data.labels[rows]
            if method == "pgd_at":
                x = PGD(0.2, 0.05, 10)(model, x, y, key=Key(config.run.seed, 0, data.index[rows]))
            double = build_components(config).model.double().train()
            x = x.double().requires_grad_()
            losses = F.cross_entropy(double(x), y, reduction="none")
            for loss in losses:
                grads = torch.autograd.grad(loss, list(double.parameters()), retain_graph=True)
                grad = torch.cat([g.flatten() for g in grads])
                norms.append(grad.norm().item())
                total = total + grad
            inputs += torch.autograd.grad(losses.sum(), x)[0].flatten(1).norm(dim=1).tolist()
            first += len(rows)
        assert found.norms == pytest.approx(norms, rel=1e-4)
        assert found.input_norms == pytest.approx(inputs, rel=1e-4)
        assert found.mu == pytest.approx(np.mean(norms), rel=1e-5)
        assert found.sigma2 == pytest.approx(
            np.mean(np.square(norms)) - (total / first).square().sum().item(), rel=1e-4
        )

    def test_leaves_the_run_as_it_was(self, tiny):
        config = tiny.override(probe=20).resolve()
        components = build_components(config)
        before = {name: t.clone() for name, t in components.model.state_dict().items()}
        generator = torch.get_rng_state()
        found = [measure_probe(config, components, components.probe) for _ in range(2)]
        assert found[0].norms.tolist() == found[1].norms.tolist()
        assert torch.get_rng_state().equal(generator)
        after = components.model.state_dict()
        assert all(after[name].equal(t) for name, t in before.items())
        assert all(p.grad is None for p in components.model.parameters())

    def test_exact_norms_of_some_correct_the_estimates(self, tiny, monkeypatch):
        config = tiny.override(probe=60, width=8).resolve()
        components = build_components(config)
        found = measure_probe(config, components, components.probe)
        monkeypatch.setattr(probe, "EXACT", 60)
        whole = measure_probe(config, components, components.probe)
        assert (found.exact.sum(), whole.exact.sum()) == (16, 60)
        assert np.diff(found.exact.nonzero()[0]).max() <= 4
        # Rounding of float32 apart, the sample is exact, and the others are not.
        np.testing.assert_allclose(found.norms[found.exact], whole.norms[found.exact], rtol=1e-4)
        assert np.abs(found.norms / whole.norms - 1)[~found.exact].max() > 1e-3
        # Four standard errors: chance exceeds them once in ten thousand samples.
        assert 0 < abs(found.mu - whole.mu) < 4 * found.mu_error
        assert 0 < abs(found.sigma2 - whole.sigma2) < 4 * found.sigma2_error
        assert found.metrics().keys() == {"probe_mu", "probe_mu_error", "probe_sigma2", "probe_sigma2_error"}

    def test_corrected_means_over_all_samples(self):
        """Over every sample of 3 of 6 values, the mean is right and its squared error is the mean square of errors."""
        rng = np.random.default_rng(0)
        truth = rng.gamma(2, 1, 6)
        estimates = truth * rng.normal(1.2, 0.1, 6)
        means, variances = [], []
        for chosen in combinations(range(6), 3):
            sample = np.isin(np.arange(6), chosen)
            mean, error = corrected_mean(estimates, truth[sample], sample)
            means.append(mean)
            variances.append(error**2)
        assert np.mean(means) == pytest.approx(truth.mean())
        assert np.mean(variances) == pytest.approx(np.mean((np.array(means) - truth.mean()) ** 2))
        assert corrected_mean(estimates, truth, np.ones(6, bool)) == (pytest.approx(truth.mean()), 0.0)

    def test_of_any_optimizer(self, tiny, tmp_path):
        for optimizer in ("msgd", "mgnc", "sngm", "nengm", "entropy_sgd"):
            run = train(tmp_path / optimizer, tiny.override(optimizer=optimizer, epochs=1, probe=20))
            (row,) = run.read_metrics()
            assert min(row["probe_mu"], row["probe_sigma2"]) > 0

    def test_images_are_spread_over_the_training_images(self, tiny, tmp_path):
        run = train(tmp_path / "run", tiny.override(epochs=1, probe=20))
        index = np.load(run.probe / "epoch-0001.npz")["index"]
        assert len(set(index)) == 20
        assert np.diff(index).max() <= 3 * 108 / 20

    def test_more_images_than_there_are(self, tiny):
        with pytest.raises(ConfigError, match="expected at most 108"):
            build_components(tiny.override(probe=109).resolve())


class TestInstanceLog:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize(
        ("kind", "options"),
        [(ATAS, {"epochs": 3, "warmup": 0}), (ATTA, {}), (FGSMRS, {}), (FGSMRS, {"adaptive": True})],
    )
    def test_is_the_last_step(self, kind, options, norm):
        """The step leads from x + d to x': with the gradient there and the size of the log, the log is reproduced."""
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
        x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 10
        key = Key(3, 1, torch.arange(12).flip(0) + 5)
        method = kind(0.2, norm=norm, **options)
        spec = DatasetSpec(torch.arange(20), (1, 8, 8), seed=3)
        method.prepare(spec)
        plain = kind(0.2, norm=norm, **options)
        plain.prepare(spec)
        method.log_instances(spec)
        seen = []
        handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
        x_adv = method.perturb(model, x, y, key)
        handle.remove()
        assert x_adv.equal(plain.perturb(model, x, y, key))
        values = method.instances.values[method.instances.rows(key.index)].flatten(1)
        point = seen[-1].requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
        torch.testing.assert_close(values[:, 0], grad.flatten(1).norm(dim=1))
        size = values[:, 1].view(-1, 1, 1, 1)
        step = grad.sign() if norm == "linf" else grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        torch.testing.assert_close(method.threat.project_(point.detach() + size * step, x), x_adv)
        torch.testing.assert_close(values[:, 2], (x_adv - x).flatten(1).norm(dim=1))
        torch.testing.assert_close(values[:, 3], (x_adv - x).flatten(1).abs().amax(dim=1))

    def test_arrays_of_a_run(self, finished):
        arrays = np.load(finished.instances / "epoch-0001.npz")
        assert arrays["index"].tolist() == sorted(set(arrays["index"]))
        assert {len(arrays[name]) for name in arrays} == {108}
        assert set(arrays["step_size"]) == {np.float32(0.2)}  # the warm-up's
        later = np.load(finished.instances / "epoch-0003.npz")
        assert len(set(later["step_size"])) > 1
        order = later["grad_norm"].argsort()
        assert later["step_size"][order[:20]].mean() >= later["step_size"][order[-20:]].mean()
        assert (later["delta_linf"] <= 0.2 + 1e-6).all()

    def test_other_methods_are_refused(self, tiny):
        with pytest.raises(ConfigError, match="instance_log has no effect: it is for method atas, atta, fgsm_rs"):
            tiny.override(instance_log=True).resolve()


def work(number: int, folder: str, config: TrainConfig) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    if number == 0:
        start(Path(folder) / "two", config)
    distributed.barrier()
    resume(RunFolder(Path(folder) / "two"))
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("method", ["atas", "atta", "fgsm_rs"])
def test_two_processes_are_one(recording, tmp_path, method):
    config = recording.override(method=method, method_options=(), norm_layer="gn", batch_size=31, select_on="test")
    alone = train(tmp_path / "one", config)
    torch.multiprocessing.spawn(work, args=(str(tmp_path), config), nprocs=2)
    together = RunFolder(tmp_path / "two")
    assert recorded(together).keys() == recorded(alone).keys()
    for name in ("probe", "instances"):
        for path in (alone.path / name).glob("*"):
            expected, found = np.load(path), np.load(together.path / name / path.name)
            assert set(found) == set(expected)
            for key in found:
                assert found[key] == pytest.approx(expected[key], rel=2e-3, abs=1e-5), (path, key)


class TestBatchGradients:
    @pytest.mark.parametrize("optimizer", sorted(ALL_OPTIMIZERS))
    @pytest.mark.parametrize("method", ["pgd_at", "natural"])
    def test_every_run_logs_them(self, tiny, tmp_path, optimizer, method):
        config = tiny.override(optimizer=optimizer, method=method, epochs=1, attack_steps=None)
        (row,) = train(tmp_path / "run", config).read_metrics()
        assert 0 < row["batch_grad_square"] < float("inf")

    @pytest.mark.parametrize("optimizer", ["msgd", "mgnc", "sngm", "engm", "nengm"])
    def test_against_the_gradients_themselves(self, tiny, tmp_path, optimizer):
        """Before the norm of the whole is changed."""
        squares = []

        def note(optimizer, args, options):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            squares.append(sum(p.grad.double().square().sum().item() for p in params))

        handle = register_optimizer_step_pre_hook(note)
        (row,) = train(tmp_path / "run", tiny.override(optimizer=optimizer, epochs=1)).read_metrics()
        handle.remove()
        assert row["batch_grad_square"] == pytest.approx(np.mean(squares), rel=1e-5)

    def test_are_taken_once(self):
        weights = torch.nn.Parameter(torch.ones(2))
        optimizer = MSGD([weights], lr=0.1)
        for factor in (1.0, 2.0):
            optimizer.zero_grad()
            optimizer.backward(factor * weights.repeat(3, 1).sum(dim=1))
            optimizer.step()
        assert optimizer.take_grad_squares().tolist() == pytest.approx([2 + 8, 2])
        assert optimizer.take_grad_squares() is None


class TestDynamic:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("bn", ["eval", "batch_stats"])
    def test_record_against_a_loop(self, norm, bn):
        """One example after the other; at the median of their ends some stop, and some take all steps."""
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10)
        ).double()
        x, y = torch.rand(20, 1, 8, 8, dtype=torch.float64), torch.arange(20) % 10
        attack = FOSCPGD(0.1, 0.03, 5, norm=norm, bn=bn)
        key = Key(1, 0, torch.arange(20))
        start = attack.threat.project_(x + attack.threat.uniform(x, key), x)
        record = FOSCRecord.zeros(x)
        attack(model, x, y, key=key, record=record)
        assert record.steps.tolist() == 20 * [5]
        threshold, record = record.fosc.median().item(), FOSCRecord.zeros(x)
        x_adv = attack(model, x, y, threshold=threshold, key=key, record=record)
        for i in range(20):
            point, taken, stopped = start[i : i + 1].clone(), 0, 0.0
            for _ in range(5):
                value = fosc_of(model, point, x[i : i + 1], y[i : i + 1], attack.threat).item()
                if taken and value <= threshold:
                    stopped = 1.0
                    break
                one = PGD(0.1, 0.03, 1, norm=norm)(model, x[i : i + 1], y[i : i + 1], start=point)
                point, taken = one, taken + 1
            torch.testing.assert_close(x_adv[i : i + 1], point)
            assert record.fosc[i].item() == pytest.approx(value, rel=1e-5)
            assert (record.steps[i].item(), record.stopped[i].item()) == (taken, stopped)
        assert 0 < record.stopped.sum() < 20
        assert x_adv.equal(attack(model, x, y, threshold=threshold, key=key))

    def test_metrics(self, tiny, tmp_path):
        run = train(tmp_path / "run", tiny.override(method="dynamic", attack_steps=4, method_options=("c_max=100",)))
        first, *_, last = run.read_metrics()
        assert (first["attack_steps_mean"], first["stopped"]) == (1, 1)  # the threshold is above every FOSC
        assert last["fosc_mean"] >= 0
        assert "fosc_mean" not in train(tmp_path / "pgd", tiny.override(epochs=1)).read_metrics()[0]
