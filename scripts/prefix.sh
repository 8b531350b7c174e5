#!/usr/bin/env bash
# Tune prefix on every task with the paper's settings and test the best step. Further flags are passed on, for example
#   bash scripts/prefix.sh --tasks boolq sciq --learning_rate_list 5e-4 1e-3
#   bash scripts/prefix.sh --full_train --output_dir checkpoints/prefix/full_data           the source deltas
#   bash scripts/prefix.sh --train_checkpoint checkpoints/prefix/Loss --output_dir checkpoints/prefix/from_Loss
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
tune prefix "$@"
