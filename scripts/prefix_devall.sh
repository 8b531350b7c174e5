#!/usr/bin/env bash
# Zero-shot dev score of every source prefix on every target (Performance). Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" dev_all_ckpt.py "${WHAT[@]}" "${TUNING[@]}" "${PREFIX[@]}" \
  --source_ckpt_path checkpoints/prefix/full_data --output_dir checkpoints/prefix/zero_shot "$@"
