#!/usr/bin/env bash
# GraNd similarity (--mode dev, block or layer) of every source lora to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
exec "$PYTHON" get_similarity/get_GraNd.py "${WHAT[@]}" "${LORA[@]}" --predict_batch_size 5 --seed 42 \
  --source_ckpt_path checkpoints/lora/full_data --output_dir checkpoints/lora/similarity/GraNd "$@"
