"""The tables of the GPU scripts, made of the files of a run."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from tools import gpu_report

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


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "machine.json").write_text(json.dumps(MACHINE))
    return tmp_path


class TestReport:
    def test_benchmarks(self, folder, capsys):
        (folder / "bench_x.json").write_text(json.dumps(BENCHMARKS))
        (folder / "bench_killed.json").touch()
        gpu_report.write(folder, folder, "check")
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

    def test_failures_and_interrupted_tests(self, folder):
        (folder / "tests.xml").write_text(TESTS.format(f'{FAILURE}<testcase time="0.0"/>'))
        tests = gpu_report.collect(folder)["tests"]["tests"]
        assert tests == {
            "passed": 1,
            "failed": 1,
            "skipped": 0,
            "failures": [{"test": "t::b", "message": "1 != 2"}],
        }
        assert "| t::b | 1 != 2 |" in gpu_report.markdown(gpu_report.collect(folder), "title")

    def test_skipped_tests_show_nothing(self, folder):
        skipped = '<testsuites><testcase classname="t" name="a"><skipped/></testcase></testsuites>'
        (folder / "tests.xml").write_text(skipped)
        with pytest.raises(SystemExit, match="no test passed, 1 were skipped"):
            gpu_report.write(folder, folder, "check")

    def test_runs(self, folder):
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
            for line in gpu_report.markdown(gpu_report.collect(folder), "title").splitlines()
            if line.startswith(("| pgd_at", "| atas"))
        ]
        assert {row[0]: row[1:] for row in rows} == {
            "pgd_at_msgd_bn": ["4", "40.0 s", "10.0 s", "5000", "1.000", "60.0 %", "40.0 %", "2.0 GiB", "--epochs 3"],
            "pgd_at_engm_bn": ["2", "50.0 s", "10.8 s", "4630", "1.080", "70.0 %", "50.0 %", "-", "--epochs 3"],
            "pgd_at_engm_gn": ["1", "20.0 s", "20.0 s", "2500", "-", "-", "-", "-", "--epochs 3"],
            "atas_msgd_bn": ["0", "-", "-", "-", "-", "-", "-", "-", "--epochs 3"],
        }

    def test_commit(self, tmp_path, monkeypatch):
        def git(*command: str) -> str:
            identity = ("-c", "user.name=a", "-c", "user.email=b")
            done = subprocess.run(["git", *identity, *command], cwd=repo, check=True, capture_output=True, text=True)
            return done.stdout.strip()

        monkeypatch.setenv("PYENGM_COMMIT", "named")
        repo = tmp_path.resolve() / "repo"
        (repo / "below").mkdir(parents=True)
        assert gpu_report.commit(repo) == "named"
        (repo / "file").write_text("a")
        try:
            git("init")
        except FileNotFoundError:
            pytest.skip("git is not installed")
        git("add", "file")
        git("commit", "-m", "first")
        assert gpu_report.commit(repo) == git("rev-parse", "--short", "HEAD")
        assert gpu_report.commit(repo / "below") == "named"  # the repository around it is another one
        (repo / "file").write_text("b")
        assert gpu_report.commit(repo) == git("rev-parse", "--short", "HEAD") + " with changes"
        monkeypatch.delenv("PYENGM_COMMIT")
        assert gpu_report.commit(repo / "below") == "unknown"

    def test_this_machine(self):
        assert gpu_report.machine().keys() == MACHINE.keys()
        assert gpu_report.machine()["torch"] == torch.__version__
