#!/usr/bin/env bash
# Times short training runs on CIFAR-10 on a machine with a GPU, without a network: PGD-10 adversarial training with
# MSGD and ENGM, with batch norm, from CUDA graphs and without, and with group norm, and the single-step method ATAS; in
# bf16. From CUDA graphs ENGM is to take at most 1.08 times as long as MSGD. A rehearsal has no CUDA graphs.
#   bench/gpu_train.sh DATA [EPOCHS] [OPTIONS of pyengm train for every run, such as --precision float32]
# DATA is a folder or an archive (see data_options in tools/gpu_lib.sh, which also documents the variables). EPOCHS: 3.
# Limits in seconds: RUN_LIMIT for one run (150), LIMIT for all (570). It leaves gpu_train_<gpu>.json and .md in $OUT.
# Status: 0; 1 where a run failed or was cut short; 2 without a GPU or DATA.
set -uo pipefail
source "$(dirname "$0")/tools/gpu_lib.sh"
(($# > 0)) || refuse "usage: gpu_train.sh DATA [EPOCHS] [OPTIONS]"
data=$(realpath -m "$1")
shift
epochs=3
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  epochs=$1
  shift
fi
deadline=${LIMIT:-570}
begin train
options=$(data_options "$data") || exit
mapfile -t options <<<"$options"
options+=(--epochs "$epochs" --select-on none --precision bf16)

# train NAME OPTIONS...
train() {
  step "$1" "${RUN_LIMIT:-150}" "$python" -m tools.timed_training "$work/report/train_$1.json" \
    "${options[@]}" "${@:2}"
}

# pgd_at NORM SUFFIX OPTIONS...: ResNet-18 with this norm layer and with both optimisers; a suffix for the names.
pgd_at() {
  local optimizer
  for optimizer in msgd engm; do
    train "pgd_at_${optimizer}_$1$2" --method pgd_at --model resnet18 --norm-layer "$1" --optimizer $optimizer "${@:3}"
  done
}

graphs=(--cuda-graphs)
((rehearse)) && graphs=()
if step "build for $target" 120 build torchvision; then
  pgd_at bn _graphs "${graphs[@]}" "$@"
  pgd_at bn "" "$@"
  pgd_at gn "" "$@"
  train atas_msgd_bn --method atas --norm-layer bn --optimizer msgd "$@"
fi
finish
