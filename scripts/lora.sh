#!/usr/bin/env bash
# Tune lora on every task with the paper's settings and test the best step. Further flags are passed on, for example
#   bash scripts/lora.sh --tasks boolq sciq --learning_rate_list 5e-4 1e-3
#   bash scripts/lora.sh --full_train --output_dir checkpoints/lora/full_data           the source deltas
#   bash scripts/lora.sh --train_checkpoint checkpoints/lora/Loss --output_dir checkpoints/lora/from_Loss
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
tune lora "$@"
