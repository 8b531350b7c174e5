#!/usr/bin/env bash
# EL2N similarity of every source prefix to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
exec "$PYTHON" get_similarity/get_EL2N.py "${WHAT[@]}" "${PREFIX[@]}" --predict_batch_size 50 \
  --source_ckpt_path checkpoints/prefix/full_data --output_dir checkpoints/prefix/similarity/EL2N "$@"
