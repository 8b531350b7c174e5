#!/usr/bin/env bash
# Hidden-state cosine by block of every source prefix to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity prefix block --random_tuned_ckpt_path checkpoints/prefix/random "$@"
