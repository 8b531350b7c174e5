#!/usr/bin/env bash
# PEMT, stage 1: an expert and a prompt for every source task on its full data, with the original's settings. The original's
# sources are mnli, qnli, qqp, sst2, squad and superglue-record, here pemt_sources of task_list.py, which scripts/build_data.sh
# --tasks pemt_task_list builds; every task of TASKS is made a source. Further flags are passed on:
#   MODEL=t5-base DATA_DIR=data/crossfit TASKS=pemt_sources bash scripts/pemt_stage1.sh
#   MODEL=google/t5-base-lm-adapt DATA_DIR=data/crossfit TASKS=QA_task_list bash scripts/pemt_stage1.sh
#   bash scripts/pemt_stage1.sh --train_epochs 0 --train_iters 450 --learning_rate_list 3e-3 --warmup_steps 45 --bsz_list 16
# The last is what the mini gym needs: it has 80 updates of 128 lines, fewer than the warm-up.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" tune_hps_singletask.py "${PEMT[@]}" --tune_method pemt_source --full_train --learning_rate_list 5e-4 \
  --warmup_steps 500 --train_epochs 5 --bsz_list 128 --micro_batch_size 32 --predict_batch_size 256 --seed 42 \
  --output_dir checkpoints/pemt/stage1 "$@"
