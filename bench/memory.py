"""Peak resident memory of a step, each in a fresh process: python bench/memory.py "fastDP" --width 32 --n 32"""

import argparse
import json
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from peers import STEPS

from pyengm.models import build

STEPS_RUN = 3  # the first allocates, a later one may find the memory in pieces


@cache
def measure(name: str, width: int, n: int) -> dict[str, float]:
    """MiB of a process that runs a few steps: "peak", and "before" the first step (imports, model and data)."""
    command = [sys.executable, "-W", "ignore", __file__, name, "--width", str(width), "--n", str(n)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=STEPS)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--n", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build("resnet18", norm="gn", width=args.width)
    step = STEPS[args.name].build(model, torch.rand(args.n, 3, 32, 32), torch.arange(args.n) % 10, 10.0)
    before = _peak()
    for _ in range(STEPS_RUN):
        step()
    print(json.dumps({"peak": _peak(), "before": before}))


def _peak() -> float:
    """MiB. Linux hands ru_maxrss of a parent down to its child, but not VmHWM."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


if __name__ == "__main__":
    main()
