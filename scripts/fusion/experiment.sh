#!/usr/bin/env bash
# The experiment of a TOML file; further flags override it. A stopped run continues, models are trained once and reused.
#
#   bash scripts/fusion/experiment.sh scripts/fusion/emotion.toml
#   bash scripts/fusion/experiment.sh my.toml --seeds 1 2 --filter_model market school --alpha 0.1
SETS_UP=1
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
case "${1:-}" in -*) ;; *) set -- --experiment "$@" ;; esac
exec "$PYTHON" -m pewe.fusion.experiment "$@"
