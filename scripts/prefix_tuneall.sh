#!/usr/bin/env bash
# Tune every source prefix a few steps on every target (Euclidean, Performance). Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" tune_all_ckpt.py "${WHAT[@]}" "${TUNING[@]}" "${PREFIX[@]}" --train_iters 200 \
  --source_ckpt_path checkpoints/prefix/full_data --output_dir checkpoints/prefix/tuned_all "$@"
