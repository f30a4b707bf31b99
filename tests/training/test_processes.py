"""Several processes that train one model, on gloo: they equal one process, and any number resumes a run."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.method_runs import ONE_OF_A_KIND, options_for
from torch import distributed

from pyengm.data import Loader
from pyengm.errors import ConfigError
from pyengm.methods import METHODS
from pyengm.training import Interrupted, RunFolder, TrainComponents, TrainConfig, build_components, fit, loop
from pyengm.training.checkpoints import find_corruption
from pyengm.utils.distributed import average_buffers, rank

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
ELSEWHERE = tempfile.gettempdir()  # -m takes a package of the working directory first, and a checkout's is not built
TINY = TrainConfig.from_flat(
    model="cnn4", width=4, norm_layer="gn", epochs=1, attack_steps=2, batch_size=30, lr=0.05, augment="shift"
)


class Double(Loader):
    """The same batches in float64."""

    def epoch(self, epoch, start=0, **options):
        for batch in super().epoch(epoch, start, **options):
            yield replace(batch, x=batch.x.double())


def in_double(config: TrainConfig) -> TrainComponents:
    components = build_components(config)
    components.model.double()
    components.model.register_forward_pre_hook(lambda model, inputs: (inputs[0].double(),))  # evaluation's are float32
    components.batches.__class__ = Double
    for store in components.method.buffers().values():
        store.values = store.values.double()
    return components


def weights_after(config: TrainConfig, out: Path) -> dict[str, torch.Tensor]:
    """Trains to the end, or on to it, and returns the final weights and stores."""
    if rank() == 0 and not out.exists():
        RunFolder.create(config.override(out=out).resolve())
    if distributed.is_initialized():
        distributed.barrier()
    components = in_double(config.resolve())
    with suppress(Interrupted):
        fit(config.resolve(), components, RunFolder.open(out))
    tensors = {name: t.clone() for name, t in components.model.state_dict().items()}
    for name, store in components.method.buffers().items():
        tensors[f"store {name}"] = store.values[store.index.argsort()]
        tensors[f"index {name}"] = store.index.sort().values
    return tensors


def stop_after(batches: int) -> None:
    """From the batch of that number on, counted over all epochs, process 0 receives a request to stop."""
    original = loop.update

    def step(config, components, group, epoch):
        done = epoch * len(components.batches) + components.schedule.last_epoch % len(components.batches) + 1
        if rank() == 0 and done >= batches:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(config, components, group, epoch)

    loop.update = step


def work(number: int, world: int, folder: str, configs: dict[str, TrainConfig]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=world)
    if "STOP_AFTER" in os.environ:
        stop_after(int(os.environ["STOP_AFTER"]))
    done = {name: weights_after(config, Path(folder) / name) for name, config in configs.items()}
    torch.save(done, f"{folder}/{number}.pt")
    distributed.destroy_process_group()


def run_together(world: int, folder: Path, configs: dict[str, TrainConfig]) -> list[dict[str, dict[str, torch.Tensor]]]:
    (folder / "meet").unlink(missing_ok=True)
    torch.multiprocessing.spawn(work, args=(world, str(folder), configs), nprocs=world)
    return [torch.load(folder / f"{number}.pt") for number in range(world)]


def assert_one(together: list[dict[str, torch.Tensor]], alone: dict[str, torch.Tensor]) -> None:
    """The weights are those of one process, in all processes alike; each has its share of the stores."""
    for name, expected in alone.items():
        if name.startswith("index "):
            shares = [other[name] for other in together]
            assert torch.cat(shares).sort().values.equal(expected)  # each image once
            assert min(map(len, shares)) >= len(expected) // len(together) - len(together)
            store = name.replace("index", "store")
            values = torch.cat([other[store] for other in together])[torch.cat(shares).argsort()]
            torch.testing.assert_close(values, alone[store], rtol=0, atol=1e-6)
        elif not name.startswith("store "):
            assert all(other[name].equal(together[0][name]) for other in together)
            torch.testing.assert_close(together[0][name], expected, rtol=0, atol=1e-6)


RUNS = {
    "pgd_at-msgd": {"optimizer": "msgd"},
    "pgd_at-engm": {"optimizer": "engm", "alpha": 0.5},
    "normalized": {"optimizer": "engm", "alpha": 0.5, "mean": (0.3,), "std": (0.4,)},
    "pgd_at-aengm": {"optimizer": "aengm", "alpha": 0.5, "tau": 3},
    "atas": {"method": "atas", "attack_steps": None, "epochs": 3, "method_options": ("warmup=1", "reset=2", "c=0.05")},
}


# NuAT's nuclear norm, the batch norm of FGSM-SDI's generator and Curriculum's sizes of steps are those of a process's
# share of a batch, and FreeAT's perturbation has a row for each image of it.
BY_PART = ("nuat", "fgsm_sdi", "free_at", "curriculum")


@pytest.fixture(scope="module")
def indices(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("indices") / "some.txt"
    path.write_text("\n".join(map(str, range(135))))
    return path


@pytest.fixture(scope="module")
def configs(indices) -> dict[str, TrainConfig]:
    """Loader of 31, 31, 31, 31 and 11 images: no half is as large as the other."""
    return {
        name: TINY.override(train_indices=indices, batch_size=31, select_on="test", **changes)
        for name, changes in RUNS.items()
    }


def test_two_processes_are_one(configs, tmp_path):
    (tmp_path / "two").mkdir()
    together = run_together(2, tmp_path / "two", configs)
    for name, config in configs.items():
        alone = weights_after(config, tmp_path / name)
        assert_one([done[name] for done in together], alone)
        rows, expected = (RunFolder(path / name).read_metrics() for path in (tmp_path / "two", tmp_path))
        for row, other in zip(rows, expected, strict=True):
            unknown = {key for key, value in other.items() if value is None}
            assert unknown == {key for key, value in row.items() if value is None}, name
            known = {key: value for key, value in other.items() if key not in unknown}
            assert {key: row[key] for key in known} == pytest.approx(known, rel=1e-6), name


@pytest.mark.filterwarnings("ignore:catastrophic")
@pytest.mark.parametrize(
    "methods", [ONE_OF_A_KIND, pytest.param([*METHODS], marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_methods(methods, indices, tmp_path):
    """Those that treat images one by one are as in one process; the others have one model in all processes."""
    (tmp_path / "two").mkdir()
    configs = {
        method: options_for(
            method,
            "msgd",
            train_indices=indices,
            norm_layer="gn",
            batch_size=34,
            select_on="test",
            width=4,
            model="resnet18" if method == "liet" else "cnn4",  # equal pixels of its starts tie in max pools
        )
        for method in methods
    }
    together = run_together(2, tmp_path / "two", configs)
    for method, config in configs.items():
        alone = weights_after(config, tmp_path / method)
        assert_one([done[method] for done in together], together[0][method] if method in BY_PART else alone)


def test_another_number_of_processes_resumes(configs, tmp_path, monkeypatch):
    """Stopped in the middle of an epoch by two processes, resumed by three, ended by one."""
    config = configs["atas"].override(batch_size=30)
    alone = weights_after(config, tmp_path / "alone")
    run = tmp_path / "atas"
    stopped = {"atas": config}
    for world, batch in ((2, 7), (3, 11)):
        with monkeypatch.context() as patch:
            patch.setenv("STOP_AFTER", str(batch))
            run_together(world, tmp_path, stopped)
    assert [path.name for path in RunFolder.open(run).checkpoints(2).complete()][-1] == "epoch-0002-batch-000001"
    assert_one([weights_after(config, run)], alone)


def test_as_many_processes_resume_exactly(indices, tmp_path, monkeypatch):
    """Bit for bit, also with statistics and perturbations that each process has of its own."""
    for method in ("free_at", "atas"):
        config = options_for(method, "engm", train_indices=indices, norm_layer="bn")
        whole, resumed = tmp_path / f"{method}-whole", tmp_path / f"{method}-resumed"
        whole.mkdir()
        resumed.mkdir()
        expected = run_together(2, whole, {"run": config})
        with monkeypatch.context() as patch:
            patch.setenv("STOP_AFTER", "5")
            run_together(2, resumed, {"run": config})
        for done, other in zip(run_together(2, resumed, {"run": config}), expected, strict=True):
            assert all(done["run"][name].equal(other["run"][name]) for name in other["run"]), method
        assert RunFolder(whole / "run").read_metrics() == RunFolder(resumed / "run").read_metrics()


def test_constants_stay_what_they_are(monkeypatch):
    """Such as the mean of pixels: a sum of seven in float32, divided by seven, is not always the number itself."""
    for name, function in (("world_size", lambda: 7), ("all_reduce_sum", lambda values: sum([values] * 7))):
        monkeypatch.setattr(f"pyengm.utils.distributed.{name}", function)
    module = torch.nn.Module()
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert not (sum([values] * 7) / 7).equal(values)
    module.register_buffer("constant", values.clone())
    average_buffers(module)
    assert module.constant.equal(values)
    average_buffers(torch.nn.Linear(2, 2))  # which has none


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
@pytest.mark.parametrize("holder", ["imported = importlib.import_module('torch.distributed.nn.functional')", "cycle()"])
def test_no_thread_of_a_group_outlives_it(holder):
    """One that still has a tensor when the interpreter ends would abort the process after all was done."""
    code = f"""
import importlib, os, torch
from pathlib import Path
from torch import distributed
from pyengm.training.launcher import process_group

def cycle():
    group = [distributed.group.WORLD]
    group.append(group)

def threads():
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]

with process_group():
    {holder}
    distributed.all_reduce(torch.ones(3))
    assert any("gloo" in name for name in threads()), threads()
assert not any("gloo" in name for name in threads()), threads()
"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    environment = os.environ | place | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment | {"RANK": number, "LOCAL_RANK": number},
            cwd=ELSEWHERE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


class TestCommand:
    TINY = (
        "--model",
        "cnn4",
        "--width",
        "2",
        "--epochs",
        "2",
        "--attack-steps",
        "1",
        "--batch-size",
        "60",
        "--cpu-threads",
        "1",
    )

    def pyengm(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pyengm", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **{"cwd": ELSEWHERE} | options)

    def test_nproc(self, tmp_path):
        """Training, AutoAttack and files, and then nothing is left to do."""
        out = ("--autoattack-examples", "3", "--out", str(tmp_path / "run"), "--nproc", "2")
        done = self.pyengm("train", *self.TINY, *out)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("run folder:") == 1
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert results["images"] == {"all": 360, "autoattack": 3}
        assert len(list((tmp_path / "run" / "autoattack").iterdir())) >= 4  # of both processes, for two threat models
        assert len(RunFolder(tmp_path / "run").read_metrics()) == 2
        again = self.pyengm("train", "--out", str(tmp_path / "run"), "--resume", "--nproc", "2")
        assert again.returncode == 0, again.stderr
        assert "the run is complete" in again.stdout

    def test_a_mistake_is_reported_once(self, tmp_path):
        done = self.pyengm("train", "--method", "pdg", "--nproc", "2", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("unknown method 'pdg'") == 1
        assert not list(tmp_path.iterdir())

    def test_an_error_in_the_processes_ends_all(self, tmp_path):
        done = self.pyengm("train", "--data", str(tmp_path / "none"), "--nproc", "2", cwd=tmp_path)
        assert done.returncode == 1
        assert "none" in done.stderr

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_saves_and_ends_with_75(self, tmp_path, number):
        long = ("--epochs", "5000", "--out", str(tmp_path / "run"), "--nproc", "2")
        command = [sys.executable, "-m", "pyengm", "train", *self.TINY, *long]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ELSEWHERE)
        run = RunFolder(tmp_path / "run")
        while process.poll() is None and len(run.checkpoints(2).complete()) == 0:
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == Interrupted.exit_status, output
        assert output.count("--resume") == 1
        newest = run.checkpoints(2).complete()[-1]
        assert find_corruption(newest) is None
        assert sorted(path.name for path in newest.glob("process*")) == ["process-0-of-2.pt", "process-1-of-2.pt"]

    def test_two_writers_are_refused(self, tmp_path):
        out = ("--out", str(tmp_path / "run"))
        assert self.pyengm("train", *self.TINY, "--autoattack-examples", "1", *out).returncode == 0
        with RunFolder.open(tmp_path / "run").locked():
            done = self.pyengm("train", "--resume", *out)
        assert done.returncode == 1
        assert f"process {os.getpid()}" in done.stderr

    def test_torchrun_resumes_with_its_own_run(self, tmp_path):
        """What torchrun starts again, after a failure or with other machines, finds the folder that it began."""
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
        command += ["--rdzv-endpoint=localhost:0", "--rdzv-id=mine", "-m", "pyengm", "train", *self.TINY]
        command += ["--autoattack-examples", "1", "--out", str(tmp_path / "run")]
        for text in ("run folder", "the run is complete"):
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ELSEWHERE)
            assert done.returncode == 0, done.stderr
            assert text in done.stdout
        other = [word.replace("--rdzv-id=mine", "--rdzv-id=other") for word in command]
        done = subprocess.run(other, capture_output=True, text=True, timeout=300, cwd=ELSEWHERE)
        assert done.returncode != 0
        assert "exists and is not overwritten" in done.stderr


class TestShares:
    def test_every_image_is_kept_once(self, indices):
        config = TINY.override(train_indices=indices, batch_size=33, select_on="test").resolve()  # 135 = 4 * 33 + 3
        data = build_components(config).batches.data
        options = {"device": "cpu", "seed": 0, "augment": "none", "shuffle": True}
        loaders = [Loader(data, 33, rank=i, world_size=4, **options) for i in range(4)]
        assert {len(loader) for loader in loaders} == {5}  # the last two are evened out: three are not enough for four
        for epoch in (0, 1):
            index = torch.cat([loader.local_index(epoch) for loader in loaders])
            assert index.sort().values.equal(data.index)
            seen = torch.cat([batch.index for loader in loaders for batch in loader.epoch(epoch)])
            assert len(seen.unique()) == len(seen) == 135
        with pytest.raises(ConfigError, match="use fewer processes or larger batches"):
            Loader(data, 7, rank=0, world_size=4, **options)

    def test_batch_norm_over_processes_needs_gpus(self, indices, monkeypatch):
        monkeypatch.setattr("pyengm.training.builders.world_size", lambda: 2)
        monkeypatch.setattr("pyengm.training.builders.rank", lambda: 1)
        with pytest.raises(ConfigError, match="sync_bn needs GPUs"):
            build_components(TINY.override(train_indices=indices, norm_layer="bn", sync_bn=True).resolve())
