"""The scripts for a machine with a GPU: refusals, single functions, and rehearsals of all steps on the CPU."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the scripts are for Linux")

REPO = Path(__file__).resolve().parents[2]
BENCH = REPO / "bench"
SCRIPTS = [*BENCH.glob("*.sh"), *BENCH.glob("tools/*.sh"), *REPO.glob(".ci/*")]


def bash(*command: str | Path, **variables: str | Path) -> subprocess.CompletedProcess:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}  # of these tests
    env = {**own, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(["bash", *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    done = bash("-n", script)
    assert (done.returncode, done.stdout) == (0, "")


class TestWithoutGpu:
    def test_torch_finds_none(self, tmp_path):
        out = tmp_path / "out"
        done = bash(BENCH / "gpu_check.sh", PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="", OUT=out)
        assert done.returncode == 2
        assert f"torch {torch.__version__} finds no CUDA device" in done.stdout
        assert "gpu_check.sh: needs an NVIDIA GPU" in done.stdout
        assert not out.exists()

    @pytest.mark.parametrize("script", ["gpu_check.sh", "gpu_train.sh"])
    def test_no_such_python(self, script, tmp_path):
        done = bash(BENCH / script, tmp_path, PYTHON=tmp_path / "none", OUT=tmp_path / "out")
        assert done.returncode == 2
        assert f"{script}: needs an NVIDIA GPU, and a Python with a torch" in done.stdout

    def test_training_needs_data(self):
        done = bash(BENCH / "gpu_train.sh")
        assert (done.returncode, done.stdout) == (2, "gpu_train.sh: usage: gpu_train.sh DATA [EPOCHS] [OPTIONS]\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory, emulator) -> Path:
    """The folder of the one build of all rehearsals, with the emulator in it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(emulator.path.parent, folder / "emulator")
    return folder


class Rehearsal:
    """A run of a script with REHEARSE=1: its output, status and report."""

    def __init__(self, kind: str, folder: Path, *arguments: str | Path, **variables: str | Path):
        out = folder / "out"
        defaults = {"PYTHON": sys.executable, "CXXFLAGS": "-O0", "OUT": out, "REHEARSE": "1"}  # -O0 compiles faster
        variables = defaults | variables
        self.done = bash(BENCH / f"gpu_{kind}.sh", *arguments, **variables)
        report, text = out / f"gpu_{kind}_none.json", out / f"gpu_{kind}_none.md"
        assert report.exists(), self.done.stdout
        self.report: dict[str, Any] = json.loads(report.read_text())
        self.text = text.read_text()

    def outcomes(self) -> dict[str, str]:
        return {step["name"]: step["ended"] for step in self.report["steps"]}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


SEED_TEST = """import torch


def test_seed():
    assert torch.rand((), generator=torch.Generator().manual_seed(2)).item() == {}
"""
FAILING_TEST = """def test_passes():
    pass


def test_fails():
    raise ValueError("1 != 2")
"""
SKIPPED_BENCHMARK = """import pytest


def test_skipped(benchmark):
    pytest.skip("cannot run here")
"""
FAILING_BENCHMARK = """def test_fails(benchmark):
    benchmark(lambda: 1 / 0)
"""


class TestCheck:
    """gpu_check.sh builds the tree and runs tests and benchmarks for real, on the CPU."""

    def test_all_steps_pass(self, site, tmp_path):
        skipped = write(tmp_path / "bench_skipped.py", SKIPPED_BENCHMARK)
        files = f"{BENCH / 'bench_clip_weights.py'} {skipped}"
        drawn = torch.rand((), generator=torch.Generator().manual_seed(2 + 77)).item()
        seeded = write(tmp_path / "test_seed.py", SEED_TEST.format(drawn))
        tests = f"{REPO / 'tests/data/test_resized_crop.py'} {seeded}"
        run = Rehearsal("check", tmp_path, "77", SITE=site, TESTS=tests, BENCHMARKS=files, SANITIZERS="racecheck")
        assert run.done.returncode == 0, run.done.stdout
        assert [(step["name"], step["ended"]) for step in run.report["steps"]] == [
            ("build for cpu", "passed"),
            ("tests, seed 77", "passed"),
            ("bench_clip_weights.py", "passed"),
            ("bench_skipped.py", "passed"),
            ("bench_skipped.py", "skipped"),  # no benchmark ran
            ("planted faults", "passed"),
            ("racecheck: planted fault", "passed"),
            ("racecheck: every kernel", "passed"),
        ]
        counts = run.report["tests"]["tests"]
        assert counts["passed"] > 0
        assert counts["failed"] == 0
        names = {row["name"] for row in run.report["benchmarks"]}
        assert names == {"test_clip_weights[128-cpu]", "test_clip_weights[4096-cpu]"}
        assert "| test_clip_weights[128-cpu] |" in run.text
        assert run.report["machine"]["pyengm"] != "none"

    @pytest.mark.slow
    def test_every_tool_of_the_sanitizer_has_its_fault(self, site, tmp_path):
        tests = write(tmp_path / "test_passing.py", "def test_passes():\n    pass\n")
        run = Rehearsal("check", tmp_path, SITE=site, TESTS=tests, BENCHMARKS=write(tmp_path / "bench_x.py", ""))
        tools = ("memcheck", "racecheck", "initcheck", "synccheck")
        expected = {f"{tool}: {part}": "passed" for tool in tools for part in ("planted fault", "every kernel")}
        assert {name: ended for name, ended in run.outcomes().items() if ": " in name} == expected

    def test_failures_do_not_end_the_run(self, site, tmp_path):
        tests = write(tmp_path / "test_failing.py", FAILING_TEST)
        failing = write(tmp_path / "bench_failing.py", FAILING_BENCHMARK)
        passing = BENCH / "bench_regression_weights.py"
        run = Rehearsal(
            "check", tmp_path, "5", SITE=site, TESTS=tests, BENCHMARKS=f"{failing} {passing}", SANITIZERS=""
        )
        assert run.done.returncode == 1
        assert run.outcomes() == {
            "build for cpu": "passed",
            "tests, seed 5": "failed",
            "bench_failing.py": "failed",
            "bench_regression_weights.py": "passed",
        }
        counts = run.report["tests"]["tests"]
        assert (counts["passed"], counts["failed"]) == (1, 1)
        (failure,) = counts["failures"]
        assert failure["test"].endswith("::test_fails")
        assert failure["message"] == "ValueError: 1 != 2"

    def test_a_failed_build_ends_the_run(self, tmp_path):
        run = Rehearsal("check", tmp_path, CXX="false")
        assert run.done.returncode == 1
        assert run.outcomes() == {"build for cpu": "failed"}

    def test_benchmarks_by_default(self, tmp_path):
        done = library("gpu_benchmarks", tmp_path)
        files = [Path(line) for line in done.stdout.splitlines()]
        assert {*files} == {path for path in BENCH.glob("bench_*.py") if "mark.gpu" in path.read_text()}
        assert [path.name for path in files[:2]] == ["bench_ops_gpu.py", "bench_triton.py"]
        assert BENCH / "bench_pgd_linf_step.py" in files


class TestTrain:
    """gpu_train.sh builds the tree and trains for real, on the CPU and on few small images."""

    OPTIONS = ("--device", "cpu", "--width", "2", "--batch-size", "8", "--precision", "float32")

    @pytest.fixture
    def data(self, tmp_path) -> Path:
        for split in ("train", "test"):
            for i in range(16):
                path = tmp_path / "data" / split / "ab"[i % 2] / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (16 * i, 0, 0)).save(path)
        return tmp_path / "data"

    def test_runs_and_options(self, site, data, tmp_path):
        run = Rehearsal("train", tmp_path, data, "2", *self.OPTIONS, SITE=site)
        assert run.done.returncode == 0, run.done.stdout
        runs = run.report["runs"]
        norms = ("bn_graphs", "bn", "gn")  # the order of the report is that of the names
        names = [f"pgd_at_{optimizer}_{norm}" for optimizer in ("msgd", "engm") for norm in norms]
        assert {*runs} == {*names, "atas_msgd_bn"}
        assert set(run.outcomes().values()) == {"passed"}
        for name, result in runs.items():
            options = result["options"]
            assert (options["epochs"], options["select_on"], len(result["epoch_seconds"])) == (2, "none", 2)
            assert (result["images"], result["test_images"]) == (16, 16)
            assert name.startswith(f"{options['method']}_{options['optimizer']}_{options['norm_layer']}")
            assert options["precision"] == "float32"  # the last option replaces the bf16 of the script
            assert 0 <= result["pgd20"] <= result["natural"] <= 1
        assert "| pgd_at_engm_bn | 2 |" in run.text
        assert "| pgd_at_engm_bn_graphs | 2 |" in run.text

    def test_a_run_that_is_cut_short_does_not_end_the_others(self, site, data, tmp_path):
        long = "100000"  # epochs: a Ctrl-C that is lost during imports lets no run end within the time to be killed
        run = Rehearsal("train", tmp_path, data, long, *self.OPTIONS, SITE=site, RUN_LIMIT="1")
        assert run.done.returncode == 1
        outcomes = run.outcomes()
        assert outcomes.pop("build for cpu") == "passed"
        assert list(outcomes.values()) == 7 * ["cut short"]
        assert run.report["runs"] == {}


def library(code: str, folder: Path, **variables: str | Path) -> subprocess.CompletedProcess:
    """Runs code with the functions of gpu_lib.sh and an empty work folder."""
    (folder / "work/report").mkdir(parents=True)
    start = f"source '{BENCH}/tools/gpu_lib.sh'\nwork='{folder}/work' site='{folder}/work/site'\ndeadline=60\n"
    return bash("-c", start + code, **{"PYTHON": sys.executable} | variables)


class TestPlantedFaults:
    """A tool of compute-sanitizer must report the fault of its kind, and nothing without one."""

    @pytest.mark.parametrize(
        ("faults", "status", "message"),
        [
            ("race", 0, ""),
            ("", 1, "racecheck does not report 'race': expected status 99, got 0"),
            ("none race", 1, "racecheck reports a fault where there is none"),
        ],
    )
    def test_what_is_expected(self, tmp_path, faults, status, message):
        """A stand-in for compute-sanitizer that reports these faults."""
        tool = tmp_path / "bin/compute-sanitizer"
        tool.parent.mkdir()
        tool.write_text(f'#!/bin/bash\nfor fault in {faults}; do [[ ${{!#}} != "$fault" ]] || exit 99; done\n')
        tool.chmod(0o755)
        done = library("expect_planted racecheck", tmp_path, PATH=f"{tool.parent}:{os.environ['PATH']}")
        assert done.returncode == status
        assert message in done.stdout


class TestCutOff:
    def test_results_are_written_after_every_step(self, tmp_path):
        """A call that is killed leaves the results of the steps before."""
        out = tmp_path / "out"
        code = f"out={out} kind=check; mkdir $out; note first passed 3; kill -9 $$"
        assert library(code, tmp_path, PYTHONPATH=BENCH).returncode == -9
        (path,) = out.glob("gpu_check_*.json")
        assert [step["name"] for step in json.loads(path.read_text())["steps"]] == ["first"]
        assert "| first | passed | 3 s |" in path.with_suffix(".md").read_text()


class TestLibrary:
    def test_steps_have_a_limit(self, tmp_path):
        code = """
step ends 9 true; step fails 9 bash -c "exit 3"; step hangs 1 sleep 30; deadline=1 step late 9 true
echo "failed $failed"; cat "$work/report/steps.tsv"
"""
        done = library(code, tmp_path)
        lines = [line.split("\t") for line in done.stdout.split("failed 1\n")[1].splitlines()]
        assert [(name, ended, remark) for name, ended, _, remark in lines] == [
            ("ends", "passed", ""),
            ("fails", "failed", "status 3"),
            ("hangs", "cut short", ""),
            ("late", "not run", "no time was left"),
        ]

    @pytest.mark.parametrize("how", [("cut short", "1"), ("not run", "1"), ("passed", "0"), ("skipped", "0")])
    def test_what_was_not_finished_fails(self, tmp_path, how):
        assert library(f'note step "{how[0]}" 0; exit $failed', tmp_path).returncode == int(how[1])

    def test_only_missing_packages_are_installed(self, tmp_path):
        offered = {"absent_package": "1.0", "pyyaml": "999.0", "rich": "1.0", "torch": "999.0"}
        for name, version in offered.items():
            info = f"{name}-{version}.dist-info"
            with zipfile.ZipFile(tmp_path / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{name}.py", "")
                wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
                wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
                wheel.writestr(f"{info}/RECORD", "")
        done = library('install_missing && ls "$work/site"', tmp_path, PYENGM_WHEELS=tmp_path)
        assert done.returncode == 0, done.stdout
        installed = {line for line in done.stdout.splitlines() if line.endswith(".py")}
        assert installed == {"absent_package.py", "pyyaml.py"}  # not the older rich, and never another torch

    def test_an_empty_folder_of_wheels_is_an_error(self, tmp_path):
        done = library("install_missing", tmp_path, PYENGM_WHEELS=tmp_path / "work")
        assert (done.returncode, done.stdout) == (1, f"no wheels in {tmp_path}/work\n")

    @pytest.mark.parametrize("form", ["folder", "nested", "tar.gz", "zip"])
    def test_images(self, tmp_path, form):
        image = tmp_path / "set" / ("a" if form == "nested" else "") / "train/cat/0.png"
        image.parent.mkdir(parents=True)
        image.touch()
        given, expected = tmp_path / "set", image.parents[2]
        if form == "tar.gz":
            given, expected = tmp_path / "set.tar.gz", tmp_path / "work/data"
            with tarfile.open(given, "w:gz") as archive:
                archive.add(tmp_path / "set/train", "train")
        elif form == "zip":
            given, expected = tmp_path / "set.zip", tmp_path / "work/data"
            with zipfile.ZipFile(given, "w") as archive:
                archive.write(image, "train/cat/0.png")
        done = library(f"data_options '{given}'", tmp_path)
        assert done.stdout.splitlines() == ["--data", str(expected), "--data-dir", f"{tmp_path}/work/decoded"]
        assert (expected / "train/cat/0.png").exists()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("none", "there is no folder or archive"),
            ("work", "expected cifar-10-batches-py, or"),
            ("f", "cannot unpack"),
        ],
    )
    def test_no_data(self, tmp_path, name, message):
        (tmp_path / "f").write_text("no archive")
        done = library(f"data_options '{tmp_path}/{name}'", tmp_path)
        assert done.returncode == 2
        assert message in done.stdout
