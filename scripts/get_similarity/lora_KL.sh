#!/usr/bin/env bash
# KL-divergence of every source lora to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity lora KL --random_tuned_ckpt_path checkpoints/lora/random "$@"
