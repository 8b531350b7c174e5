#!/usr/bin/env bash
# Tune every source prefix a few steps on every target (Euclidean, Performance). Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
tune_all prefix "$@"
