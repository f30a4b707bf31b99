"""CPU seconds of commands that do not compute: cd bench && python bench_start_up.py

Each is started in turn, round by round; a bare interpreter is the baseline. The CPU time is that of the whole process.
"""

import os
import subprocess
import sys
from statistics import median

from tools.machine import describe_machine

ROUNDS = 7
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "pyengm --version": ["-m", "pyengm", "--version"],
    "pyengm --help": ["-m", "pyengm", "--help"],
    "pyengm tarin (a slip)": ["-m", "pyengm", "tarin"],
    "import torch": ["-c", "import torch"],
    "pyengm train --help": ["-m", "pyengm", "train", "--help"],
    "pyengm completion bash": ["-m", "pyengm", "completion", "bash"],
}


def cpu_seconds(words: list[str]) -> float:
    """The user and system time of a Python process."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # it has been waited for
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Prints the median of each command."""
    for words in COMMANDS.values():  # compiles what is imported
        cpu_seconds(words)
    times = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, words in COMMANDS.items():
            times[name].append(cpu_seconds(words))
    print(describe_machine())
    print(f"CPU seconds, median of {ROUNDS} rounds (least to most)")
    for name, seconds in times.items():
        print(f"{name:24s} {median(seconds):5.2f} ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
