#!/usr/bin/env bash
# Zero-shot dev score of every source lora on every target (Performance). Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" dev_all_ckpt.py "${WHAT[@]}" "${TUNING[@]}" "${LORA[@]}" \
  --source_ckpt_path checkpoints/lora/full_data --output_dir checkpoints/lora/zero_shot "$@"
