#!/usr/bin/env bash
# Cosine of Logits and Labels of every source prefix to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
exec "$PYTHON" get_similarity/get_Cosine_of_Logits_and_Labels.py "${WHAT[@]}" "${PREFIX[@]}" --predict_batch_size 50 \
  --source_ckpt_path checkpoints/prefix/full_data --output_dir checkpoints/prefix/similarity/Cosine_of_Logits_and_Labels "$@"
