#!/usr/bin/env bash
# Tune every source adapter a few steps on every target (Euclidean, Performance). Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" tune_all_ckpt.py "${WHAT[@]}" "${TUNING[@]}" "${ADAPTER[@]}" --train_iters 200 \
  --source_ckpt_path checkpoints/adapter/full_data --output_dir checkpoints/adapter/tuned_all "$@"
