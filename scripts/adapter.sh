#!/usr/bin/env bash
# Tune adapters on every task with the paper's settings and test the best step. Further flags are passed on, for example
#   bash scripts/adapter.sh --tasks boolq sciq --learning_rate_list 5e-4 1e-3
#   bash scripts/adapter.sh --full_train --output_dir checkpoints/adapter/full_data           the source deltas
#   bash scripts/adapter.sh --train_checkpoint checkpoints/adapter/Loss --output_dir checkpoints/adapter/from_Loss
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
tune adapter "$@"
