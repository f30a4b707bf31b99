"""Peak memory of a step in a fresh process: cd bench && python -m tools.memory "fastDP" resnet18 width=32 n=32"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from baselines.per_example_libraries import STEPS
from baselines.per_example_models import MODELS, make

BENCH = Path(__file__).parents[1]
STEPS_RUN = 3  # the first step allocates, and a later one may find the memory fragmented


@cache
def measure(name: str, model: str, **sizes: int) -> dict[str, float]:
    """Runs `main` for a step of per_example_libraries.py, and returns what `report` prints there.

    Args:
        name: A name in `STEPS`.
        model: A name in `MODELS`.
        sizes: Arguments of the model's function, as n and width.
    """
    return run_and_read("tools.memory", name, model, *(f"{key}={value}" for key, value in sizes.items()))


def run_and_read(module: str, *arguments: str) -> dict[str, float]:
    """Runs a module of bench/ that ends with `report` in a process of its own, and returns what `report` prints.

    Raises:
        RuntimeError: The process fails; the message holds its errors.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    path = os.pathsep.join(entry for entry in (str(BENCH), os.environ.get("PYTHONPATH")) if entry)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def report(step: Callable[[], object], device: str = "cpu") -> None:
    """Runs a few steps and prints the peak memory in MiB as JSON: "peak", and "before" the first step.

    On the CPU it is the memory of the whole process, with imports, model and data; on a GPU that of torch's tensors.

    Args:
        step: A training step.
        device: The device of its tensors.
    """
    before = _peak(device)
    for _ in range(STEPS_RUN):
        step()
    print(json.dumps({"peak": _peak(device), "before": before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=STEPS)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("sizes", nargs="*", type=parse_size, help="arguments of the model's function, as n=32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    problem = make(args.model, **dict(args.sizes))
    batches = iter([problem.draw() for _ in range(STEPS_RUN)])
    step = STEPS[args.name].build(problem, 10.0)
    report(lambda: step(next(batches)))


def parse_size(text: str) -> tuple[str, int]:
    """("n", 32) from n=32."""
    key, _, value = text.partition("=")
    return key, int(value)


def _peak(device: str) -> float:
    """MiB. On Linux a child inherits ru_maxrss from its parent, but not VmHWM."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


if __name__ == "__main__":
    main()
