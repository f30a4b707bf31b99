# Sourced by gpu_check.sh and gpu_train.sh: a GPU or status 2, missing packages from wheels, the build of this tree for
# the GPU that is here, steps with a time limit. Nothing is fetched; nothing but results is written into the tree.
#
# PYTHON           the Python that has torch (python3)
# OUT              folder for the results (bench/results)
# PYENGM_WHEELS    folder with wheels of packages that this Python lacks, or has in too old a version
# PYENGM_COMMIT    commit to name in the results where git cannot tell

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
[[ $python != */* ]] || python=$(realpath --no-symlinks "$python")
out=$(realpath -m "${OUT:-$repo/bench/results}")
wheels=${PYENGM_WHEELS:+$(realpath -m "$PYENGM_WHEELS")}
failed=0

refuse() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# Finds the GPUs (archs: such as 90) and goes to a work folder: Python would import pyengm from where it is started, and
# the tree has no native modules in it.
begin() {
  archs=$("$python" -c '
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"{sys.executable}: {error}")
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} finds no CUDA device")
devices = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
print(",".join(sorted({f"{major}{minor}" for major, minor in devices})))
') || refuse "needs an NVIDIA GPU, and a Python with a torch that can use it (PYTHON=...)"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$work/site" "$work/report" "$out"
  cd "$work" || exit
  export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
  export -f build install_missing pip_into_site
  export repo python archs work wheels
}

# build MODULES: installs missing packages, then pyengm with CUDA from a copy of the tree, and makes sure that it can be
# imported, like MODULES, separated by commas.
build() {
  [[ -z $wheels ]] || install_missing || return
  mkdir "$work/tree"
  tar -C "$repo" --exclude='*.so' --exclude=__pycache__ -cf - LICENSE MANIFEST.in README.md csrc kernels pyengm \
    pyproject.toml setup.py | tar -C "$work/tree" -xf - || return
  PYENGM_CUDA=1 PYENGM_CUDA_ARCHS=$archs pip_into_site "$work/tree" || return
  "$python" -c "
import sys
try:
    import pyengm.cli, $1
except ModuleNotFoundError as error:
    sys.exit(f'{error}; PYENGM_WHEELS may name a folder with its wheel')
print(pyengm.__file__, *pyengm.ops.available_backends())
if not pyengm.__file__.startswith('$work/site/') or 'cuda' not in pyengm.ops.available_backends():
    sys.exit('expected the pyengm built just now, with its CUDA kernels')
"
}

# Installs the wheels whose package this Python has not, or older; torch and triton stay what they are on this machine.
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

pip_into_site() {
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-cache-dir \
    --no-build-isolation --target "$work/site" "$@"
}

# step NAME LIMIT COMMAND...: runs a program or an exported function for at most LIMIT seconds and no longer than to the
# $deadline of the script, and notes how it ended. At the limit it gets a Ctrl-C, so that it can write what it has.
step() {
  local name=$1 seconds=$2 left=$((deadline - SECONDS)) start=$SECONDS status
  shift 2
  printf '\n== %s\n' "$name"
  ((seconds < left)) || seconds=$left
  if ((left < 5)); then
    note "$name" "not run" 0 "no time was left"
    return 1
  fi
  # The last command keeps bash from becoming the program, which then would get the signal twice.
  timeout --signal=INT --kill-after=10 "$seconds" bash -c '"$@"; exit $?' bash "$@"
  status=$?
  case $status in
    0) note "$name" passed $((SECONDS - start)) ;;
    124 | 137) note "$name" "cut short" $((SECONDS - start)) ;;
    *) note "$name" failed $((SECONDS - start)) "status $status" ;;
  esac
  return $status
}

# note NAME HOW SECONDS [WORDS]: a line of the summary; all but "passed" and "skipped" make the script fail.
note() {
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4:-}" >>"$work/report/steps.tsv"
  [[ $2 == passed || $2 == skipped ]] || failed=1
}

# finish KIND: writes gpu_KIND_<gpu>.json and .md, prints the latter, ends with status 0 or 1.
finish() {
  "$python" "$repo/bench/tools/gpu_report.py" machine >"$work/report/machine.json" || failed=1
  "$python" "$repo/bench/tools/gpu_report.py" write "$work/report" "$out" "$1" || failed=1
  exit $failed
}

# data_options PATH: the options of pyengm train, one a line, for CIFAR-10 in a folder or an archive: as torchvision
# keeps it (cifar-10-batches-py), or as folders of images (train/CLASS/*, test/CLASS/*).
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
