#!/usr/bin/env bash
# The main job on a real backbone and real tasks: results/flan_t5_small was made with
#
#   bash scripts/flan_t5_small.sh MODEL_FOLDER DATA_FOLDER
#
# MODEL_FOLDER holds a Flan-T5-small, DATA_FOLDER the six tasks in CrossFit format with their full training files.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source scripts/flow.sh
[ $# -eq 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }

CKPT=checkpoints/flan_t5_small OUT=results/flan_t5_small
WHAT=(--model "$1" --task_dir "$2")
PICK=(--tasks commonsense_qa openbookqa qasc numer_sense lama-conceptnet lama-google_re)
COMMON=("${WHAT[@]}" --device cpu --max_input_length 128 --max_output_length 16)
SCORING=("${COMMON[@]}")
SOURCE=("${COMMON[@]}" --predict_batch_size 100 --learning_rate_list 3e-3 --train_iters "${SOURCE_ITERS:-60}" --valid_interval 60)
TARGET=("${COMMON[@]}" --predict_batch_size 100 --learning_rate_list 3e-3 --train_iters "${TARGET_ITERS:-24}" --valid_interval 12)
flow
cat "$OUT/table.txt"
