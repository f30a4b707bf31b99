#!/usr/bin/env bash
# Finishes the proof on a machine with a GPU, in under 8 minutes and without a network: builds this tree for that GPU,
# runs the gpu tests on fresh random numbers, some of them under compute-sanitizer, then the benchmarks.
#   bench/gpu_check.sh [SEED]
# Needs a Python with torch, pytest, pytest-benchmark, pybind11 and ninja, a C++ compiler and nvcc; see gpu_lib.sh.
# Leaves gpu_check_<gpu>.json and .md in $OUT. Status: 0; 1 where a step failed or found no time; 2 without a GPU.
set -uo pipefail
source "$(dirname "$0")/tools/gpu_lib.sh"
deadline=450 # seconds from the start, for all steps
seed=${1:-$RANDOM}
begin

pytest=("$python" -m pytest -c "$repo/pyproject.toml" --rootdir "$repo" -p no:cacheprovider -m "gpu and not slow" -q)
fresh=(-p fresh_seed --fresh-seed "$seed")

if step "build for sm_${archs//,/, sm_}" 120 build pytest,pytest_benchmark; then
  cp "$repo/bench/tools/fresh_seed.py" "$work/site"
  echo "seed $seed"
  step "tests, seed $seed" 150 "${pytest[@]}" "${fresh[@]}" --continue-on-collection-errors \
    --junitxml="$work/report/tests.xml" "$repo/tests"

  # Every tensor an allocation of its own, or accesses beyond its end would hit torch's cache unseen.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  sanitizer=(compute-sanitizer --error-exitcode 99)
  one_kernel=("$python" -c 'import torch; torch.ones(9, device="cuda").sum().item()')
  if ! command -v compute-sanitizer >/dev/null; then
    note "compute-sanitizer" skipped 0 "not installed"
  elif ! timeout 40 "${sanitizer[@]}" "${one_kernel[@]}" >"$work/log" 2>&1; then
    note "compute-sanitizer" skipped 0 "does not run here: $(grep -m 1 -i error "$work/log")"
  else
    shopt -s nullglob
    step "compute-sanitizer" 80 "${sanitizer[@]}" "${pytest[@]}" "${fresh[@]}" --junitxml="$work/report/sanitizer.xml" \
      -k "not large and not big and not 64_bit and not graph" "$repo/tests/ops" "$repo/tests/kernels"
  fi
  unset PYTORCH_NO_CUDA_MEMORY_CACHING

  # A process each, as an error in a kernel spoils the process. The GPU's own tables first.
  files=$(cd "$repo/bench" && grep -l "mark\.gpu" bench_*.py)
  for file in $(grep -E "gpu|triton" <<<"$files") $(grep -vE "gpu|triton" <<<"$files"); do
    json="$work/report/${file%.py}.json"
    step "$file" 90 "${pytest[@]}" --benchmark-json="$json" "$repo/bench/$file"
    [[ -s $json ]] || note "$file" skipped 0 "no benchmark ran"
  done
fi
finish check
