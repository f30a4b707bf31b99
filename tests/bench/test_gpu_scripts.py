"""The commands for a machine with a GPU, as far as a machine without one can show: their steps are stubs here."""

import json
import os
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the scripts are for Linux")

BENCH = Path(__file__).resolve().parents[2] / "bench"
SCRIPTS = [*BENCH.glob("*.sh"), *BENCH.parent.glob(".ci/*")]
MACHINE = {
    "gpu": "NVIDIA H200",
    "compute_capability": "9.0",
    "gpu_gib": 140,
    "driver": "580.1",
    "processor": "made",
    "cores": 16,
    "python": "3.12.3",
    "torch": "2.11.0",
    "torch_cuda": "13.0",
    "cudnn": "91",
    "triton": "3.6.0",
    "nvcc": "13.0",
    "pyengm": "0.1.0",
    "commit": "abc1234",
    "date": "2030-01-02 03:04 UTC",
}
TESTS = '<testsuites><testsuite><testcase classname="t" name="a"/>{}</testsuite></testsuites>'
FAILURE = '<testcase classname="t" name="b"><failure message="1 != 2&#10;more">trace</failure></testcase>'

# In place of Python: finds a GPU, and every step ends as $FAILING, a word of its command, says. Reports are real.
PYTHON = f"""#!/usr/bin/env bash
case "$*" in
  *"finds no CUDA device"*) echo 90 ;;
  *gpu_report.py\\ machine*) echo '{json.dumps(MACHINE)}' ;;
  *gpu_report.py*) exec {sys.executable} "$@" ;;
  *)
    printf '%s|' "$@" | tr '\\n' ' ' >>"$LOG"
    echo >>"$LOG"
    for word in "$@"; do
      case $word in
        --junitxml=*) echo '{TESTS.format("")}' >"${{word#*=}}" ;;
        --benchmark-json=*) cp "$BENCHMARKS" "${{word#*=}}" ;;
        */train_*.json) cp "$RUN" "$word" ;;
      esac
    done
    [[ -z $FAILING || $* != *$FAILING* ]]
    ;;
esac
"""
BENCHMARKS = {
    "benchmarks": [
        {"name": "test_step", "stats": {"median": 2e-5}, "extra_info": {"ratio to eager": 2.5, "share": 0.875}},
        {
            "name": "test_norms",
            "stats": {"median": 0.004},
            "extra_info": {"ratio to cuDNN": {"p20": 0.9, "p50": 1.25, "p80": 1.5}},
        },
    ]
}


def run_of(epoch_seconds: list[float], **others: object) -> dict[str, object]:
    return {"given": ["--data", "/t/x", "--epochs", "3"], "epoch_seconds": epoch_seconds, "images": 50_000, **others}


def bash(*command: str | Path, **variables: str | Path) -> subprocess.CompletedProcess:
    env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(["bash", *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def stub(tmp_path) -> dict[str, Path | str]:
    """The variables for a run of a script with the stub."""
    (tmp_path / "bin").mkdir()
    files = {
        "python": PYTHON,
        # Runs the command that follows --error-exitcode 99.
        "bin/compute-sanitizer": '#!/usr/bin/env bash\nexec "${@:3}"\n',
        "benchmarks.json": json.dumps(BENCHMARKS),
        "run.json": json.dumps(run_of([5.0, 4.0], pgd20=0.4, natural=0.6)),
        "log": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in ("python", "bin/compute-sanitizer"):
        (tmp_path / name).chmod(0o755)
    return {
        "PYTHON": tmp_path / "python",
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "BENCHMARKS": tmp_path / "benchmarks.json",
        "RUN": tmp_path / "run.json",
        "LOG": tmp_path / "log",
        "OUT": tmp_path / "out",
        "FAILING": "",
    }


def result(stub, kind: str) -> dict:
    return json.loads((stub["OUT"] / f"gpu_{kind}_nvidia_h200.json").read_text())


def ends(report: dict) -> dict[str, str]:
    return {step["name"].partition(",")[0]: step["ended"] for step in report["steps"]}


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


class TestCheck:
    def test_all_steps_pass(self, stub):
        done = bash(BENCH / "gpu_check.sh", "77", **stub)
        assert done.returncode == 0, done.stdout
        report = result(stub, "check")
        files = [path.name for path in BENCH.glob("bench_*.py") if "mark.gpu" in path.read_text()]
        assert ends(report) == dict.fromkeys(["build for sm_90", "tests", "compute-sanitizer", *files], "passed")
        assert "bench_pgd_linf_step.py" in files
        assert report["machine"] == MACHINE
        assert report["tests"]["tests"] == {"passed": 1, "failed": 0, "skipped": 0, "failures": []}
        assert "tests, seed 77" in (stub["OUT"] / "gpu_check_nvidia_h200.md").read_text()
        calls = [line for line in stub["LOG"].read_text().splitlines() if "|pytest|" in line]
        assert len(calls) == len(files) + 2
        assert all("|-m|gpu and not slow|" in call for call in calls)
        assert all(("|--fresh-seed|77|" in call) == ("junitxml" in call) for call in calls)

    @pytest.mark.parametrize(("word", "steps"), [("tests.xml", ["tests"]), ("bench_philox.json", ["bench_philox.py"])])
    def test_a_failure_stops_nothing_and_shows(self, stub, word, steps):
        done = bash(BENCH / "gpu_check.sh", **stub | {"FAILING": word})
        assert done.returncode == 1
        ended = ends(result(stub, "check"))
        assert [name for name, how in ended.items() if how == "failed"] == steps
        assert len(ended) > 5

    def test_a_failed_build_ends_it(self, stub):
        done = bash(BENCH / "gpu_check.sh", **stub | {"FAILING": "-m pip"})
        assert done.returncode == 1
        assert ends(result(stub, "check")) == {"build for sm_90": "failed"}
        assert "pytest" not in stub["LOG"].read_text()

    def test_benchmarks_that_did_not_run_are_told(self, stub, tmp_path):
        empty = tmp_path / "empty"
        empty.touch()
        done = bash(BENCH / "gpu_check.sh", **stub | {"BENCHMARKS": empty})
        assert done.returncode == 0, done.stdout
        assert ends(result(stub, "check"))["bench_philox.py"] == "skipped"


class TestTrain:
    def test_runs_and_options(self, stub, tmp_path):
        data = tmp_path / "data"
        (data / "cifar-10-batches-py").mkdir(parents=True)
        done = bash(BENCH / "gpu_train.sh", data, "2", "--batch-size", "64", **stub)
        assert done.returncode == 0, done.stdout
        calls = [line for line in stub["LOG"].read_text().splitlines() if "timed_training.py" in line]
        runs = result(stub, "train")["runs"]
        assert {*runs} == {
            *(f"pgd_at_{optimizer}_{norm}" for optimizer in ("msgd", "engm") for norm in ("bn", "gn")),
            "atas_msgd_bn",
        }
        assert len(calls) == len(runs) == 5
        for call in calls:
            assert f"|--data|cifar10|--data-dir|{data}|--epochs|2|--select-on|none|--precision|bf16|" in call
            assert call.endswith("|--batch-size|64|")  # last, so that it wins over the script's own

    def test_a_failed_run_stops_nothing(self, stub, tmp_path):
        (tmp_path / "data/train").mkdir(parents=True)
        done = bash(BENCH / "gpu_train.sh", tmp_path / "data", **stub | {"FAILING": "pgd_at_engm_bn"})
        assert done.returncode == 1
        ended = ends(result(stub, "train"))
        assert [name for name, how in ended.items() if how == "failed"] == ["pgd_at_engm_bn"]
        assert len(ended) == 6


def library(code: str, folder: Path, **variables: str | Path) -> subprocess.CompletedProcess:
    """Runs code with the functions of gpu_lib.sh and an empty work folder."""
    (folder / "work/report").mkdir(parents=True)
    start = f"source '{BENCH}/tools/gpu_lib.sh'\nwork='{folder}/work'\ndeadline=60\n"
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


@pytest.fixture(scope="module")
def report_py() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(BENCH / "tools" / "gpu_report.py")))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "machine.json").write_text(json.dumps(MACHINE))
    return tmp_path


class TestReport:
    def test_benchmarks(self, report_py, folder, capsys):
        (folder / "bench_x.json").write_text(json.dumps(BENCHMARKS))
        (folder / "bench_killed.json").touch()
        report_py.write(folder, folder, "check")
        text = (folder / "gpu_check_nvidia_h200.md").read_text()
        assert text in capsys.readouterr().out
        assert (
            "2030-01-02 03:04 UTC, commit abc1234. NVIDIA H200 (compute capability 9.0, 140 GiB), driver 580.1" in text
        )
        assert "| test_step | 20.0 us | eager | 2.50 |" in text
        assert "| test_norms | 4.00 ms | cuDNN | 1.25 (0.90 to 1.50) |" in text
        assert "| test_step | 20.0 us | share 0.875 |" in text
        assert text.count("test_norms") == 1  # it has ratios only
        assert json.loads((folder / "gpu_check_nvidia_h200.json").read_text())["machine"] == MACHINE

    def test_failures_and_interrupted_tests(self, report_py, folder):
        (folder / "tests.xml").write_text(TESTS.format(f'{FAILURE}<testcase time="0.0"/>'))
        tests = report_py.collect(folder)["tests"]["tests"]
        assert tests == {
            "passed": 1,
            "failed": 1,
            "skipped": 0,
            "failures": [{"test": "t::b", "message": "1 != 2"}],
        }
        assert "| t::b | 1 != 2 |" in report_py.markdown(report_py.collect(folder), "title")

    def test_skipped_tests_show_nothing(self, report_py, folder):
        skipped = '<testsuites><testcase classname="t" name="a"><skipped/></testcase></testsuites>'
        (folder / "tests.xml").write_text(skipped)
        with pytest.raises(SystemExit, match="no test passed, 1 were skipped"):
            report_py.write(folder, folder, "check")

    def test_runs(self, report_py, folder):
        runs = {
            "pgd_at_msgd_bn": run_of([40.0, 10.0, 12.0, 10.0], pgd20=0.4, natural=0.6, peak_gib=2.0),
            "pgd_at_engm_bn": run_of([50.0, 10.8], pgd20=0.5, natural=0.7),
            "pgd_at_engm_gn": run_of([20.0]),  # cut short, and there is no msgd_gn
            "atas_msgd_bn": run_of([]),
        }
        for name, run in runs.items():
            (folder / f"train_{name}.json").write_text(json.dumps(run))
        rows = [
            line.strip("| ").split(" | ")
            for line in report_py.markdown(report_py.collect(folder), "title").splitlines()
            if line.startswith(("| pgd_at", "| atas"))
        ]
        assert {row[0]: row[1:] for row in rows} == {
            "pgd_at_msgd_bn": ["4", "40.0 s", "10.0 s", "5000", "1.000", "60.0 %", "40.0 %", "2.0 GiB", "--epochs 3"],
            "pgd_at_engm_bn": ["2", "50.0 s", "10.8 s", "4630", "1.080", "70.0 %", "50.0 %", "-", "--epochs 3"],
            "pgd_at_engm_gn": ["1", "20.0 s", "20.0 s", "2500", "-", "-", "-", "-", "--epochs 3"],
            "atas_msgd_bn": ["0", "-", "-", "-", "-", "-", "-", "-", "--epochs 3"],
        }

    def test_commit(self, report_py, tmp_path, monkeypatch):
        def git(*command: str) -> str:
            identity = ("-c", "user.name=a", "-c", "user.email=b")
            done = subprocess.run(["git", *identity, *command], cwd=repo, check=True, capture_output=True, text=True)
            return done.stdout.strip()

        monkeypatch.setenv("PYENGM_COMMIT", "named")
        repo = tmp_path.resolve() / "repo"
        (repo / "below").mkdir(parents=True)
        assert report_py.commit(repo) == "named"
        (repo / "file").write_text("a")
        try:
            git("init")
        except FileNotFoundError:
            pytest.skip("git is not installed")
        git("add", "file")
        git("commit", "-m", "first")
        assert report_py.commit(repo) == git("rev-parse", "--short", "HEAD")
        assert report_py.commit(repo / "below") == "named"  # the repository around it is another one
        (repo / "file").write_text("b")
        assert report_py.commit(repo) == git("rev-parse", "--short", "HEAD") + " with changes"
        monkeypatch.delenv("PYENGM_COMMIT")
        assert report_py.commit(repo / "below") == "unknown"

    def test_this_machine(self, report_py):
        assert report_py.machine().keys() == MACHINE.keys()
        assert report_py.machine()["torch"] == torch.__version__


def test_timed_training(tmp_path):
    (tmp_path / "indices").write_text("\n".join(map(str, range(30))))
    script, out = BENCH / "tools" / "timed_training.py", tmp_path / "run.json"
    options = [
        "--train-indices",
        tmp_path / "indices",
        "--epochs",
        "2",
        "--select-on",
        "none",
        "--attack-steps",
        "1",
        "--precision",
        "bf16",
    ]
    command = [sys.executable, script, out, "--device", "cpu", "--model", "cnn4", "--width", "4", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run = json.loads(out.read_text())
    assert len(run["epoch_seconds"]) == len(run["metrics"]) == 2
    assert all(0 < seconds < 60 for seconds in run["epoch_seconds"])
    assert (run["images"], run["test_images"], run["options"]["steps"]) == (30, 360, 1)
    assert 0 <= run["pgd20"] <= run["natural"] <= 1


def test_fresh_seed(monkeypatch):
    """A test's fixed seed gives the numbers of another one, the same in every run with that fresh seed."""
    plugin = SimpleNamespace(**runpy.run_path(str(BENCH / "tools" / "fresh_seed.py")))
    expected = torch.rand(3, generator=torch.Generator().manual_seed(2 + 70))
    for name in ("Generator", "manual_seed"):
        monkeypatch.setattr(torch, name, getattr(torch, name))  # puts the old one back in the end
    plugin.pytest_configure(SimpleNamespace(getoption=lambda name: 70))
    assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(2)), expected)
    torch.manual_seed(2)
    assert torch.equal(torch.rand(3), expected)
