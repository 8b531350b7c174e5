#!/usr/bin/env bash
# Tune every source lora a few steps on every target (Euclidean, Performance). Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" tune_all_ckpt.py "${WHAT[@]}" "${TUNING[@]}" "${LORA[@]}" --train_iters 200 \
  --source_ckpt_path checkpoints/lora/full_data --output_dir checkpoints/lora/tuned_all "$@"
