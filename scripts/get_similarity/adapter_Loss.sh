#!/usr/bin/env bash
# Loss similarity of every source adapter to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
exec "$PYTHON" get_similarity/get_Loss.py "${WHAT[@]}" "${ADAPTER[@]}" --predict_batch_size 50 \
  --source_ckpt_path checkpoints/adapter/full_data --output_dir checkpoints/adapter/similarity/Loss "$@"
