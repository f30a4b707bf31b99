#!/usr/bin/env bash
# Builds this tree for the GPU of the machine, runs the gpu tests on fresh random values, then the benchmarks of the
# kernels, all kernels under compute-sanitizer, and the other benchmarks; in under 8 minutes and without a network.
#   bench/gpu_check.sh [SEED]
# It needs a Python with torch, pytest, pytest-benchmark, pybind11 and ninja, a C++ compiler and nvcc; see
# tools/gpu_lib.sh for its variables, and:
#   TESTS        files and folders of tests (tests)
#   BENCHMARKS   benchmark files (those with gpu benchmarks)
#   SANITIZERS   tools of compute-sanitizer (memcheck racecheck initcheck synccheck)
#   LIMIT        seconds for all steps (450)
# It leaves gpu_check_<gpu>.json and .md in $OUT, which hold the results so far from the first step on. Status: 0; 1 where
# a step failed or had no time left; 2 without a GPU.
set -uo pipefail
source "$(dirname "$0")/tools/gpu_lib.sh"
sanitizers=(${SANITIZERS-memcheck racecheck initcheck synccheck})
deadline=${LIMIT:-450} # seconds from the start, for all steps
seed=${1:-$RANDOM}
mapfile -t tests < <(realpath -m ${TESTS:-"$repo/tests"})
mapfile -t benchmarks < <(if [[ -n ${BENCHMARKS:-} ]]; then realpath -m $BENCHMARKS; else gpu_benchmarks; fi)
begin check

pytest=("$python" -m pytest -c "$repo/pyproject.toml" --rootdir "$repo" -p no:cacheprovider -m "$marker" -q)
fresh=(-p tools.fresh_seed --fresh-seed "$seed")

# Each file has a process of its own, as an error in a kernel makes the process unusable.
run_benchmarks() {
  local path file json
  for path in "$@"; do
    file=$(basename "$path")
    json="$work/report/${file%.py}.json"
    if step "$file" 90 "${pytest[@]}" --benchmark-json="$json" "$path"; then
      [[ -s $json ]] || note "$file" skipped 0 "no benchmark ran"
    fi
  done
}

# All kernels on small inputs under each tool, which must first report a fault of its kind that is planted in a program,
# and nothing in the same program without one.
run_sanitizers() {
  local tool
  ((${#sanitizers[@]} > 0)) || return
  if ! sanitizer_here; then
    note "compute-sanitizer" skipped 0 "$sanitizer_missing"
    return
  fi
  step "planted faults" 40 build_planted || return
  for tool in "${sanitizers[@]}"; do
    step "$tool: planted fault" 40 expect_planted "$tool" && step "$tool: every kernel" 60 every_kernel_under "$tool"
  done
}

if step "build for $target" 120 build pytest,pytest_benchmark; then
  echo "seed $seed"
  step "tests, seed $seed" 150 "${pytest[@]}" "${fresh[@]}" --continue-on-collection-errors \
    --junitxml="$work/report/tests.xml" "${tests[@]}"
  run_benchmarks "${benchmarks[@]:0:2}" # of the kernels, where none are named
  run_sanitizers
  run_benchmarks "${benchmarks[@]:2}"
fi
finish
