"""A run survives what ends it: kills at any moment, signals, a full disk. What it comes to in the end is the same."""

import errno
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.phase_logger import PHASES, phases_path, read_phases
from PIL import Image
from safetensors.torch import load_file
from torch import distributed

import pyengm
from pyengm import cli
from pyengm.cli import evaluate
from pyengm.cli.train import parse_train
from pyengm.errors import ConfigError, Interrupted, StorageError
from pyengm.evaluation import autoattack_runs, parallel
from pyengm.evaluation import model_sources as evaluation
from pyengm.models import load_checkpoint
from pyengm.training import RunFolder, TrainConfig, checkpoints, loop
from pyengm.training.checkpoints import Checkpoints, find_corruption
from pyengm.training.loggers import JsonLines

# Stores, estimated norms under batch norm, and an average: all that a checkpoint can hold.
OPTIONS = ["--method", "atas", "--method-options", "warmup=1", "reset=2", "c=0.05", "--optimizer", "engm"]
OPTIONS += ["--norm-layer", "bn", "--average", "ema", "--model", "cnn4", "--lr", "0.05", "--seed", "3"]
OPTIONS += ["--cpu-threads", "1", "--autoattack-examples", "1"]
LONG = [*OPTIONS, "--width", "4", "--batch-size", "60", "--epochs", "24", "--loggers", "phase_logger:PhaseLogger"]
SHORT = [*OPTIONS, "--width", "2", "--batch-size", "30", "--epochs", "3"]

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")


def begin(out: Path, *options: str, **more) -> subprocess.Popen:
    """`pyengm train` on this tree in a process of its own."""
    phases_path(out).unlink(missing_ok=True)
    folders = [str(Path(pyengm.__file__).parents[1]), str(Path(__file__).parents[1] / "helpers")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pyengm", "train", *options, "--out", str(out)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    elsewhere = {"cwd": out.parent}  # -m takes a package of the working directory first, and a checkout's is not built
    return subprocess.Popen(command, env=environment, **streams, **elsewhere | more)


def check_whole(run: RunFolder) -> None:
    """Every file that is there can be read, and holds what was written."""
    assert all(find_corruption(checkpoint) is None for checkpoint in run.checkpoints(2).complete())
    for path in run.path.glob("*.safetensors"):
        load_checkpoint(path)  # compares with the digest in the header
    for path in run.path.glob("*.jsonl"):
        assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == list(range(count_lines(path)))
    for path in (*run.path.glob("*.json"), *run.path.glob("autoattack/*.json")):
        json.loads(path.read_text())
    for path in run.path.glob("autoattack/*.safetensors"):
        load_file(path)
    if run.curves.exists():
        Image.open(run.curves).load()
    if run.config.exists():
        TrainConfig.load(run.config)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def assert_same_end(run: RunFolder, whole: RunFolder) -> None:
    """Bit by bit, down to what a checkpoint holds of optimiser, stores and averages; and nothing is left over."""
    check_whole(run)
    for path in (whole.best, whole.last, whole.metrics, whole.results):
        assert (run.path / path.name).read_bytes() == path.read_bytes(), path.name
    last, expected = (some.checkpoints(2).complete()[-1] / checkpoints.MANIFEST for some in (run, whole))
    assert last.parent.name == expected.parent.name
    assert last.read_text() == expected.read_text()
    assert not list(run.path.glob(".*.tmp"))


Kill = Callable[[subprocess.Popen, int], Any]  # of a process, and how many were killed before


class TestKilledProcesses:
    """SIGKILL at random moments of every phase of a run, a process each time."""

    @pytest.mark.slow
    @NEEDS_PROC
    def test_one_process(self, tmp_path):
        """The processes of its evaluation end by themselves."""
        counts = {"start-up": 4, "training": 4, "measuring": 3, "writing": 5, "evaluation": 4}
        kill_and_resume(tmp_path, counts, lambda process, number: process.kill())

    @pytest.mark.slow
    @NEEDS_PROC
    @pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
    def test_two_processes(self, tmp_path):
        """All of them, the launcher alone, or one of the others, whereupon the rest end by themselves."""

        def kill(process: subprocess.Popen, number: int) -> None:
            workers = sorted(pid for pid, parent in parents().items() if parent == process.pid)
            victims = ([process.pid, *workers], [process.pid], workers[:1], workers[1:])[number % 4]
            for victim in victims or [process.pid]:  # which has not started the others yet
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)

        counts = {"start-up": 2, "training": 3, "measuring": 2, "writing": 3, "evaluation": 2}
        kill_and_resume(tmp_path, counts, kill, "--nproc", "2")


def kill_and_resume(folder: Path, counts: Mapping[str, int], kill: Kill, *options: str, seed: int = 0) -> None:
    """Kills a run as often in each phase as `counts` says; each time its files are whole, and it resumes."""
    whole, run = RunFolder(folder / "whole"), RunFolder(folder / "killed")
    began = time.monotonic()
    said, _ = (process := begin(whole.path, *LONG, *options)).communicate()
    assert process.returncode == 0, said
    planned = moments(counts, [(began, "start-up"), *read_phases(whole.path), (time.monotonic(), "")], seed)
    killed: Counter[str] = Counter()
    for number, moment in enumerate(planned):
        goes_on = run.config.exists()
        began, process = time.monotonic(), begin(run.path, *(["--resume"] if goes_on else LONG), *options)
        came = moment.wait(process, run.path, began)
        family, notes = [process.pid, *below(process.pid)], read_phases(run.path)
        if came:
            kill(process, number)
        said, _ = process.communicate(timeout=120)
        assert_gone(family)
        if not came or process.returncode == 0:  # the end came before the moment, or before the kill had its effect
            assert (moment.phase, process.returncode) == ("evaluation", 0), f"{moment} did not come: {said}"
            break
        assert process.returncode != 137 or re.search("process [01] was ended by signal 9, so all are", said)
        phase = notes[-1][1] if notes else "start-up"
        print(f"kill {number + 1}: {moment}, found in {phase}; status {process.returncode}")
        killed[phase] += 1
        check_whole(run)
    print(f"kills with seed {seed}: {dict(killed)}")
    said, _ = (process := begin(run.path, "--resume", *options)).communicate()
    assert process.returncode == 0, said
    assert_same_end(run, whole)
    assert set(killed) == set(PHASES)


@dataclass(frozen=True)
class Moment:
    """`after` seconds since a process entered the phase for the `turn`-th time."""

    phase: str
    turn: int
    after: float

    def wait(self, process: subprocess.Popen, out: Path, began: float) -> bool:
        """Whether that moment came before the process ended."""
        while process.poll() is None:
            entries = [at for at, phase in [(began, "start-up"), *read_phases(out)] if phase == self.phase]
            if len(entries) >= self.turn and time.monotonic() >= entries[self.turn - 1] + self.after:
                return True
            time.sleep(0.001)
        return False


def moments(counts: Mapping[str, int], notes: list[tuple[float, str]], seed: int) -> Iterator[Moment]:
    """Random ones, spread over as long as each phase took in an uninterrupted run, of which the notes are."""
    chance = random.Random(seed)
    took = {name: [] for name in PHASES}
    for (start, phase), (stop, _) in pairwise(notes):
        took[phase].append(stop - start)
    took["evaluation"] = [seconds / 4 for seconds in took["evaluation"]]  # what AutoAttack has done stays done
    phases = [name for name, count in counts.items() if name != "evaluation" for _ in range(count)]
    chance.shuffle(phases)
    for phase in phases + ["evaluation"] * counts["evaluation"]:
        turn = 1 if phase in ("start-up", "evaluation") else chance.randint(1, 2)
        yield Moment(phase, turn, chance.uniform(0, sorted(took[phase])[len(took[phase]) // 2]))


def parents() -> dict[int, int]:
    """The parent of every process that runs. From /proc, as ps takes longer than a phase lasts."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(path.parent.name)] = int(parent)
    return found


def below(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    listed, found = parents(), [pid]
    for one in found:
        found += [child for child, parent in listed.items() if parent == one]
    return found[1:]


def assert_gone(pids: list[int], within: float = 60) -> None:
    """Waits until none of the processes is left."""
    until = time.monotonic() + within
    while left := parents().keys() & set(pids):
        assert time.monotonic() < until, f"processes {left} are still there after {within} seconds"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> list[str]:
    """The options of a run of three epochs of four batches."""
    path = tmp_path_factory.mktemp("indices") / "first.txt"
    path.write_text("\n".join(map(str, range(120))))
    return [*SHORT, "--train-indices", str(path)]


@pytest.fixture(scope="module")
def whole(short, tmp_path_factory) -> RunFolder:
    """Their uninterrupted run."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "cores", lambda: 1)
        assert cli.main(["train", *short, "--out", str(run.path)]) == 0
    return run


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """--cpu-threads is of the process; other tests have their own."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Shells start background jobs with SIGINT ignored, which Python then leaves so."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def alone(monkeypatch) -> None:
    """The evaluation in this process, where a test can reach it."""
    monkeypatch.setattr(parallel, "cores", lambda: 1)


def call_before(
    patch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    action: Callable[[], Any],
    when: Callable[[], bool] = lambda: True,
) -> None:
    """`action` before the next call of owner.name for which `when` holds, and that one alone."""
    original, done = getattr(owner, name), []

    def called(*args, **kwargs):
        if not done and when():
            done.append(True)
            action()
        return original(*args, **kwargs)

    patch.setattr(owner, name, called)


def send(*numbers: int) -> Callable[[], Any]:
    return lambda: [signal.raise_signal(number) for number in numbers]


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_one(self, short, whole, alone, tmp_path, monkeypatch, capsys, number):
        """Ends with 75: after a batch, the next one while an epoch is measured; at the end of all; in evaluation."""
        run = RunFolder(tmp_path / "run")
        options = [*short, "--out", str(run.path)]
        for owner, name, epoch, said in (
            (loop, "update", 0, "stopped after batch 1 of epoch 1"),
            (loop, "predict", 0, "stopped after batch 1 of epoch 2"),
            (Checkpoints, "save", 3, "the training is complete; to evaluate it"),
            (evaluation, "load_checkpoint", 3, "the training is complete; to evaluate it"),
        ):
            with monkeypatch.context() as patch:
                call_before(patch, owner, name, send(number), lambda epoch=epoch: len(run.read_metrics()) >= epoch)
                assert cli.main(["train", *options]) == Interrupted.exit_status
            assert said in (text := " ".join(capsys.readouterr().err.split()))
            assert f"resume with: pyengm train --out {run.path} --resume" in text
            check_whole(run)
            options = ["--resume", "--out", str(run.path)]
        assert cli.main(["train", *options]) == 0
        assert_same_end(run, whole)

    def test_a_second_ctrl_c_ends_at_once(self, short, whole, alone, tmp_path, monkeypatch, capsys):
        run = RunFolder(tmp_path / "run")
        twice = send(signal.SIGINT, signal.SIGINT)
        with monkeypatch.context() as patch:
            call_before(patch, loop, "update", twice, lambda: len(run.read_metrics()) == 1)
            assert cli.main(["train", *short, "--out", str(run.path)]) == 130
        assert "interrupted" in capsys.readouterr().err
        assert [path.name for path in run.checkpoints(2).complete()] == ["epoch-0001-batch-000000"]
        assert cli.main(["train", "--resume", "--out", str(run.path)]) == 0
        assert_same_end(run, whole)

    @NEEDS_PROC
    def test_in_the_evaluation_of_a_process(self, whole, alone, tmp_path):
        """SIGTERM does not wait for AutoAttack, and leaves none of the processes that it runs in."""
        run = RunFolder(tmp_path / "run")
        shutil.copytree(whole.path, run.path, ignore=shutil.ignore_patterns("results*", "autoattack", "curves.png"))
        process = begin(run.path, "--resume", "--autoattack-examples", "360")
        while process.poll() is None and len(list(run.autoattack.glob("l*"))) < 2:  # both of its processes are at work
            time.sleep(0.02)
        family = below(process.pid)
        process.terminate()
        said, _ = process.communicate(timeout=30)
        assert process.returncode == Interrupted.exit_status, said
        assert f"resume with: pyengm train --out {run.path} --resume" in said
        assert "Traceback" not in said
        assert_gone(family, within=10)
        assert not run.results.exists()
        assert cli.main(["train", "--resume", "--autoattack-examples", "1", "--out", str(run.path)]) == 0
        assert_same_end(run, whole)

    def test_a_killed_process_of_the_evaluation(self, whole, tmp_path, monkeypatch, capsys):
        """As by a system that is out of memory."""
        monkeypatch.setattr(parallel, "cores", lambda: 2)
        original = parallel.wait

        def wait(*args, **kwargs):
            for child in multiprocessing.active_children():
                child.kill()
            return original(*args, **kwargs)

        monkeypatch.setattr(parallel, "wait", wait)
        torch.set_num_threads(1)
        assert cli.main(["evaluate", str(whole.path), "--autoattack-examples", "1"]) == 1
        assert "a process of the evaluation was killed" in capsys.readouterr().err


def fill_disk(size: int = 0) -> None:
    """From now on no file grows beyond that many bytes: a full disk, but for the text of the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def room_again() -> Iterator[None]:
    """On leaving, the disk is as before."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def epochs_saved(run: RunFolder) -> int:
    """Epochs that a checkpoint counts."""
    return max((int(path.name.split("-")[1]) for path in run.checkpoints(2).complete()), default=0)


def error_of(capsys) -> str:
    """The one line of an error."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


class TestFullDisk:
    def test_at_every_file(self, short, whole, alone, tmp_path, monkeypatch, capsys):
        """A run that finds the disk full at each of its files in turn, and is resumed when there is room again."""
        run = RunFolder(tmp_path / "run")
        with room_again():
            fill_disk()
            assert cli.main(["train", *short, "--out", str(run.path)]) == 1
        assert f"cannot start the run in {run.path}: cannot write {run.config}: " in error_of(capsys)
        assert not run.path.exists()
        options = [*short, "--out", str(run.path)]
        for owner, name, file, epochs in (
            (RunFolder, "add_environment", "environment.json", 0),
            (JsonLines, "epoch", "metrics.jsonl", 0),
            (RunFolder, "save_weights", "best.safetensors", 0),
            (checkpoints, "_write", "checkpoints", 0),
            (JsonLines, "epoch", "metrics.jsonl", 1),
            (RunFolder, "save_weights", ".safetensors", 1),
            (checkpoints, "_write", "checkpoints", 1),
            (Checkpoints, "_publish", "checkpoints", 1),
            (JsonLines, "start", "metrics.jsonl", 1),
            (import_module("pyengm.training.run"), "plot_curves", "curves.png", 3),
            (autoattack_runs.RunState, "save", "autoattack", 3),
            (RunFolder, "save_results", "results.txt", 3),
        ):
            with monkeypatch.context() as patch, room_again():
                call_before(patch, owner, name, fill_disk, lambda epochs=epochs: epochs_saved(run) == epochs)
                assert cli.main(["train", *options]) == 1, file
            error = error_of(capsys)
            assert re.search(rf"cannot write .*{run.path.name}/[a-z/]*{re.escape(file)}.*File too large", error)
            assert f"resume with: pyengm train --out {run.path} --resume" in error
            check_whole(run)
            assert epochs_saved(run) == epochs
            assert not list(run.path.rglob(".*tmp"))
            options = ["--resume", "--out", str(run.path)]
        assert cli.main(["train", *options]) == 0
        assert_same_end(run, whole)

    def test_in_a_process(self, short, whole, alone, tmp_path):
        """Of the command as a user runs it, where checkpoints are too large for what is left."""
        run = RunFolder(tmp_path / "run")
        limit = partial(fill_disk, 2 * whole.last.stat().st_size)
        said, _ = (process := begin(run.path, *short, preexec_fn=limit)).communicate()
        assert process.returncode == 1
        (line,) = (line for line in said.splitlines() if "error" in line)
        assert f"cannot write a checkpoint to {run.path / 'checkpoints'}" in line
        assert "File too large" in line
        assert said.splitlines()[-1] == line
        assert cli.main(["train", "--resume", "--out", str(run.path)]) == 0
        assert_same_end(run, whole)

    def test_no_half_line(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        log = JsonLines(path, tmp_path / "timing.jsonl")
        log.epoch({"epoch": 0}, {})
        before = path.read_bytes()
        with room_again():
            fill_disk(len(before) + 5)
            with pytest.raises(StorageError, match=r"cannot write .*metrics\.jsonl"):
                log.epoch({"epoch": 1, "loss": 0.25}, {})
        assert path.read_bytes() == before

    def test_tensorboard(self, short, whole, alone, tmp_path, monkeypatch, capsys):
        pytest.importorskip("tensorboard")
        tensorboard = import_module("pyengm.training.loggers.tensorboard").TensorBoard
        run = RunFolder(tmp_path / "run")
        monkeypatch.setattr("threading.excepthook", lambda args: None)  # its thread's own account of the error
        with monkeypatch.context() as patch, room_again():
            call_before(patch, tensorboard, "epoch", fill_disk)
            patch.setattr(JsonLines, "epoch", lambda *args: None)  # which would find it full before
            assert cli.main(["train", *short, "--loggers", "tensorboard", "--out", str(run.path)]) == 1
        assert f"cannot write {run.path / 'tensorboard'}: " in error_of(capsys)
        assert cli.main(["train", "--resume", "--out", str(run.path)]) == 0
        assert_same_end(run, whole)

    def test_results_of_an_evaluation(self, whole, alone, tmp_path, monkeypatch, capsys):
        out = tmp_path / "found.json"
        options = ["evaluate", str(whole.last), "--autoattack-examples", "1", "--threat", "linf", "--out", str(out)]
        with monkeypatch.context() as patch, room_again():
            call_before(patch, evaluate, "evaluation_tables", fill_disk)
            assert cli.main(options) == 1
        assert f"cannot write {out}: " in error_of(capsys)
        assert not out.exists()
        assert cli.main(options) == 0
        assert json.loads(out.read_text())["last"]["pgd20"] == json.loads(whole.results.read_text())["last"]["pgd20"]


class TestNowhereToWrite:
    @pytest.mark.parametrize(
        ("command", "message"), [("train", "cannot start the run in"), ("evaluate", "cannot make the folder")]
    )
    def test_below_a_file(self, short, whole, tmp_path, capsys, command, message):
        (tmp_path / "file").write_text("mine")
        arguments = short if command == "train" else [str(whole.path)]
        assert cli.main([command, *arguments, "--out", str(tmp_path / "file" / "run")]) == 1
        assert f"{message} {tmp_path / 'file'}" in error_of(capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("name", ["mkdir", "write_text"])
    def test_not_permitted(self, short, tmp_path, monkeypatch, capsys, name):
        def refuse(path, *args, **kwargs):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(Path, name, refuse)
        assert cli.main(["train", *short, "--out", str(tmp_path / "run")]) == 1
        assert "Permission denied" in (error := error_of(capsys))
        assert "choose another --out" in error
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_in_a_folder_of_others(self, short, tmp_path, capsys):
        tmp_path.chmod(0o500)
        assert cli.main(["train", *short, "--out", str(tmp_path / "run")]) == 1
        assert "choose another --out" in error_of(capsys)
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_run_that_became_read_only(self, whole, tmp_path, capsys):
        run = RunFolder(tmp_path / "run")
        shutil.copytree(whole.path, run.path, ignore=shutil.ignore_patterns(".lock"))
        run.path.chmod(0o500)
        assert cli.main(["train", "--resume", "--out", str(run.path)]) == 1
        assert f"cannot write {run.path / '.lock'}: " in error_of(capsys)


class TestBeginning:
    """A process killed before config.yaml was whole has begun no run: the same command does."""

    def test_after_a_kill(self, short, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
        run = RunFolder(tmp_path / "run")
        run.path.mkdir()
        run.job.write_text("mine\n")
        (run.path / ".config.yaml.123.tmp").write_text("data: dig")
        assert parse_train(["--out", str(run.path)]).run.resume is False
        config = parse_train([*short, "--out", str(run.path)])
        assert RunFolder.create(config).config.is_file()
        assert parse_train([*short, "--out", str(run.path)]).run.resume is True
        with run.locked():
            assert sorted(path.name for path in run.path.iterdir()) == [".job", ".lock", "config.yaml"]

    @pytest.mark.parametrize("name", [".git", "config.yaml", "notes.tmp", ".other.tmp"])
    def test_a_folder_of_something_else(self, short, tmp_path, name):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match="is not overwritten"):
            RunFolder.create(parse_train([*short, "--out", str(tmp_path)]))
        assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
