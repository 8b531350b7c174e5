#!/usr/bin/env bash
# Merging without data on generated domains and a tiny encoder: pairs and prefixes, in and out of domain. Minutes on 2 cores.
#
#   bash scripts/fusion/quickstart.sh --seeds 1 2 --heads same different
SETS_UP=1
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
exec "$PYTHON" -m pewe.fusion.experiment --experiment scripts/fusion/quickstart.toml "$@"
