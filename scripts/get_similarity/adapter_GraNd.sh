#!/usr/bin/env bash
# GraNd similarity (--mode dev, block or layer) of every source adapter to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
exec "$PYTHON" get_similarity/get_GraNd.py "${WHAT[@]}" "${ADAPTER[@]}" --predict_batch_size 5 --seed 42 \
  --source_ckpt_path checkpoints/adapter/full_data --output_dir checkpoints/adapter/similarity/GraNd "$@"
