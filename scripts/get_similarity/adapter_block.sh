#!/usr/bin/env bash
# Hidden-state cosine by block of every source adapter to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity adapter block --random_tuned_ckpt_path checkpoints/adapter/random "$@"
