"""Peak memory of a step, each in a fresh process: python bench/tools/memory.py "fastDP" --width 32 --n 32"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from baselines.baselines import STEPS

from pyengm.models import build

STEPS_RUN = 3  # the first allocates, a later one may find the memory in pieces


@cache
def measure(name: str, width: int, n: int) -> dict[str, float]:
    """What `report` says of a step of peers.py."""
    return read_report(__file__, name, "--width", str(width), "--n", str(n))


def read_report(script: str, *words: str) -> dict[str, float]:
    """Runs a script that ends with `report`, and returns what it said."""
    command = [sys.executable, "-W", "ignore", script, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def report(step: Callable[[], object], device: str = "cpu") -> None:
    """Runs a few steps and prints MiB: "peak", and "before" the first of them.

    On the CPU that of the whole process (imports, model and data come before), on a GPU that of torch's tensors.
    """
    before = _peak(device)
    for _ in range(STEPS_RUN):
        step()
    print(json.dumps({"peak": _peak(device), "before": before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=STEPS)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--n", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build("resnet18", norm_layer="gn", width=args.width)
    report(STEPS[args.name].build(model, torch.rand(args.n, 3, 32, 32), torch.arange(args.n) % 10, 10.0))


def _peak(device: str) -> float:
    """MiB. Linux hands ru_maxrss of a parent down to its child, but not VmHWM."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


if __name__ == "__main__":
    main()
