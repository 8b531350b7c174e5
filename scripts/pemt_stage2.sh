#!/usr/bin/env bash
# PEMT, stage 2, on the full data of every target, with the original's settings: gates over the experts of stage 1, target adapter,
# target prompt, layer norms. Sources are all tasks of TASKS but the target, or --experts. Further flags are passed on:
#   MODEL=t5-base DATA_DIR=data/crossfit TASKS=pemt_targets bash scripts/pemt_stage2.sh --experts pemt_sources
#   bash scripts/pemt_stage2.sh --tasks boolq sciq --experts hotpot_qa superglue-record race-high commonsense_qa swag codah
#   bash scripts/pemt_stage2.sh --no-pemt_gate | --sparsity 0 | --no-pemt_prompt | --no-pemt_adapter  --output_dir DIR   ablations
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" tune_hps_singletask.py "${PEMT[@]}" "${PEMT_TARGET[@]}" --full_train --bsz_list 32 \
  --output_dir checkpoints/pemt/stage2 "$@"
