"""The commands as a user types them."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from itertools import product
from pathlib import Path

import numpy as np
import pyautoattack
import pytest
from PIL import Image
from rich.console import Console

from pyengm import __version__, cli
from pyengm.cli import commands
from pyengm.errors import Interrupted
from pyengm.evaluation import parallel, work
from pyengm.methods import METHODS
from pyengm.training import TrainConfig
from pyengm.training.config_groups import ALL_OPTIMIZERS
from pyengm.training.option_parsing import own_arguments
from pyengm.utils import terminal

TINY = [
    "--model",
    "cnn4",
    "--width",
    "2",
    "--epochs",
    "1",
    "--attack-steps",
    "1",
    "--batch-size",
    "60",
    "--optimizer",
    "msgd",
]
TINY += ["--autoattack-examples", "2"]


@pytest.fixture(autouse=True)
def wide_console(monkeypatch):
    monkeypatch.setattr(terminal, "console", Console(width=120))


def fail(*args: str) -> None:
    """Runs a command that must end with an error: 1 from us, 2 where the options themselves do not parse."""
    assert cli.main(args) in (1, 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run folder, left by `pyengm train`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "few.txt").write_text("\n".join(map(str, range(240))))
    out = folder / "run"
    assert (
        cli.main(["train", *TINY, "--train-indices", str(folder / "few.txt"), "--out", str(out), "--attacks", "fgsm"])
        == 0
    )
    return out


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory) -> Path:
    """A folder of images of 8x8 in three classes."""
    folder = tmp_path_factory.mktemp("three")
    grey = np.random.default_rng(0).integers(0, 256, (3, 12, 8, 8, 1), dtype=np.uint8)
    for split, name in product(("train", "test"), range(3)):
        (folder / split / str(name)).mkdir(parents=True)
        for i, pixels in enumerate(grey[name, :8] if split == "train" else grey[name, 8:]):
            Image.fromarray(pixels.repeat(3, axis=2)).save(folder / split / str(name) / f"{i}.png")
    return folder


class TestTrain:
    def test_leaves_results_and_a_image(self, finished):
        results = json.loads((finished / "results.json").read_text())
        for checkpoint in ("best", "last"):
            accuracies = results[checkpoint]
            assert {"natural", "fgsm", "pgd20", "autoattack", "pgd20_l2", "autoattack_l2"} <= accuracies.keys()
            assert all(0 <= value <= 1 for value in accuracies.values())
            assert accuracies["autoattack"] <= accuracies["pgd20_on_autoattack_examples"]
        assert isinstance(results["robust_overfitting"], float)
        assert results["images"] == {"all": 360, "autoattack": 2}
        assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
        names = {"config.yaml", "metrics.jsonl", "best.safetensors", "last.safetensors", "results.txt", "checkpoints"}
        assert names <= {path.name for path in finished.iterdir()}
        states = [json.loads(path.read_text()) for path in (finished / "autoattack").glob("*.json")]
        assert {state["norm"] for state in states} == {"linf", "l2"}
        assert all(state["passes_done"] == 4 and len(state["stages_survived"]) == 2 for state in states)

    def test_a_complete_run_needs_no_checkpoints(self, finished, tmp_path, capsys):
        shutil.copytree(finished, tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
        assert cli.main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
        assert "the run is complete" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in before} == before

    def test_one_process_is_this_one(self, tmp_path, monkeypatch):
        monkeypatch.setattr(commands, "launch", lambda *_: pytest.fail("another process was started"))
        assert cli.main(["train", *TINY, "--nproc", "1", "--out", str(tmp_path / "run")]) == 0

    def test_data_with_three_classes(self, three_classes, tmp_path, monkeypatch, capsys):
        init = pyautoattack.AutoAttack.__init__

        def short(package, *args, **options):
            init(package, *args, **options)
            package.square.n_queries = 20

        monkeypatch.setattr(pyautoattack.AutoAttack, "__init__", short)
        monkeypatch.setattr(parallel, "cores", lambda: 1)
        out = tmp_path / "three"
        options = [*TINY, "--data", str(three_classes), "--data-dir", str(tmp_path / "cache"), "--out", str(out)]
        assert cli.main(["train", *options]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "runs without apgd-t: its targeted DLR loss needs at least 4 classes, there are 3" in text
        assert "is only APGD-CE, FAB-T, Square here" in text
        results = json.loads((out / "results.json").read_text())
        assert results["last"]["autoattack"] <= results["last"]["after_apgd_ce"]
        assert "after_apgd_t" not in results["last"]

    def test_saved_options_can_be_passed_back(self, finished, tmp_path, capsys):
        again = tmp_path / "again"
        assert cli.main(["train", "--config", str(finished / "config.yaml"), "--out", str(again)]) == 0
        assert (again / "last.safetensors").read_bytes() == (finished / "last.safetensors").read_bytes()
        assert json.loads((again / "results.json").read_text()) == json.loads((finished / "results.json").read_text())
        assert "AutoAttack" in capsys.readouterr().out

    def test_a_finished_run_stays(self, finished, tmp_path, capsys):
        shutil.copytree(finished, tmp_path / "run")
        assert cli.main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
        assert "the run is complete" in capsys.readouterr().out
        assert (tmp_path / "run" / "results.json").read_bytes() == (finished / "results.json").read_bytes()

    def test_resume_keeps_the_options(self, finished, capsys):
        assert cli.main(["train", "--out", str(finished), "--resume", "--lr", "3"]) == 1
        assert "a resumed run keeps its options; lr differ" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--data", "nowhere"], "unknown data set 'nowhere'"),
            (["--data", "cifar10", "--data-dir", "empty"], "--download"),
            (["--model", "resnet81"], "unknown model 'resnet81'"),
            (["--method", "pdg_at"], "unknown method 'pdg_at'; known: aaer, atas"),
            (["--optimizer", "adam"], "unknown optimizer 'adam'; known: aengm, engm"),
            (["--eps=-0.1"], "eps is -0.1; expected a finite number >= 0"),
            (["--attacks", "fgms"], "unknown attack 'fgms'; known: fgsm"),
            (
                ["--data", "THREE", "--data-dir", "empty", "--attacks", "apgd_t"],
                "apgd-t cannot run: its targeted DLR loss needs at least 4 classes",
            ),
            (["--config", "none.yaml"], "cannot read the configuration none.yaml"),
            (["--resume"], "--resume needs --out"),
            (["--resume", "--out", "none"], "no run folder"),
        ],
    )
    def test_errors_leave_nothing_behind(self, options, message, three_classes, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        fail("train", *(option.replace("THREE", str(three_classes)) for option in options))
        assert message in " ".join(capsys.readouterr().err.split())
        assert [path.name for path in tmp_path.iterdir()] == ["empty"]

    def test_an_existing_run_is_not_overwritten(self, finished, capsys):
        before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
        assert cli.main(["train", "--out", str(finished)]) == 1
        assert "exists and is not overwritten" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


class TestEvaluate:
    def test_run_and_checkpoint_agree_with_the_training(self, finished, tmp_path, capsys):
        expected = json.loads((finished / "results.json").read_text())
        for target, name in ((finished, "last"), (finished / "last.safetensors", "last")):
            out = tmp_path / f"{target.name}.json"
            options = ["--attacks", "fgsm", "--autoattack-examples", "2", "--out", str(out)]
            assert cli.main(["evaluate", str(target), *options]) == 0
            assert json.loads(out.read_text())[name] == expected[name]
        assert "L-infinity, eps = 0.2" in capsys.readouterr().out

    def test_one_threat_model(self, finished, tmp_path):
        out = tmp_path / "l2.json"
        options = ["--threat", "l2", "--eps", "1/4", "--autoattack-examples", "1", "--out", str(out)]
        assert cli.main(["evaluate", str(finished / "last.safetensors"), *options]) == 0
        assert json.loads(out.read_text())["threats"] == [{"norm": "l2", "eps": 0.25}]
        assert len(list((tmp_path / "l2.autoattack").glob("*.json"))) == 1

    def test_surrogate_members_and_distance(self, finished, tmp_path, capsys):
        out = tmp_path / "more.json"
        last, best = (str(finished / f"{name}.safetensors") for name in ("last", "best"))
        options = ["--surrogate", best, "--attacks", "apgd_ce", "deepfool", "--threat", "linf"]
        assert cli.main(["evaluate", last, *options, "--autoattack-examples", "2", "--out", str(out)]) == 0
        found = json.loads(out.read_text())["last"]
        # best and last are one model after one epoch: the surrogate is the target.
        assert found["transfer_pgd20"] == found["pgd20"]
        assert found["apgd_ce"] == found["after_apgd_ce"]
        assert found["deepfool"] > 0
        text = capsys.readouterr().out
        assert "transfer PGD-20" in text
        assert f"rho = {found['deepfool']:.4f}" in text

    def test_an_interrupted_evaluation_goes_on(self, finished, tmp_path, monkeypatch, capsys):
        expected = json.loads((finished / "results.json").read_text())
        shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("autoattack"))
        command = ["evaluate", str(tmp_path / "run"), "--autoattack-examples", "2"]
        monkeypatch.setattr(parallel, "cores", lambda: 1)
        advance, passes = work.Work.advance, []

        def interrupt(self, key, done, total):
            advance(self, key, done, total)
            passes.append(done)
            if len(passes) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(work.Work, "advance", interrupt)
        assert cli.main(command) == Interrupted.exit_status
        assert "the same command resumes where it stopped" in " ".join(capsys.readouterr().err.split())
        out = tmp_path / "again.json"
        assert cli.main([*command, "--out", str(out)]) == 0
        assert passes == [1, 2, 3, 4, 1, 2, 3, 4]  # L-infinity, then L2; best and last are one model
        found = json.loads(out.read_text())
        for name in ("best", "last"):
            assert found[name] == {key: value for key, value in expected[name].items() if not key.startswith("fgsm")}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["none"], "there is no checkpoint none"),
            (["RUN", "--eps", "0.1"], "--eps needs --threat"),
            (["RUN", "--threat", "l3"], "unknown threat 'l3'; known: linf, l2"),
            (["RUN", "--out", "RUN"], "exists and is not overwritten"),
            (["RUN", "--autoattack-examples", "0"], "autoattack_examples is 0; expected at least 1"),
            (["RUN", "--attacks", "bim"], "unknown attack 'bim'"),
            (["RUN", "--surrogate", "none"], "there is no checkpoint none"),
            (["RUN", "--device", "abacus"], "device 'abacus' is unknown"),
            (["."], "no run folder"),
        ],
    )
    def test_errors(self, finished, options, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        fail("evaluate", *(option.replace("RUN", str(finished)) for option in options))
        assert message in " ".join(capsys.readouterr().err.split())

    def test_truncated_checkpoint(self, finished, tmp_path, capsys):
        path = tmp_path / "cut.safetensors"
        path.write_bytes((finished / "best.safetensors").read_bytes()[:-100])
        assert cli.main(["evaluate", str(path)]) == 1
        assert "is damaged or no safetensors file" in " ".join(capsys.readouterr().err.split())


class TestUsage:
    @pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
    def test_help(self, args, capsys):
        assert cli.main(args) == 0
        text = capsys.readouterr().out
        assert "pyengm COMMAND --help" in text
        assert all(f"  {command} " in text for command in ("train", "evaluate", "report", "reproduce", "completion"))

    @pytest.mark.parametrize("flag", ["--version", "-V"])
    def test_version(self, flag, capsys):
        assert cli.main([flag]) == 0
        assert capsys.readouterr().out == f"{__version__}\n"

    def test_unknown_command(self, capsys):
        assert cli.main(["tarin"]) == 2
        assert "unknown command 'tarin' (did you mean train?)" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["train", "--epoch", "3"], "unknown option --epoch (did you mean --epochs?)"),
            (["evaluate", "run", "--surogate", "x"], "unknown option --surogate (did you mean --surrogate?)"),
            (["train", "--epochs", "3.5"], "--epochs is '3.5'; expected an integer"),
            (["train", "--eps", "8/0"], "--eps is '8/0'; expected a number"),
            (["train", "--method", "atsa"], "(did you mean atta?)"),
            (["train", "--threat", "linff"], "unknown threat 'linff'; known: linf, l2 (did you mean linf?)"),
            (["reproduce", "--scale", "shrt"], "unknown scale 'shrt'; known: smoke, short, full (did you mean short?)"),
            (["completion"], "shell is missing; expected a word"),
            (["completion", "bsh"], "unknown shell 'bsh'; known: bash, zsh, fish (did you mean bash?)"),
        ],
    )
    def test_words_that_do_not_parse(self, args, message, capsys):
        assert cli.main(args) == 2
        text = capsys.readouterr().err
        assert message in text
        assert text.count("\n") == 1
        assert text.startswith("error: ")
        assert text.endswith(f"; see pyengm {args[0]} --help\n")
        assert "\x1b" not in text

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--method", "trades", "--method-options", "bta=3"], "(did you mean beta?)"),
            (["--method", "atas", "--method-options", "dtype=int8"], "expected a floating-point type of torch"),
            (["--optimizer", "entropy_sgd", "--optimizer-options", "inner_stps=3"], "(did you mean inner_steps?)"),
        ],
    )
    def test_options_of_methods_and_optimizers(self, args, message, capsys):
        assert cli.main(["train", *args]) == 1
        assert message in capsys.readouterr().err


def help_of(capsys, *args: str) -> str:
    """The help of a command, as lines that are 100 columns wide."""
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 0
    return capsys.readouterr().out


def default_of(text: str, flag: str) -> str:
    """The default that the help shows for a flag."""
    words = " ".join(text.split())
    return re.search(rf" {flag}[ ,].*?\(default: (.*?)\)(?= -| [a-z]+ options|$)", words)[1]


class TestHelp:
    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")

    @pytest.mark.parametrize("command", ["train", "evaluate", "report", "reproduce", "completion"])
    def test_of_every_command(self, command, capsys):
        text = help_of(capsys, command, "-h")
        assert text == help_of(capsys, command, "--help")
        assert text.startswith(f"usage: pyengm {command} [-h]")
        assert re.search(r"\n(Train|Attack|Write|Print) ", text)
        assert "None" not in text

    def test_groups_flags_and_choices(self, capsys):
        text = help_of(capsys, "train", "--help")
        assert " The training and test images." in text
        groups = re.findall(r"^ (\w+) options", text, re.MULTILINE)
        assert groups == [field.name for field in fields(TrainConfig)]
        flags = re.findall(r"^  (--\w[\w-]*)", text, re.MULTILINE)
        assert flags == [f"--{name.replace('_', '-')}" for name in TrainConfig.options]
        for choices in ("--threat {linf,l2}", "--norm-layer {bn,gn}", "--average {none,ema,swa,median}"):
            assert choices in text
        assert f"--method {{{','.join(METHODS)}}}" in "".join(text.split()).replace("--method{", "--method {")

    def test_defaults_are_those_of_the_recipe(self, capsys):
        text = help_of(capsys, "train", "--method", "trades", "--data", "cifar10", "--help")
        assert "None" not in text
        shown = {
            "--data": "cifar10",
            "--method": "trades",
            "--eps": "0.031",
            "--step-size": "0.007",
            "--attack-steps": "10",
            "--optimizer": "msgd",
            "--alpha": "the optimiser has none",
            "--lr": "0.1",
            "--weight-decay": "0.0002",
            "--epochs": "76",
            "--milestones": "74",
            "--width": "that of the architecture's paper",
            "--eval-both-threats": "True",
        }
        assert {flag: default_of(text, flag) for flag in shown} == shown
        text = help_of(capsys, "train", "-h", "--data", "cifar10", "--optimizer=nengm", "--epochs", "40")
        assert [default_of(text, flag) for flag in ("--eps", "--alpha", "--milestones")] == ["8/255", "0.5", "25 30"]

    def test_options_of_a_file_are_defaults_too(self, tmp_path, capsys):
        (tmp_path / "mine.yaml").write_text("data: {name: svhn}\noptimizer: {lr: 0.03}\n")
        text = help_of(capsys, "train", "--config", str(tmp_path / "mine.yaml"), "-h")
        assert [default_of(text, flag) for flag in ("--data", "--lr", "--epochs")] == ["svhn", "0.03", "120"]

    def test_a_command_that_would_fail_has_help_too(self, capsys):
        text = help_of(capsys, "train", "--method", "atsa", "--help")
        assert default_of(text, "--method") == "pgd_at"

    def test_options_of_a_method_and_an_optimizer(self, capsys):
        text = help_of(capsys, "train", "--method", "atas", "--help")
        section = text.partition("options of atas: --method-options NAME=VALUE ...\n")[2]
        assert re.findall(r"^(\w+)=", section, re.MULTILINE) == [*own_arguments(METHODS["atas"])]
        words = " ".join(section.split())
        assert "warmup=INT Epochs at the start with steps of size eps. (default: 5)" in words
        assert "resolution=INT|none" in words
        assert "dtype=DTYPE" in words
        assert "as_printed=true|false" in words
        text = help_of(capsys, "train", "--optimizer", "entropy_sgd", "--method", "natural", "--help")
        assert "natural has no options of its own" in text
        assert "inner_steps=INT Inner steps of an outer step" in " ".join(text.split())
        assert "NAME=VALUE ..." not in help_of(capsys, "train", "--help")

    @pytest.mark.parametrize("kind", [*METHODS.values(), *ALL_OPTIMIZERS.values()])
    def test_every_option_of_a_method_or_an_optimizer_has_a_text(self, kind):
        assert all(argument.text for argument in own_arguments(kind).values())

    def test_colors_on_terminals_alone(self, monkeypatch, capsys):
        command = ("train", "--method", "atas", "--help")
        assert "\x1b" not in help_of(capsys, *command)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        colored = help_of(capsys, *command)
        assert "\x1b[36m(default: 5)" in colored
        assert "╭─" in colored
        monkeypatch.setenv("NO_COLOR", "1")
        assert not re.search(r"\x1b\[[\d;]*3\d", help_of(capsys, *command))


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_scripts(self, shell, capsys):
        assert cli.main(["completion", shell]) == 0
        text = capsys.readouterr().out
        assert all(word in text for word in ("evaluate", "attack-steps", "linf", "entropy_sgd2"))

    @pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["tr"], "train"),
            (["train", "--thr"], "--threat"),
            (["train", "--threat", "l"], "linf l2"),
            (["train", "--method", "at"], "atas ates atta"),
            (["evaluate", "--surr"], "--surrogate"),
            (["rep"], "report reproduce"),
            (["report", "--im"], "--images"),
        ],
    )
    def test_in_bash(self, words, expected, tmp_path, capsys):
        cli.main(["completion", "bash"])
        (tmp_path / "script").write_text(capsys.readouterr().out)
        line = " ".join(["pyengm", *words])
        code = f"source {tmp_path / 'script'}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; COMP_LINE='{line}'; "
        code += "COMP_POINT=${#COMP_LINE}; _tyro_pyengm; echo ${COMPREPLY[*]}"
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
