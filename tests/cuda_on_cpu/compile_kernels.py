"""Compiles csrc/cuda with g++ for the CPU, with the headers of runtime/include in place of those of CUDA."""

import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from ninja.ninja_syntax import Writer

RUNTIME = Path(__file__).resolve().parent / "runtime"
CSRC = RUNTIME.parents[2] / "csrc"
OLDEST_COMPILER = 12  # the first g++ with _Float16 in C++

COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-g1", "-Wall", "-Wextra"]
DEVICE = ["-x", "c++", "-include", str(RUNTIME / "include/cuda_runtime.h"), f"-I{RUNTIME / 'include'}"]
DEVICE += ["-D__CUDACC__", "-D__CUDA_ARCH__=900", "-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-parentheses"]
# The compiler calls a function of runtime/ for every access, and for undefined arithmetic.
CHECKS = ["-O1", "-fsanitize=thread", "--param=tsan-distinguish-volatile=1"]
CHECKS += ["--param=tsan-instrument-func-entry-exit=0", "-fsanitize=undefined", "-fno-sanitize=vptr,return,unreachable"]


def obstacle() -> str | None:
    """Why the emulator cannot be built here, or None."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return f"the emulator of CUDA needs Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    if shutil.which("g++") is None:
        return "the emulator of CUDA needs g++, which was not found"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.partition(".")[0]) < OLDEST_COMPILER:
        return f"the emulator of CUDA needs g++ {OLDEST_COMPILER} or later, this is {version}"
    return None


def for_the_cpu(source: str) -> str:
    """The two things that a macro cannot do; all lines keep their numbers."""
    source = re.sub(r"^(?!\s*//)(.*?)([\w:]+)<<<(.*?)>>>\(", r"\1emu::launch(\2, \3, ", source, flags=re.MULTILINE)
    return re.sub(r"__shared__\s+(.+?)\s+(\w+)((?:\[[^\]]*\])*);", r"EMU_SHARED(\2, \1\3);", source)


def build(folder: Path, *, sources: Path = CSRC, checked: bool = True) -> Path:
    """Builds the module `_cuda` in a folder, and compiles only what changed since the last build there.

    Args:
        folder: where everything is written.
        sources: a folder like csrc.
        checked: whether every access is checked; without, the module is some 20 times faster.

    Returns:
        The module. A copy of the folder builds on without compiling again what is the same.

    Raises:
        RuntimeError: the sources do not compile; the message is the compiler's.
    """
    files = [*sources.glob("*.h"), *(sources / "cuda").iterdir()]
    paths = copy_sources({Path("csrc", path.relative_to(sources)): path for path in files}, folder)
    runtime = [
        path for path in RUNTIME.glob("*.cpp") if path.stem != "program" and (checked or "checks" not in path.stem)
    ]
    return compile_all(folder, [*paths, *runtime], f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}", "-shared", checked)


def build_program(source: Path, folder: Path) -> Path:
    """Builds a program of one file with a `main`, with all checks; a fault that they find ends it with status 99.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    paths = copy_sources({Path(source.name): source}, folder)
    return compile_all(folder, [*paths, *RUNTIME.glob("*.cpp")], source.stem, "-rdynamic", checked=True)


def copy_sources(files: dict[Path, Path], folder: Path) -> list[Path]:
    """Copies files into a folder, rewritten; unchanged copies stay. Returns what to compile, relative to the folder."""
    for copy, path in files.items():
        text = for_the_cpu(path.read_text())
        (folder / copy).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / copy).exists() or (folder / copy).read_text() != text:
            (folder / copy).write_text(text)
    return [copy for copy in files if copy.suffix != ".h"]


def compile_all(folder: Path, paths: list[Path], target: str, link: str, checked: bool) -> Path:
    with open(folder / "build.ninja", "w") as file:
        write_rules(Writer(file), sorted(paths), target, link, checked)
    return ninja(folder, target, "the emulator of CUDA")


def ninja(folder: Path, target: str, what: str) -> Path:
    """Builds what the build.ninja of a folder has."""
    command = [sys.executable, "-m", "ninja", "-C", str(folder), "-j", "1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{what} did not compile:\n{done.stdout}")
    return folder / target


def write_rules(writer: Writer, paths: list[Path], target: str, link: str, checked: bool) -> None:
    command = "g++ -MMD -MF $out.d $flags -c $in -o $out"
    writer.rule("compile", command, depfile="$out.d", deps="gcc")
    writer.rule("link", f"g++ {link} $in -ldl -o $out")
    include = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    flags = {  # by what a file is
        "device": [*COMMON, *DEVICE, *(CHECKS if checked else ["-O2"])],
        "runtime": [*COMMON, "-O2", *(["-DEMU_CHECKED"] if checked else [])],
        "bindings": [*COMMON, "-O0", *include],
    }
    for path in paths:
        kind = "device" if path.suffix == ".cu" else "runtime" if path.is_absolute() else "bindings"
        writer.build([f"{path.name}.o"], "compile", [str(path)], variables={"flags": shlex.join(flags[kind])})
    writer.build([target], "link", [f"{path.name}.o" for path in paths])
