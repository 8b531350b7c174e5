#!/usr/bin/env bash
# Loss similarity of every source lora to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
exec "$PYTHON" get_similarity/get_Loss.py "${WHAT[@]}" "${LORA[@]}" --predict_batch_size 50 \
  --source_ckpt_path checkpoints/lora/full_data --output_dir checkpoints/lora/similarity/Loss "$@"
