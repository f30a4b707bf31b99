#!/usr/bin/env bash
# Builds this tree for the GPU of the machine, runs the gpu tests on fresh random values, some of them under
# compute-sanitizer, then the benchmarks; in under 8 minutes and without a network.
#   bench/gpu_check.sh [SEED]
# It needs a Python with torch, pytest, pytest-benchmark, pybind11 and ninja, a C++ compiler and nvcc; see
# tools/gpu_lib.sh for its variables, and:
#   TESTS        files and folders of tests (tests)
#   BENCHMARKS   benchmark files (those with gpu benchmarks)
# It leaves gpu_check_<gpu>.json and .md in $OUT. Status: 0; 1 where a step failed or had no time left; 2 without a GPU.
set -uo pipefail
source "$(dirname "$0")/tools/gpu_lib.sh"
deadline=450 # seconds from the start, for all steps
seed=${1:-$RANDOM}
mapfile -t tests < <(realpath -m ${TESTS:-"$repo/tests"})
mapfile -t benchmarks < <(if [[ -n ${BENCHMARKS:-} ]]; then realpath -m $BENCHMARKS; else gpu_benchmarks; fi)
begin

pytest=("$python" -m pytest -c "$repo/pyproject.toml" --rootdir "$repo" -p no:cacheprovider -m "$marker" -q)
fresh=(-p tools.fresh_seed --fresh-seed "$seed")

if step "build for $target" 120 build pytest,pytest_benchmark; then
  echo "seed $seed"
  step "tests, seed $seed" 150 "${pytest[@]}" "${fresh[@]}" --continue-on-collection-errors \
    --junitxml="$work/report/tests.xml" "${tests[@]}"

  # Every tensor is an allocation of its own; otherwise torch's cache would hide accesses beyond the end of a tensor.
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

  # Each file has a process of its own, as an error in a kernel makes the process unusable.
  for path in "${benchmarks[@]}"; do
    file=$(basename "$path")
    json="$work/report/${file%.py}.json"
    if step "$file" 90 "${pytest[@]}" --benchmark-json="$json" "$path"; then
      [[ -s $json ]] || note "$file" skipped 0 "no benchmark ran"
    fi
  done
fi
finish check
