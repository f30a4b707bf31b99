"""Native build of pyengm: pyengm._C (C++, always) and a module for each release of CUDA; torch is not needed.

PYENGM_CUDA=auto|0|1    auto: build pyengm._cuda13 when an nvcc of CUDA 13 is found; 0: never; 1: fail without nvcc
PYENGM_CUDA_ARCHS       "80,90+PTX" (the default): machine code per entry, +PTX adds code for later GPUs
CUDA_HOME               a CUDA toolkit, or several, separated by ":", for a module of each
CXX, CXXFLAGS, LDFLAGS, MAX_JOBS are read as usual.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import ninja
import pybind11
from ninja.ninja_syntax import Writer
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, OptionError

ROOT = Path(__file__).parent.resolve()
LINUX = sys.platform.startswith("linux")
CPU_MODULE, CUDA_MODULE = "pyengm._C", "pyengm._cuda"  # the latter with a release of CUDA: pyengm._cuda13


def find_nvcc() -> list[str]:
    """Paths of nvcc, one of each toolkit; none where no CUDA module is to be built. No GPU is needed."""
    wish = os.environ.get("PYENGM_CUDA", "auto").lower()
    if wish not in {"auto", "0", "1"}:
        raise OptionError(f"PYENGM_CUDA is {wish!r}; expected auto, 0 or 1")
    if wish == "0":
        return []
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if homes and os.pathsep in homes[0]:
        found = [shutil.which("nvcc", path=str(Path(home, "bin"))) for home in homes[0].split(os.pathsep)]
        if None in found:
            raise OptionError(
                f"CUDA_HOME is {homes[0]!r}; expected a CUDA toolkit, with bin/nvcc, in each of its folders"
            )
        return [nvcc for nvcc in found if nvcc]
    candidates = [shutil.which("nvcc", path=str(Path(home, "bin"))) for home in homes]
    candidates += [shutil.which("nvcc"), shutil.which("nvcc", path="/usr/local/cuda/bin")]
    nvcc = next(filter(None, candidates), None)
    if nvcc is None and wish == "1":
        raise OptionError(
            "PYENGM_CUDA=1 requires a CUDA module, but nvcc was not found in CUDA_HOME, on PATH or in "
            "/usr/local/cuda/bin. Install the CUDA toolkit or set CUDA_HOME to it; PYENGM_CUDA=0 builds without CUDA."
        )
    return [nvcc] if nvcc else []


def cuda_toolkits() -> dict[str, str]:
    """Paths of nvcc by the name of the module that each builds: pyengm._cuda13 for CUDA 13."""
    toolkits = {}
    for nvcc in find_nvcc():
        printed = subprocess.run([nvcc, "--version"], stdout=subprocess.PIPE, text=True).stdout
        release = re.search(r"release (\d+)\.", printed)
        if release is None:
            raise OptionError(f"expected '{nvcc} --version' to print its release, got {printed!r}")
        name = f"{CUDA_MODULE}{release[1]}"
        if name in toolkits:
            raise OptionError(
                f"{toolkits[name]} and {nvcc} are both of CUDA {release[1]}; expected one of each release"
            )
        toolkits[name] = nvcc
    return toolkits


def find_ninja() -> str:
    """Path of the ninja program.

    Under build isolation ninja.BIN_DIR may name the environment outside, whose bin/ninja may be a script that starts
    the imported package's ninja, which is that script again, without end.
    """
    own = [Path(file.locate()) for file in metadata.files("ninja") or () if file.name in ("ninja", "ninja.exe")]
    for path in [*own, Path(ninja.BIN_DIR, "ninja"), shutil.which("ninja")]:
        if path and Path(path).is_file() and not Path(path).read_bytes().startswith(b"#!"):
            return str(path)
    raise OptionError("the ninja package has no ninja program in it; reinstall it: pip install --force-reinstall ninja")


def cuda_arch_flags(archs: str) -> list[str]:
    """nvcc flags for a list such as "80,90+PTX" (also "8.0", "sm_80"; commas, semicolons or spaces)."""
    flags = []
    for entry in re.split(r"[,;\s]+", archs.strip()):
        match = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)([af]?)(\+PTX)?", entry, re.IGNORECASE)
        if match is None:
            raise OptionError(f"PYENGM_CUDA_ARCHS has {entry!r}; expected entries such as 80, 9.0 or 90+PTX")
        arch = f"{match[1]}{match[2]}{match[3].lower()}"
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return flags


class FreshBuild(build_py):
    """Copies the package into an empty folder: modules of an earlier build there would end up in the wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "pyengm"), ignore_errors=True)
        super().run()


class NinjaBuild(build_ext):
    """Compiles every extension with one ninja file: in parallel, and only what changed since the last build."""

    def build_extensions(self) -> None:
        # Not self.build_temp: an editable install gets a new one each time, and would compile everything again.
        work = ROOT / "build" / f"ninja.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        work.mkdir(parents=True, exist_ok=True)
        # A stable name per version: build isolation moves pybind11 each time, and a moved path would rebuild all.
        headers = work / f"pybind11-{pybind11.__version__}"
        headers.unlink(missing_ok=True)
        headers.symlink_to(pybind11.get_include(), target_is_directory=True)
        with open(work / "build.ninja", "w") as file:
            self.write_rules(Writer(file), headers)  # pyright: ignore[reportArgumentType]  # annotated as a str there
        command = [find_ninja(), "-C", str(work)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        if subprocess.run(command).returncode != 0:
            raise CompileError(
                "the native build failed (see above). If only the CUDA part failed, PYENGM_CUDA=0 builds without it."
            )
        self.copy_into_checkout()

    def write_rules(self, writer: Writer, headers: Path) -> None:
        env = os.environ.get
        cxx = shlex.split(env("CXX") or sysconfig.get_config_var("CXX") or "c++")
        # -isystem keeps the headers of Python and pybind11 out of the dependency files: versions are in the paths.
        include = [f"-I{ROOT / 'csrc'}", "-isystem", sysconfig.get_path("include"), "-isystem", str(headers)]
        # Without contraction a*b+c rounds twice everywhere, so that every backend gives the same bits.
        flags = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
        # The flags of floating-point exceptions are not read, and would keep loops with conditions from SIMD.
        flags.append("-fno-trapping-math")
        flags += [*(["-fopenmp"] if LINUX else []), *include, *shlex.split(env("CXXFLAGS", ""))]
        shared = ["-shared", "-fopenmp"] if LINUX else ["-bundle", "-undefined", "dynamic_lookup"]
        link = [*shared, *shlex.split(env("LDFLAGS", ""))]
        writer.variable("cxx", shlex.join(cxx))
        writer.variable("cxxflags", shlex.join(flags))
        writer.variable("ldflags", shlex.join(link))
        writer.rule("cxx", "$cxx -MMD -MF $out.d $cxxflags -c $in -o $out", depfile="$out.d", deps="gcc")
        writer.rule("link", "$cxx $in $ldflags -o $out")
        if toolkits := cuda_toolkits():
            self.write_cuda_rules(writer, host=["-ccbin", cxx[0]] if env("CXX") else [], include=include[:1])
        for extension in self.extensions:
            self.write_extension(writer, extension, toolkits.get(extension.name))

    def write_cuda_rules(self, writer: Writer, host: list[str], include: list[str]) -> None:
        flags = ["-O3", "-std=c++17", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden", *host, *include]
        flags += cuda_arch_flags(os.environ.get("PYENGM_CUDA_ARCHS", "80,90+PTX"))
        writer.variable("cudaflags", shlex.join(flags))
        writer.rule("nvcc", "$nvcc -MMD -MF $out.d $cudaflags -c $in -o $out", depfile="$out.d", deps="gcc")
        writer.rule("nvlink", f"$nvcc {shlex.join(host)} -shared -cudart static $in -o $out")

    def write_extension(self, writer: Writer, extension: Extension, nvcc: str | None) -> None:
        """nvcc: of the toolkit of a CUDA module."""
        name = extension.name.rpartition(".")[2]
        objects = [f"{name}/{source}.o" for source in extension.sources]
        variables = {"cxxflags": f"$cxxflags -DPYENGM_CUDA_MODULE={name}", "nvcc": shlex.quote(nvcc)} if nvcc else {}
        for source, compiled in zip(extension.sources, objects, strict=True):
            # Matrix products want fused multiply-adds, and no other backend repeats their bits.
            fused = {"cxxflags": "$cxxflags -ffp-contract=fast"} if "/conv_" in source else variables
            rule = "nvcc" if source.endswith(".cu") else "cxx"
            writer.build([compiled], rule, [str(ROOT / source)], variables=fused)
        writer.build([str(self.built(extension))], "nvlink" if nvcc else "link", objects, variables=variables)

    def built(self, extension: Extension) -> Path:
        return Path(self.get_ext_fullpath(extension.name)).resolve()

    def copy_into_checkout(self) -> None:
        """Copies the native modules beside the sources too: Python started in a clone imports the package there."""
        beside = {ROOT / self.get_ext_filename(extension.name): self.built(extension) for extension in self.extensions}
        for path, built in beside.items():
            if path != built:
                unfinished = path.with_suffix(".tmp")  # a running process keeps the file that it has mapped
                shutil.copyfile(built, unfinished)
                unfinished.replace(path)
        # What an earlier build left for this Python, and this build does not have.
        for path in ROOT.glob(self.get_ext_filename(f"{CUDA_MODULE}*")):
            if path not in beside:
                path.unlink()


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


cuda_sources = sources("csrc/cuda/*.cpp", "csrc/cuda/*.cu")
extensions = [Extension(CPU_MODULE, sources("csrc/cpu/*.cpp"))]
extensions += [Extension(name, cuda_sources) for name in cuda_toolkits()]

setup(
    packages=find_packages(include=["pyengm", "pyengm.*"]),
    package_data={
        "pyengm": [
            *("py.typed", "examples/*.sbatch", "report/templates/*"),
            *("paper_tables/*.yaml", "paper_figures/*.yaml", "paper_sweeps/*.yaml"),
        ]
    },
    ext_modules=extensions,
    cmdclass={"build_ext": NinjaBuild, "build_py": FreshBuild},
)
