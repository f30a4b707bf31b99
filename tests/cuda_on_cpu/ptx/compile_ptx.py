"""Builds the module `_cuda` of what nvcc makes of csrc/cuda: its host code, and its PTX for sm_90 translated to C++.

The emulator runs it as it runs the module that compile_kernels.py makes of the sources, with the same checks: what nvcc
has moved, merged or unrolled is run as it is. Left open is what ptxas makes of the PTX.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import pybind11
from cuda_on_cpu import compile_kernels
from cuda_on_cpu.compile_kernels import COMMON, CSRC, RUNTIME, ninja
from ninja.ninja_syntax import Writer

PTX = Path(__file__).resolve().parent
NVCC = ["-O3", "-std=c++17", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]  # as setup.py has them
NVCC += ["-gencode=arch=compute_90,code=compute_90"]
TRANSLATED = ["-O1", "-Wno-unused", "-Wno-unused-parameter", f"-I{RUNTIME / 'include'}"]


def find_nvcc() -> str | None:
    homes = [home for name in ("CUDA_HOME", "CUDA_PATH") for home in os.environ.get(name, "").split(os.pathsep) if home]
    paths = [*(str(Path(home, "bin")) for home in homes), None, "/usr/local/cuda/bin"]
    return next(filter(None, (shutil.which("nvcc", path=path) for path in paths)), None)


def obstacle() -> str | None:
    """Why the PTX cannot be run here, or None."""
    if (reason := compile_kernels.obstacle()) is not None:
        return reason
    return None if find_nvcc() else "the emulator of PTX needs nvcc, which was not found in CUDA_HOME or on PATH"


def build(folder: Path, *, sources: Path = CSRC, checked: bool = True) -> Path:
    """Builds the module `_cuda` in a folder, and compiles only what changed since the last build there.

    Args:
        folder: where everything is written; `NAME.ptx` of each source among it, which may be changed before it is
            built again.
        sources: a folder like csrc.
        checked: whether every access is checked.

    Returns:
        The module.

    Raises:
        RuntimeError: nvcc does not compile the sources, or its PTX has what is not translated; the message says what.
    """
    target = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "build.ninja", "w") as file:
        write_rules(Writer(file), sources, target, checked)
    return ninja(folder, target, "the emulator of PTX")


def write_rules(writer: Writer, sources: Path, target: str, checked: bool) -> None:
    nvcc = shlex.join([str(find_nvcc()), *NVCC, f"-I{sources}"])
    command = f"{nvcc} -MMD -MF $out.d --keep --keep-dir $name.nvcc -c $in -o $out"
    writer.rule("nvcc", f"mkdir -p $name.nvcc && {command} && cp $name.nvcc/$name.ptx .", depfile="$out.d", deps="gcc")
    run = shlex.join([sys.executable, "-m", "cuda_on_cpu.ptx.emission"])
    writer.rule("translate", f"env PYTHONPATH={shlex.quote(str(PTX.parents[1]))} {run} $in > $out")
    writer.rule("compile", "g++ -MMD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc")
    writer.rule("link", "g++ -shared $in -ldl -o $out")
    check = ["-DEMU_CHECKED"] if checked else []
    headers = [f"-I{RUNTIME}", f"-I{PTX}"]
    objects = []

    def compiled(source: str | Path, name: str, *flags: str) -> None:
        objects.append(f"{name}.o")
        writer.build([f"{name}.o"], "compile", [str(source)], variables={"flags": shlex.join([*COMMON, *flags])})

    for source in sorted((sources / "cuda").glob("*.cu")):
        name = source.stem
        outputs = [f"{name}.host.o"], "nvcc", [str(source)]
        writer.build(*outputs, variables={"name": name}, implicit_outputs=[f"{name}.ptx"])
        translator = [str(path) for path in sorted(PTX.glob("*.py"))]
        writer.build([f"{name}.ptx.cpp"], "translate", [f"{name}.ptx"], implicit=translator)
        compiled(f"{name}.ptx.cpp", f"{name}.ptx", *TRANSLATED, *headers, *check)
        objects.append(f"{name}.host.o")
    for path in RUNTIME.glob("*.cpp"):
        if path.stem != "program" and (checked or "checks" not in path.stem):
            compiled(path, path.stem, "-O2", *check)
    compiled(PTX / "host_calls.cpp", "host_calls", "-O2", *headers, *check)
    include = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    compiled(sources / "cuda/bindings.cpp", "bindings", "-O0", *include)
    writer.build([target], "link", objects)
