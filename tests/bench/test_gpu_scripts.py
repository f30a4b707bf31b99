"""The scripts for a machine with a GPU: refusals, single functions, and rehearsals of all steps on the CPU."""

import json
import os
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
    env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
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
def site(tmp_path_factory) -> Path:
    """The folder of the one build of all rehearsals."""
    return tmp_path_factory.mktemp("site")


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
        tests = f"{REPO / 'tests/ops/test_regression_weights.py'} {seeded}"
        run = Rehearsal("check", tmp_path, "77", SITE=site, TESTS=tests, BENCHMARKS=files)
        assert run.done.returncode == 0, run.done.stdout
        assert [(step["name"], step["ended"]) for step in run.report["steps"]] == [
            ("build for cpu", "passed"),
            ("tests, seed 77", "passed"),
            ("compute-sanitizer", "skipped"),
            ("bench_clip_weights.py", "passed"),
            ("bench_skipped.py", "passed"),
            ("bench_skipped.py", "skipped"),  # no benchmark ran
        ]
        counts = run.report["tests"]["tests"]
        assert counts["passed"] > 0
        assert counts["failed"] == 0
        names = {row["name"] for row in run.report["benchmarks"]}
        assert names == {"test_clip_weights[128-cpu]", "test_clip_weights[4096-cpu]"}
        assert "| test_clip_weights[128-cpu] |" in run.text
        assert run.report["machine"]["pyengm"] != "none"

    def test_failures_do_not_end_the_run(self, site, tmp_path):
        tests = write(tmp_path / "test_failing.py", FAILING_TEST)
        failing = write(tmp_path / "bench_failing.py", FAILING_BENCHMARK)
        passing = BENCH / "bench_regression_weights.py"
        run = Rehearsal("check", tmp_path, "5", SITE=site, TESTS=tests, BENCHMARKS=f"{failing} {passing}")
        assert run.done.returncode == 1
        assert run.outcomes() == {
            "build for cpu": "passed",
            "tests, seed 5": "failed",
            "compute-sanitizer": "skipped",
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
        names = [f"pgd_at_{optimizer}_{norm}" for optimizer in ("msgd", "engm") for norm in ("bn", "gn")]
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

    def test_a_run_that_is_cut_short_does_not_end_the_others(self, site, data, tmp_path):
        run = Rehearsal("train", tmp_path, data, *self.OPTIONS, SITE=site, RUN_LIMIT="1")
        assert run.done.returncode == 1
        outcomes = run.outcomes()
        assert outcomes.pop("build for cpu") == "passed"
        assert list(outcomes.values()) == 5 * ["cut short"]
        assert run.report["runs"] == {}


def library(code: str, folder: Path, **variables: str | Path) -> subprocess.CompletedProcess:
    """Runs code with the functions of gpu_lib.sh and an empty work folder."""
    (folder / "work/report").mkdir(parents=True)
    start = f"source '{BENCH}/tools/gpu_lib.sh'\nwork='{folder}/work' site='{folder}/work/site'\ndeadline=60\n"
    return bash("-c", start + code, **{"PYTHON": sys.executable} | variables)


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
