"""What a figure depends on: processor, GPU, threads, versions and commit."""

import platform
import subprocess
from pathlib import Path

import torch


def describe_machine() -> str:
    """One line for the head of a table."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{processor()}{gpu}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, commit {done.stdout.strip() or 'unknown'}"
    )


def processor() -> str:
    """The model of the CPU where the system names it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
