"""What gpu_check.sh runs in place of compute-sanitizer where there is no GPU: the emulator, with the same ending.

python -m cuda_on_cpu.rehearse program SOURCE FOLDER     # builds a .cu file as a program that checks itself
python -m cuda_on_cpu.rehearse every_kernel FOLDER       # runs tools.every_kernel on the emulated kernels
"""

import sys
from pathlib import Path

from cuda_on_cpu.compile_kernels import build, build_program, obstacle


def every_kernel(folder: Path) -> None:
    from cuda_on_cpu.emulator import Emulator
    from tools.every_kernel import every_kernel

    emulator = Emulator(build(folder))
    with emulator.replaces_cpu_kernels(seed=1):
        ops = every_kernel("cpu")
    print(f"{ops} ops ran, {len(emulator.calls)} kernels of CUDA among them")


def main(kind: str, *words: str) -> None:
    if (reason := obstacle()) is not None:
        sys.exit(reason)
    paths = [Path(word) for word in words]
    paths[-1].mkdir(parents=True, exist_ok=True)
    if kind == "program":
        print(build_program(*paths))
    else:
        every_kernel(*paths)


if __name__ == "__main__":
    main(*sys.argv[1:])
