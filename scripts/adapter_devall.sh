#!/usr/bin/env bash
# Zero-shot dev score of every source adapter on every target (Performance). Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" dev_all_ckpt.py "${WHAT[@]}" "${TUNING[@]}" "${ADAPTER[@]}" \
  --source_ckpt_path checkpoints/adapter/full_data --output_dir checkpoints/adapter/zero_shot "$@"
