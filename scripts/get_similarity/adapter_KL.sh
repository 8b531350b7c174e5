#!/usr/bin/env bash
# KL-divergence of every source adapter to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity adapter KL --random_tuned_ckpt_path checkpoints/adapter/random "$@"
