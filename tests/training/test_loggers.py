"""Loggers: the calls that they get, that they are closed, and that a resumed run logs nothing twice."""

import io
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import resume, train
from rich.console import Console

from pyengm.cli.train import parse_train
from pyengm.errors import CheckpointError, ConfigError, NonFiniteError
from pyengm.methods import StepOutput
from pyengm.pergrad import PerExampleStats
from pyengm.training import Interrupted, Logger, RunFolder, TrainConfig, build_components, fit, loop, timing
from pyengm.training.checkpoints import Checkpoints
from pyengm.training.loggers import JsonLines, Loggers, Terminal, build_logger
from pyengm.training.metric_sums import means, measure, read_sums, write_sums, zero_sums
from pyengm.training.signals import StopRequest
from pyengm.training.timing import EpochTimer, peak_memory

CPU = torch.device("cpu")
BATCHES, IMAGES = 4, 108  # of 120 images, in batches of 30, 30, 30 and 18
MEANS = {"loss", "train_robust", "clipped", "grad_norm_mean", "grad_norm_var", "grad_norm_error", "batch_grad_square"}
HELD_OUT = {"natural", "natural_loss", "natural_ece", "robust", "robust_loss", "robust_ece"}
EPOCH_TIMING = {"images_per_second", "seconds_training", "seconds_evaluation", "seconds_to_finish", "peak_memory_mib"}


@pytest.fixture(scope="module")
def tiny(tiny) -> TrainConfig:
    return tiny.override(attack_steps=1)


class Recorder(Logger):
    """Records all calls."""

    def __init__(self, *_):
        self.calls = []

    def start(self, *arguments):
        self.calls.append(("start", *arguments))

    def step(self, row, timing):
        self.calls.append(("step", row, timing))

    def epoch(self, row, timing):
        self.calls.append(("epoch", row, timing))

    def log(self, line):
        self.calls.append(("log", line))

    def close(self):
        self.calls.append(("close",))

    def calls_of(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


def interrupt(monkeypatch, when: int) -> None:
    """Requests that the run stops at the batch of that number, counted over all processes from 1."""
    original, steps = loop.update, []

    def step(*arguments):
        steps.append(1)
        return original(*arguments)

    monkeypatch.setattr(loop, "update", step)
    requested = property(lambda self: len(steps) == when, lambda self, value: None)
    monkeypatch.setattr(StopRequest, "requested", requested, raising=False)


@pytest.fixture(scope="module")
def recorded(tiny, tmp_path_factory):
    recorder = Recorder()
    return recorder, train(tmp_path_factory.mktemp("runs") / "run", tiny, recorder)


class TestInTheLoop:
    def test_order(self, recorded):
        names = [call[0] for call in recorded[0].calls]
        assert names == ["start", *3 * [*BATCHES * ["step"], "epoch"], "close"]

    def test_start(self, recorded):
        recorder, run = recorded
        ((config, batches, epoch, batch),) = recorder.calls_of("start")
        saved = TrainConfig.load(run.config)
        assert config == saved.plain()
        assert config["schedule"]["epochs"] == 3
        assert json.dumps(config)
        assert config["data"]["train_indices"] == str(saved.data.train_indices)
        assert (batches, epoch, batch) == (BATCHES, 0, 0)

    def test_rows_of_epochs(self, recorded):
        recorder, run = recorded
        rows = [row for row, _ in recorder.calls_of("epoch")]
        assert rows == run.read_metrics()
        for row in rows:
            assert row.keys() == MEANS | HELD_OUT | {"epoch", "lr", "train_pgd", "catastrophic_overfitting", "best"}
            assert row["grad_norm_mean"] > 0
            assert row["grad_norm_var"] > 0
            assert 0 <= row["natural_ece"] <= 1
            assert 0 <= row["robust_ece"] <= 1
            assert row["natural_loss"] < row["robust_loss"]

    def test_rows_of_steps_make_up_the_epoch(self, recorded):
        recorder, _ = recorded
        steps = [row for row, _ in recorder.calls_of("step")]
        assert [(row["epoch"], row["batch"]) for row in steps] == [(e, b) for e in range(3) for b in (1, 2, 3, 4)]
        assert all(row.keys() == MEANS | {"epoch", "batch", "lr"} for row in steps)
        for epoch, (row, _) in enumerate(recorder.calls_of("epoch")):
            own = [step for step in steps if step["epoch"] == epoch]
            assert len({step["loss"] for step in own}) == BATCHES
            for name in ("loss", "train_robust", "clipped", "grad_norm_mean"):
                total = sum(step[name] * n for step, n in zip(own, (30, 30, 30, 18), strict=True))
                assert total / IMAGES == pytest.approx(row[name], rel=1e-12), name
            assert own[-1]["lr"] == row["lr"]

    def test_timing(self, recorded):
        recorder, run = recorded
        lines = [json.loads(line) for line in run.timing.read_text().splitlines()]
        assert lines == [{"epoch": row["epoch"], **timing} for row, timing in recorder.calls_of("epoch")]
        assert all(line.keys() == {"epoch"} | EPOCH_TIMING for line in lines)
        for line in lines:
            assert line["images_per_second"] * line["seconds_training"] == pytest.approx(IMAGES)
            assert line["seconds_evaluation"] > 0
            assert line["peak_memory_mib"] > 10
        assert lines[-1]["seconds_to_finish"] == 0 < lines[0]["seconds_to_finish"] < 60
        steps = [timing for _, timing in recorder.calls_of("step")]
        assert all(timing.keys() == {"images_per_second", "seconds_to_finish"} for timing in steps)

    def test_rows_of_several_batches(self, tiny, tmp_path, monkeypatch):
        """As on a GPU, where the loop looks seldom."""
        monkeypatch.setattr(loop, "sync_interval", lambda device: 3)
        recorder = Recorder()
        train(tmp_path / "run", tiny.override(epochs=1), recorder)
        (first, _), (last, _) = recorder.calls_of("step")
        ((row, _),) = recorder.calls_of("epoch")
        assert (first["batch"], last["batch"]) == (3, 4)
        assert (90 * first["loss"] + 18 * last["loss"]) / IMAGES == pytest.approx(row["loss"], rel=1e-12)

    def test_gradient_norms_are_those_of_the_optimizer(self, tiny, tmp_path, monkeypatch):
        norms = []

        def spy(used, y, grad_squares):
            norms.extend(weights.norms for _, weights in used)
            return measure(used, y, grad_squares)

        monkeypatch.setattr(loop, "measure", spy)
        (row,) = train(tmp_path / "run", tiny.override(epochs=1)).read_metrics()
        norms = torch.cat(norms).double()
        assert row["grad_norm_mean"] == pytest.approx(norms.mean().item(), rel=1e-9)
        assert row["grad_norm_var"] == pytest.approx(norms.var(correction=0).item(), rel=1e-6)

    @pytest.mark.parametrize(
        ("optimizer", "norm_layer", "norms", "error"),
        [("msgd", "bn", False, False), ("nengm", "bn", False, False), ("engm", "gn", True, False)],
    )
    def test_what_was_not_measured_is_none(self, tiny, tmp_path, optimizer, norm_layer, norms, error):
        config = tiny.override(epochs=1, optimizer=optimizer, norm_layer=norm_layer)
        (row,) = train(tmp_path / "run", config).read_metrics()
        assert (row["grad_norm_mean"] is not None) == (row["grad_norm_var"] is not None) == norms
        assert (row["grad_norm_error"] is not None) == error

    def test_error_of_fitted_norms(self, tiny, tmp_path):
        rows = train(tmp_path / "run", tiny.override(norm_layer="bn", optimizer="engm", epochs=2)).read_metrics()
        assert 0 < rows[0]["grad_norm_error"] < 1

    def test_nothing_is_held_out(self, tiny, tmp_path):
        (row,) = train(tmp_path / "run", tiny.override(epochs=1, select_on="none")).read_metrics()
        assert not HELD_OUT & row.keys()

    def test_catastrophe(self, tiny, tmp_path, monkeypatch):
        left, recorder = iter([0.9, 0.1]), Recorder()
        monkeypatch.setattr(loop, "training_accuracy", lambda *_: next(left))
        with pytest.warns(UserWarning, match="catastrophic"):
            train(tmp_path / "run", tiny.override(on_catastrophic_overfitting="stop"), recorder)
        assert recorder.calls_of("epoch")[-1][0]["catastrophic_overfitting"]
        assert not recorder.calls_of("epoch")[-1][0]["best"]
        assert "stopped" in recorder.calls_of("log")[0][0]
        assert recorder.calls[-1] == ("close",)


class TestClosed:
    def test_after_a_nan(self, tiny, tmp_path, monkeypatch):
        def step(config, components, group, epoch):
            raise NonFiniteError("nan")

        monkeypatch.setattr(loop, "update", step)
        recorder = Recorder()
        with pytest.raises(NonFiniteError):
            train(tmp_path / "run", tiny, recorder)
        assert [call[0] for call in recorder.calls] == ["start", "close"]

    def test_after_an_interruption(self, tiny, tmp_path, monkeypatch):
        interrupt(monkeypatch, 2)
        recorder = Recorder()
        with pytest.raises(Interrupted):
            train(tmp_path / "run", tiny, recorder)
        assert recorder.calls[-1] == ("close",)

    def test_where_another_cannot_be_built(self, tiny, tmp_path, monkeypatch):
        recorder = Recorder()
        config = tiny.override(out=tmp_path / "run").resolve()
        components = build_components(config)
        with pytest.raises(ConfigError, match=r"globals returned a dict; expected a pyengm\.training\.Logger"):
            fit(config.override(loggers=("builtins:globals",)), components, RunFolder.create(config), [recorder])
        assert recorder.calls == [("close",)]

    def test_where_the_saved_state_is_damaged(self, tiny, tmp_path):
        run = train(tmp_path / "run", tiny.override(epochs=1))
        (run.checkpoints(2).complete()[0] / "state.pt").write_bytes(b"no state")
        recorder = Recorder()
        with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError, match="damaged"):
            resume(run, recorder)
        assert recorder.calls == [("close",)]

    def test_each_although_others_fail(self):
        class Broken(Recorder):
            def start(self, *_):
                raise OSError("no space")

            def close(self):
                super().close()
                raise OSError("still none")

        loggers = [Recorder(), Broken(), Recorder()]
        with pytest.raises(OSError, match="still none"), Loggers(loggers) as log:
            log.start({}, 1, 0, 0)
        assert all(logger.calls_of("close") == [()] for logger in loggers)


class TestNames:
    @pytest.mark.parametrize("name", ["tensorbord", ":", "module:", ":factory"])
    def test_unknown(self, name):
        with pytest.raises(ConfigError, match=f"unknown logger '{name}'; known: tensorboard.*MODULE:NAME"):
            TrainConfig.from_flat(loggers=(name,))

    def test_hint(self):
        with pytest.raises(ConfigError, match="did you mean tensorboard"):
            TrainConfig.from_flat(loggers=("tensorbord",))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nowhere_to_be_found:make", "no module 'nowhere_to_be_found'.*working directory.*PYTHONPATH"),
            ("broken_logger:make", "cannot import broken_logger: ZeroDivisionError: .*broken_logger.py, line 1"),
            ("own_logger:mkae", r"own_logger.py has no function or class 'mkae' \(did you mean make\?\)"),
            ("own_logger:NUMBER", "expected a function or class, got NUMBER of type int"),
        ],
    )
    def test_that_cannot_work_stop_the_run_before_it_has_a_folder(self, tiny, tmp_path, monkeypatch, name, message):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "broken_logger.py").write_text("1 / 0")
        (tmp_path / "own_logger.py").write_text("NUMBER = 3\ndef make(folder, config): ...")
        with pytest.raises(ConfigError, match=message):
            train(tmp_path / "run", tiny.override(loggers=(name,)))
        assert not (tmp_path / "run").exists()
        sys.modules.pop("own_logger", None)

    def test_own(self, tiny, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "my_logger.py").write_text(
            "from pyengm.training import Logger\n"
            "class Mine(Logger):\n"
            "    def __init__(self, folder, config):\n"
            "        self.path, self.method = folder / 'mine.txt', config['method']['name']\n"
            "    def epoch(self, row, timing):\n"
            "        with open(self.path, 'a') as file:\n"
            "            print(self.method, row['epoch'], file=file)\n"
        )
        run = train(tmp_path / "run", tiny.override(epochs=2, loggers=("my_logger:Mine",)))
        assert (run.path / "mine.txt").read_text() == "pgd_at 0\npgd_at 1\n"
        assert TrainConfig.load(run.config).run.loggers == ("my_logger:Mine",)

    @pytest.mark.parametrize("method", ["start", "step", "epoch", "close"])
    def test_one_that_fails_is_left_out(self, tiny, tmp_path, monkeypatch, method):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "failing.py").write_text(
            "from pyengm.training import Logger\n"
            "calls = []\n"
            "def fail(*_):\n"
            "    calls.append('failed')\n"
            "    raise RuntimeError('out of ink')\n"
            "def close(self): calls.append('closed')\n"
            f"Failing = type('Failing', (Logger,), {{'close': close, '{method}': fail}})\n"
        )
        with pytest.warns(UserWarning, match=f"logger failing:Failing failed in {method} .*out of ink") as caught:
            run = train(tmp_path / "run", tiny.override(epochs=2, loggers=("failing:Failing",)))
        assert len(caught) == 1
        assert sys.modules.pop("failing").calls == ["failed", *(["closed"] if method != "close" else [])]
        assert len(run.read_metrics()) == 2
        assert len(run.checkpoints(2).complete()) == 2

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("def __init__(self, path): ...", "missing a required argument: 'path'; .* folder, config"),
            ("def __init__(self): raise OSError('shut')", "failed with OSError: shut"),
        ],
    )
    def test_constructors_that_cannot_work(self, tiny, tmp_path, monkeypatch, code, message):
        monkeypatch.syspath_prepend(tmp_path)
        head = "from pyengm.training import Logger\nclass Odd(Logger):\n"
        (tmp_path / "odd_logger.py").write_text(f"{head}    {code}\n")
        with pytest.raises(ConfigError, match=message):
            train(tmp_path / "run", tiny.override(loggers=("odd_logger:Odd",)))
        sys.modules.pop("odd_logger", None)

    def test_a_default_constructor_is_enough(self, tiny, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "plain_logger.py").write_text(
            "from pyengm.training import Logger\n"
            "epochs = []\n"
            "class Plain(Logger):\n"
            "    def epoch(self, row, timing): epochs.append(row['epoch'])\n"
        )
        train(tmp_path / "run", tiny.override(epochs=1, loggers=("plain_logger:Plain",)))
        assert sys.modules.pop("plain_logger").epochs == [0]

    def test_of_a_resumed_run_may_change(self, tiny, tmp_path):
        run = train(tmp_path / "run", tiny.override(epochs=1))
        config = parse_train(["--out", str(run.path), "--resume", "--loggers", "tensorboard", "own:make"])
        assert config.run.loggers == ("tensorboard", "own:make")

    def test_tensorboard_is_optional(self, tiny, monkeypatch):
        for name in [n for n in sys.modules if n.startswith(("torch.utils.tensorboard", "tensorboard"))]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(sys.modules, "pyengm.training.loggers.tensorboard", raising=False)
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        with pytest.raises(ConfigError, match=r'not installed: pip install "pyengm\[tensorboard\]"'):
            build_components(tiny.override(loggers=("tensorboard",)).resolve())


class TestJsonLines:
    def test_drops_what_comes_again(self, tmp_path):
        metrics, timing = tmp_path / "metrics.jsonl", tmp_path / "timing.jsonl"
        metrics.write_text('{"epoch": 0}\n{"epoch": 1}\n{"epo')  # killed while it wrote
        timing.write_text('{"epoch": 0}\n{"epoch": 1}\n')
        logger = JsonLines(metrics, timing)
        logger.start({}, 4, 1, 2)
        logger.epoch({"epoch": 1, "loss": None}, {"seconds_training": 2.0})
        assert metrics.read_text() == '{"epoch": 0}\n{"epoch": 1, "loss": null}\n'
        assert timing.read_text() == '{"epoch": 0}\n{"epoch": 1, "seconds_training": 2.0}\n'

    def test_a_resumed_run_has_the_metrics_of_an_uninterrupted_one(self, tiny, tmp_path, monkeypatch):
        """In the middle of an epoch, so that sums over its steps and fits continue."""
        config = tiny.override(epochs=2, norm_layer="bn", optimizer="engm")
        whole = train(tmp_path / "whole", config)
        interrupt(monkeypatch, 3)
        with pytest.raises(Interrupted):
            train(tmp_path / "run", config)
        monkeypatch.undo()
        run, recorder = RunFolder.open(tmp_path / "run"), Recorder()
        resume(run, recorder)
        assert run.metrics.read_bytes() == whole.metrics.read_bytes()
        assert [json.loads(line)["epoch"] for line in run.timing.read_text().splitlines()] == [0, 1]
        assert recorder.calls[0][2:] == (BATCHES, 0, 3)
        assert recorder.calls[1][1]["batch"] == 4
        assert recorder.calls[1][1]["loss"] != whole.read_metrics()[0]["loss"]  # its own batch alone


class TestTensorBoard:
    @pytest.fixture
    def curves(self):
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator

        def read(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
            events = accumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
            return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

        return read

    def test_curves(self, tiny, tmp_path, curves):
        run = train(tmp_path / "run", tiny.override(loggers=("tensorboard",)))
        found, rows = curves(run), run.read_metrics()
        assert [step for step, _ in found["step/loss"]] == list(range(1, 3 * BATCHES + 1))
        for name in ("loss", "robust", "natural_ece", "grad_norm_mean", "lr", "best"):
            steps, values = zip(*found[f"epoch/{name}"], strict=True)
            assert steps == (BATCHES, 2 * BATCHES, 3 * BATCHES)
            assert values == pytest.approx([float(row[name]) for row in rows], rel=1e-6), name
        assert {f"epoch/{name}" for name in EPOCH_TIMING} <= found.keys()
        assert not {"epoch/epoch", "step/epoch", "step/batch"} & found.keys()

    def test_a_resumed_run_has_nothing_twice(self, tiny, tmp_path, curves, monkeypatch):
        config = tiny.override(loggers=("tensorboard",))
        whole = train(tmp_path / "whole", config)
        original = Checkpoints.save

        def die(self, epoch, *state):
            if epoch == 2:
                raise KeyboardInterrupt("killed")
            original(self, epoch, *state)

        monkeypatch.setattr(Checkpoints, "save", die)
        with pytest.raises(KeyboardInterrupt, match="killed"):  # all of epoch 1 was logged, and goes again
            train(tmp_path / "run", config)
        run = RunFolder.open(tmp_path / "run")
        assert len(curves(run)["epoch/loss"]) == 2
        monkeypatch.undo()
        interrupt(monkeypatch, 2)
        with pytest.raises(Interrupted):
            resume(run)
        assert [step for step, _ in curves(run)["step/loss"]] == list(range(1, BATCHES + 3))
        monkeypatch.undo()
        resume(run)
        found, expected = curves(run), curves(whole)
        assert found.keys() == expected.keys()
        for tag in expected:
            if tag.split("/")[1] in MEANS | HELD_OUT | {"lr", "best", "train_pgd", "catastrophic_overfitting"}:
                assert found[tag] == expected[tag], tag


class TestTerminal:
    ROW = {"epoch": 0, "loss": 1.25, "train_robust": 0.5, "clipped": 0.25, "best": True}  # noqa: RUF012

    def test_lines(self, tiny, tmp_path, capsys):
        train(tmp_path / "run", tiny.override(epochs=2))
        head, *lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"(epoch| +\d) ", line)]
        assert re.findall(r"\S+(?: %)?", head) == ["epoch", "loss", "train %", "natural %", "PGD-20 %", "clipped %"]
        assert [len(line.removesuffix("best").split()) for line in lines] == [6, 6]
        assert all(len(line) <= 80 for line in lines)

    def test_every_line_has_every_column(self, capsys):
        log = Terminal()
        log.start({"schedule": {"epochs": 3}}, 40, 1, 5)
        log.epoch(self.ROW, {"seconds_to_finish": None})
        log.close()
        assert "    1   1.250     50.0          -         -       25.0  best\n" in capsys.readouterr().out

    def test_held_out_images_have_a_bar(self, tiny, tmp_path):
        calls = []

        class Watch(Logger):
            def held_out(self, done, total):
                calls.append((done, total))

        train(tmp_path / "run", tiny.override(epochs=2), Watch())
        assert calls == [(12, 12)] * 2

    @pytest.mark.parametrize("width", [40, 80, 200])
    def test_bars_fit_the_terminal(self, width):
        log, text = Terminal(), io.StringIO()
        log._bars.live.console = Console(file=text, force_terminal=True, width=width, color_system=None)
        log.start({"schedule": {"epochs": 3000}}, 40000, 1, 5)
        log.step({**self.ROW, "batch": 20}, {"seconds_to_finish": 372500.4})
        log._bars.refresh()
        log.close()
        lines = [re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", line) for line in text.getvalue().splitlines()]
        assert any("batches" in line for line in lines)
        assert all(len(line.strip("\r")) <= width for line in lines if "e" in line and "loss  train" not in line)

    def test_bars(self):
        terminal = Terminal()
        text = io.StringIO()
        terminal._bars.live.console = Console(file=text, force_terminal=True, width=120)
        terminal.start({"schedule": {"epochs": 3}}, 40, 1, 5)
        terminal.step({**self.ROW, "batch": 20}, {"seconds_to_finish": 3725.4})
        terminal._bars.refresh()
        terminal.close()
        shown = text.getvalue()
        assert "1/3" in shown
        assert "20/40" in shown
        assert "1:02:05 left" in shown
        assert "loss 1.250" in shown

    def test_closed_before_it_was_started(self):
        Terminal().close()


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now)


class TestStopwatch:
    def test_figures(self, monkeypatch):
        clock = Clock(monkeypatch)
        watch = EpochTimer(epochs=3, batches=4, device=CPU)
        watch.start(0)
        for _ in range(2):
            watch.count(10)
            clock.now += 2
        assert watch.step(0, 2) == {"images_per_second": 5.0, "seconds_to_finish": 20.0}
        watch.count(30)
        clock.now += 3
        assert watch.step(0, 3)["images_per_second"] == 10.0
        watch.count(6)
        clock.now += 1
        watch.step(0, 4)
        clock.now += 4  # evaluation
        timing = watch.epoch(0)
        assert timing.pop("peak_memory_mib") > 0
        assert timing == {
            "images_per_second": 7.0,
            "seconds_training": 8.0,
            "seconds_evaluation": 4.0,
            "seconds_to_finish": 2 * (8 + 4),
        }
        clock.now += 1  # files
        watch.start(0)
        watch.count(10)
        clock.now += 1
        assert watch.step(1, 1)["seconds_to_finish"] == 7 * 1 + 2 * (4 + 1)

    def test_an_epoch_that_was_begun_before(self, monkeypatch):
        clock = Clock(monkeypatch)
        watch = EpochTimer(epochs=2, batches=4, device=CPU)
        watch.start(3)
        watch.count(10)
        clock.now += 2
        assert watch.step(0, 4) == {"images_per_second": 5.0, "seconds_to_finish": 8.0}

    def test_an_epoch_whose_steps_are_all_done(self, monkeypatch):
        clock = Clock(monkeypatch)
        watch = EpochTimer(epochs=2, batches=4, device=CPU)
        watch.start(4)
        clock.now += 2
        timing = watch.epoch(0)
        assert timing["images_per_second"] is timing["seconds_to_finish"] is None
        assert (timing["seconds_training"], timing["seconds_evaluation"]) == (0, 2)

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
    def test_peak_memory_of_the_process(self):
        block = torch.ones(2**25)
        status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
        assert peak_memory(CPU) == pytest.approx(1024 * int(status.split()[0]), rel=0.05)
        assert peak_memory(CPU) > 4 * block.numel()

    @pytest.mark.gpu
    def test_peak_memory_of_a_gpu(self):
        device = torch.device("cuda", 0)
        block = torch.ones(2**24, device=device)
        del block
        assert peak_memory(device) >= 2**26


class TestSums:
    def used(self, n: int, seed: int) -> tuple[list, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        norms = torch.rand(n, generator=generator)
        outcome = StepOutput(torch.rand(n, generator=generator), torch.empty(n), torch.rand(n, 3, generator=generator))
        weights = PerExampleStats(norms, (0.5 / norms).clamp(max=1), None, torch.rand(n // 2, generator=generator))
        return [(outcome, weights)], torch.randint(0, 3, (n,), generator=generator)

    def test_add_up(self):
        """So that those of batches and processes can be added, before means are taken."""
        (first, y1), (second, y2) = self.used(10, 1), self.used(7, 2)
        both = measure(first, y1) + measure(second, y2)
        weights = [first[0][1], second[0][1]]
        norms = torch.cat([w.norms for w in weights]).double()
        found = means(read_sums(both))
        assert found["grad_norm_mean"] == pytest.approx(norms.mean().item())
        assert found["grad_norm_var"] == pytest.approx(norms.var(correction=0).item())
        assert found["grad_norm_error"] == pytest.approx(torch.cat([w.fit_errors for w in weights]).mean().item())
        assert found["clipped"] == pytest.approx((norms > 0.5).double().mean().item())
        assert write_sums(read_sums(both), CPU).equal(both)

    def test_norms_that_are_not_finite_are_left_out(self):
        used, y = self.used(6, 3)
        weights = used[0][1]
        expected = weights.norms[2:].double()
        weights.norms[:2] = torch.tensor([math.inf, math.nan])
        found = means(read_sums(measure(used, y)))
        assert found["grad_norm_mean"] == pytest.approx(expected.mean().item())
        assert found["grad_norm_var"] == pytest.approx(expected.var(correction=0).item())

    def test_norms_that_are_all_the_same(self):
        used, y = self.used(6, 4)
        used[0][1].norms.fill_(0.1)
        assert 0 <= means(read_sums(measure(used, y)))["grad_norm_var"] < 1e-15

    def test_nothing(self):
        assert set(means(read_sums(zero_sums(CPU))).values()) == {None}


def test_factory_gets_folder_and_options(tmp_path):
    got = []
    module = type(sys)("some_module")
    module.make = lambda folder, config: got.append((folder, config)) or Recorder()
    sys.modules["some_module"] = module
    try:
        assert isinstance(build_logger("some_module:make", tmp_path, {"seed": 3}), Recorder)
    finally:
        del sys.modules["some_module"]
    assert got == [(tmp_path, {"seed": 3})]
