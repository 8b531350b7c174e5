#!/usr/bin/env bash
# A benchmark of benchmarks/ with the settings that all scripts have: bash scripts/benchmark.sh scoring --measures Loss
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark="${1:?which one? See benchmarks/README.md}"
exec "$PYTHON" -m "benchmarks.$benchmark" "${@:2}"
