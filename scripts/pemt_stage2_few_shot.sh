#!/usr/bin/env bash
# PEMT, stage 2, on the few-shot lines of every target: as pemt_stage2.sh, with a batch of 8; the original's batch is k.
# Further flags are passed on; what the mini gym needs:
#   bash scripts/pemt_stage2_few_shot.sh --train_epochs 10 --learning_rate_list 3e-3
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" tune_hps_singletask.py "${PEMT[@]}" "${PEMT_TARGET[@]}" --bsz_list 8 \
  --output_dir checkpoints/pemt/stage2_few_shot "$@"
