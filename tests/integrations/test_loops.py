"""The loops of other libraries end with the weights of the plain loop, to rounding, in one process and in two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.loops import WAYS, theta
from torch import distributed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def expected():
    return theta(WAYS["torch"]["plain_loop"]())


@pytest.fixture(params=WAYS)
def library(request):
    pytest.importorskip(request.param)
    return request.param


def test_one_process(library, expected):
    for name, train in WAYS[library].items():
        torch.testing.assert_close(theta(train()), expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes(library, expected, tmp_path):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "tests/helpers/loops.py"), library, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert list(first) == list(WAYS[library])
    for name, weights in first.items():
        assert weights.equal(second[name]), name
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5, msg=name)
