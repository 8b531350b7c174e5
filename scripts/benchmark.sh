#!/usr/bin/env bash
# A benchmark of benchmarks/ with the settings that all scripts have; benchmarks/README.md says what each measures.
#   bash scripts/benchmark.sh NAME [FLAGS]            bash scripts/benchmark.sh scoring --measures Loss
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
case "${1:-}" in
  -* | "")
    echo "NAME is one of: $(grep -l __main__ benchmarks/*.py | sed 's|benchmarks/||; s|\.py$||' | paste -sd ' ')"
    [ -n "$help" ] && exit 0 || exit 2
    ;;
esac
exec "$PYTHON" -m "benchmarks.$1" "${@:2}"
