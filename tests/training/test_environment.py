"""What a run was made with: never an error, and never another tree's commit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyengm
from pyengm.data import ImageDataset, load
from pyengm.errors import ConfigError
from pyengm.training import RunFolder, describe, environment
from pyengm.training.environment import git_state


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "core.hooksPath="]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A repository with one commit on the branch trunk."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet")
    git(folder, "checkout", "--quiet", "-b", "trunk")
    (folder / "known.txt").write_text("first")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "First")
    return folder


@pytest.fixture
def executable(tmp_path, monkeypatch):
    """Puts a script of that name before all other commands."""

    def put(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=":")

    return put


class TestDescribe:
    def test_versions_and_machine(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/pyengm", "train", "--seed", "3"])
        found = json.loads(json.dumps(describe()))
        assert found.keys() == {"format", "versions", "machine", "processes", "git", "command"}
        versions, machine = found["versions"], found["machine"]
        assert versions["pyengm"] == pyengm.__version__
        assert versions["python"].split(".")[:2] == [str(number) for number in sys.version_info[:2]]
        assert torch.__version__.startswith(versions["torch"].partition("+")[0])
        assert {"torchvision", "triton", "numpy", "cuda", "cudnn", "driver"} <= versions.keys()
        assert machine["cores"] >= 1
        assert 0.1 < machine["memory_gib"] < 1e5
        assert len(machine["gpus"]) == torch.cuda.device_count()
        assert machine["platform"]
        assert machine["cpu"]
        assert found["command"] == ["pyengm", "train", "--seed", "3"]

    def test_driver(self, executable):
        executable("nvidia-smi", "echo 580.65.06; echo 580.65.06")
        assert describe()["versions"]["driver"] == "580.65.06"
        executable("nvidia-smi", "echo 'no devices were found'; exit 9")
        assert describe()["versions"]["driver"] is None

    def test_where_nothing_can_be_asked(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(sys, "argv", [])
        found = describe()
        assert found["git"] == {"pyengm": None, "working_directory": None}
        assert found["versions"]["driver"] is None
        assert found["command"] == []

    def test_a_working_directory_that_is_gone(self, tmp_path, monkeypatch):
        folder = tmp_path / "gone"
        folder.mkdir()
        monkeypatch.chdir(folder)
        folder.rmdir()
        assert describe()["git"]["working_directory"] is None

    def test_git_of_both_folders(self, checkout, monkeypatch):
        monkeypatch.chdir(checkout)
        monkeypatch.setattr(pyengm, "__file__", str(checkout / "package" / "__init__.py"))
        (checkout / "package").mkdir()
        (checkout / "package" / "__init__.py").write_text("")
        here = git_state(checkout)
        assert here is not None
        assert describe()["git"] == {"pyengm": None, "working_directory": here}  # unknown to git, as in a .venv there
        git(checkout, "add", ".")
        git(checkout, "commit", "--quiet", "-m", "Second")
        assert describe()["git"] == {"pyengm": git_state(checkout), "working_directory": git_state(checkout)}


class TestGitState:
    def test_clean_and_dirty(self, checkout):
        commit = git(checkout, "rev-parse", "HEAD")
        clean = {"commit": commit, "branch": "trunk", "dirty": False}
        assert git_state(checkout) == clean
        (checkout / "run").mkdir()
        (checkout / "run" / "metrics.jsonl").write_text("")
        assert git_state(checkout / "run") == clean
        (checkout / "known.txt").write_text("second")
        assert git_state(checkout) == clean | {"dirty": True}
        git(checkout, "add", "known.txt")
        assert git_state(checkout) == clean | {"dirty": True}

    def test_no_branch(self, checkout):
        git(checkout, "checkout", "--quiet", "--detach")
        assert git_state(checkout)["branch"] is None

    def test_no_commit(self, tmp_path):
        git(tmp_path, "init", "--quiet")
        assert git_state(tmp_path)["commit"] is None

    def test_no_checkout(self, tmp_path):
        assert git_state(tmp_path) is None

    def test_of_somebody_else(self, checkout, monkeypatch):
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        assert git_state(checkout) is None

    def test_variables_of_a_git_hook_name_no_other_tree(self, checkout, tmp_path, monkeypatch):
        monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))
        monkeypatch.setenv("GIT_WORK_TREE", str(checkout))
        (tmp_path / "other").mkdir()
        assert git_state(tmp_path / "other") is None

    def test_takes_no_lock(self, checkout):
        index = checkout / ".git" / "index"
        (checkout / "known.txt").touch()  # git would refresh its index
        before = index.read_bytes()
        git_state(checkout)
        assert index.read_bytes() == before

    @pytest.mark.parametrize("script", ["exec sleep 60", "exit 1", "kill -9 $$"])
    def test_git_that_does_not_answer(self, checkout, executable, monkeypatch, script):
        monkeypatch.setattr(environment, "TIMEOUT", 0.2)
        executable("git", script)
        assert git_state(checkout) is None


class TestImagesOfAResumedRun:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data: data.subset(range(len(data) - 1)), "other images, labels, pixels"),
            (lambda data: _with(data, labels=data.labels.flip(0)), r"\(train images: other labels\)"),
            (lambda data: _with(data, images=255 - data.images), r"\(train images: other pixels\)"),
        ],
    )
    def test_others_are_refused(self, change, message, tmp_path):
        data, run = load("digits", "train"), RunFolder(tmp_path)
        run.add_environment({"train": data})
        run.add_environment({"train": data})
        with pytest.raises(ConfigError, match=message):
            run.add_environment({"train": change(data)})
        assert len(json.loads(run.environment.read_text())) == 2

    @pytest.mark.parametrize("text", ["", "[{}]", "[]", "[1]", "3", '["start"]'])
    def test_a_file_that_tells_nothing_of_them(self, text, tmp_path):
        run = RunFolder(tmp_path)
        run.environment.write_text(text)
        run.add_environment({"train": load("digits", "test")})


def _with(data, **changes):
    return ImageDataset(**{**vars(data), **changes})
