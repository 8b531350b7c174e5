#!/usr/bin/env bash
# Similarity of the mean input lengths of every source to every target: no delta takes part. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity adapter Length "$@"
