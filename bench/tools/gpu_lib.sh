# Functions of gpu_check.sh and gpu_train.sh: find the GPU, install missing packages from wheels, build this tree for the
# GPU, run steps with a time limit. They fetch nothing, and write nothing but results into the tree.
#
# PYTHON           the Python that has torch (python3)
# OUT              folder for the results (bench/results)
# PYENGM_WHEELS    folder with wheels of packages that this Python lacks, or has in an older version
# PYENGM_COMMIT    commit for the results where git cannot find it
# SITE             folder for the build, which later runs with the same tree and SITE use (a temporary folder)
# REHEARSE         1: rehearse all steps on the CPU, without a GPU: build without CUDA, tests without the gpu tests, the
#                  emulator of tests/cuda_on_cpu in place of compute-sanitizer

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
[[ $python != */* ]] || python=$(realpath --no-symlinks "$python")
out=$(realpath -m "${OUT:-$repo/bench/results}")
wheels=${PYENGM_WHEELS:+$(realpath -m "$PYENGM_WHEELS")}
site=${SITE:+$(realpath -m "$SITE")}
rehearse=${REHEARSE:-0}
failed=0

refuse() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# begin KIND: finds the GPUs and changes to a temporary folder, as Python imports from the folder where it starts, and the
# tree has no native modules. It sets target, archs (such as 90,100) and backend for the build, and marker for the tests.
# From here on every step writes gpu_KIND_<gpu>.json and .md anew: a call that is cut off leaves what it had.
begin() {
  kind=$1
  if ((rehearse)); then
    target=cpu archs="" backend=cpu marker="not gpu and not slow"
  else
    archs=$(find_gpus) || refuse "needs an NVIDIA GPU, and a Python with a torch that can use it (PYTHON=...)"
    target="sm_${archs//,/, sm_}" backend=cuda marker="gpu and not slow"
  fi
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  site=${site:-$work/site}
  mkdir -p "$site" "$work/report" "$out"
  cd "$work" || exit
  export PYTHONPATH="$site:$repo/bench:$repo/tests${PYTHONPATH:+:$PYTHONPATH}"
  export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
  export -f build install_missing pip_into_site build_planted expect_planted every_kernel_under
  export repo python archs backend work site wheels rehearse
}

# find_gpus: the compute capabilities of the GPUs, such as 90,100.
find_gpus() {
  "$python" -c '
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"{sys.executable}: {error}")
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} finds no CUDA device")
devices = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
print(",".join(sorted({f"{major}{minor}" for major, minor in devices})))
'
}

# gpu_benchmarks: the benchmark files with gpu benchmarks, one per line; first those that are for a GPU alone.
gpu_benchmarks() {
  local files
  files=$(cd "$repo/bench" && grep -l "mark\.gpu" bench_*.py)
  printf "$repo/bench/%s\n" $(grep -E "gpu|triton" <<<"$files") $(grep -vE "gpu|triton" <<<"$files")
}

# build MODULES: installs missing packages, then pyengm from a copy of the tree, with CUDA where the backend is cuda, and
# checks that it and MODULES, separated by commas, can be imported.
build() {
  if [[ ! -d $site/pyengm ]]; then
    [[ -z $wheels ]] || install_missing || return
    mkdir "$work/tree"
    tar -C "$repo" --exclude='*.so' --exclude=__pycache__ -cf - LICENSE MANIFEST.in README.md csrc kernels pyengm \
      pyproject.toml setup.py | tar -C "$work/tree" -xf - || return
    if [[ $backend == cuda ]]; then
      PYENGM_CUDA=1 PYENGM_CUDA_ARCHS=$archs pip_into_site "$work/tree" || return
    else
      PYENGM_CUDA=0 pip_into_site "$work/tree" || return
    fi
  fi
  "$python" -c "
import sys
try:
    import pyengm.cli, $1
except ModuleNotFoundError as error:
    sys.exit(f'{error}; PYENGM_WHEELS may name a folder with its wheel')
print(pyengm.__file__, *pyengm.ops.available_backends())
if not pyengm.__file__.startswith('$site/') or '$backend' not in pyengm.ops.available_backends():
    sys.exit('expected the pyengm in $site, with its $backend kernels')
"
}

# install_missing: installs the wheels whose package this Python lacks or has in an older version, but never another
# torch or triton.
install_missing() {
  local found chosen
  found=$("$python" -c '
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from packaging.version import Version

wheels = sorted(Path(sys.argv[1]).glob("*.whl"))
for wheel in wheels:
    name, offered = wheel.name.split("-")[:2]
    try:
        newer = Version(version(name)) < Version(offered) and name.lower() not in ("torch", "triton")
    except PackageNotFoundError:
        newer = True
    if newer:
        print(wheel)
sys.exit(None if wheels else f"no wheels in {sys.argv[1]}")
' "$wheels") || return
  mapfile -t chosen < <(printf '%s' "$found")
  ((${#chosen[@]} == 0)) || pip_into_site "${chosen[@]}"
}

# pip_into_site ARGUMENTS: installs packages into $site, not into the environment.
pip_into_site() {
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-cache-dir \
    --no-build-isolation --target "$site" "$@"
}

# step NAME LIMIT COMMAND...: runs a program or an exported function for at most LIMIT seconds and until the $deadline of
# the script at the latest, and notes how it ended. At the limit it receives a Ctrl-C, so that it can write its results.
step() {
  local name=$1 seconds=$2 left=$((deadline - SECONDS)) start=$SECONDS status
  shift 2
  printf '\n== %s\n' "$name"
  ((seconds < left)) || seconds=$left
  if ((left < 5)); then
    note "$name" "not run" 0 "no time was left"
    return 1
  fi
  # With a last command bash does not replace itself by the program, which would then receive the signal twice.
  timeout --signal=INT --kill-after=10 "$seconds" bash -c '"$@"; exit $?' bash "$@"
  status=$?
  case $status in
    0) note "$name" passed $((SECONDS - start)) ;;
    124 | 137) note "$name" "cut short" $((SECONDS - start)) ;;
    *) note "$name" failed $((SECONDS - start)) "status $status" ;;
  esac
  return $status
}

# note NAME OUTCOME SECONDS [REMARK]: adds a line to the summary; the script fails unless all outcomes are "passed" or
# "skipped".
note() {
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4:-}" >>"$work/report/steps.tsv"
  [[ $2 == passed || $2 == skipped ]] || failed=1
  [[ -z ${kind:-} ]] || "$python" -m tools.gpu_report "$work/report" "$out" "$kind" >"$work/report.log" 2>&1
}

# finish: prints the report, and ends with status 0 or 1.
finish() {
  "$python" -m tools.gpu_report "$work/report" "$out" "$kind" || failed=1
  exit $failed
}

# sanitizer_here: whether compute-sanitizer, or the emulator in a rehearsal, can run; else sanitizer_missing says why.
sanitizer_here() {
  local one_kernel=("$python" -c 'import torch; torch.ones(9, device="cuda").sum().item()')
  if ((rehearse)); then
    sanitizer_missing=$("$python" -c 'from cuda_on_cpu.compile_kernels import obstacle; print(obstacle() or "")' 2>&1)
    [[ -z $sanitizer_missing ]]
  elif ! command -v compute-sanitizer >/dev/null; then
    sanitizer_missing="not installed"
    return 1
  elif ! timeout 40 compute-sanitizer --error-exitcode 99 "${one_kernel[@]}" >"$work/log" 2>&1; then
    sanitizer_missing="does not run here: $(grep -m 1 -i error "$work/log")"
    return 1
  fi
}

# build_planted: compiles tools/planted_faults.cu.
build_planted() {
  local source="$repo/bench/tools/planted_faults.cu"
  mkdir -p "$site/planted"
  if ((rehearse)); then
    "$python" -m cuda_on_cpu.rehearse program "$source" "$site/planted"
  else
    nvcc -O1 -std=c++17 -lineinfo "-arch=sm_${archs%%,*}" "$source" -o "$site/planted/planted_faults"
  fi
}

# expect_planted TOOL: the tool reports the planted fault of its kind, and nothing where there is none.
expect_planted() {
  local -A faults=([memcheck]=bounds [racecheck]=race [initcheck]=unwritten [synccheck]=barrier)
  local check=(compute-sanitizer --tool "$1" --error-exitcode 99) fault=${faults[$1]} status
  ((rehearse)) && check=()
  "${check[@]}" "$site/planted/planted_faults" none || {
    echo "$1 reports a fault where there is none" >&2
    return 1
  }
  "${check[@]}" "$site/planted/planted_faults" "$fault"
  status=$?
  ((status == 99)) && return
  echo "$1 does not report '$fault': expected status 99, got $status" >&2
  return 1
}

# every_kernel_under TOOL: tools/every_kernel.py under the tool, which looks at our kernels alone. Every tensor is an
# allocation of its own; otherwise torch's cache would hide accesses beyond the end of a tensor.
every_kernel_under() {
  if ((rehearse)); then
    "$python" -m cuda_on_cpu.rehearse every_kernel "$site/emulator"
  else
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 99 --kernel-name kns=pyengm \
      --kernel-name kns=sqnorm "$python" -m tools.every_kernel cuda
  fi
}

# data_options PATH: the options of pyengm train, one per line, for CIFAR-10 in a folder or an archive: in the format of
# torchvision (cifar-10-batches-py), or as folders of images (train/CLASS/*, test/CLASS/*).
data_options() {
  local folder=$1 found
  if [[ -f $1 ]]; then
    folder=$work/data
    mkdir -p "$folder"
    if [[ $1 == *.zip ]]; then
      "$python" -m zipfile -e "$1" "$folder"
    else
      tar -xf "$1" -C "$folder"
    fi || refuse "cannot unpack $1"
  fi
  [[ -d $folder ]] || refuse "there is no folder or archive $1"
  found=$(find -L "$folder" -maxdepth 2 -type d \( -name cifar-10-batches-py -o -name train \) -print -quit)
  case $found in
    */cifar-10-batches-py) printf '%s\n' --data cifar10 --data-dir "${found%/*}" ;;
    */train) printf '%s\n' --data "${found%/*}" --data-dir "$work/decoded" ;;
    *) refuse "expected cifar-10-batches-py, or train/CLASS/* and test/CLASS/*, in $1" ;;
  esac
}
