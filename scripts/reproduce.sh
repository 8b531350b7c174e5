#!/usr/bin/env bash
# The paper's tables: every row (init) for adapter, LoRA and prefix, with statistics and a report. Resumes; computes only
# what is missing. Without arguments: the mini gym, all rows, three deltas, three seeds (2.2 hours on one or two cores).
#
#   bash scripts/reproduce.sh --suite mini --delta adapter --seeds 42 --init Random Average Loss
#   bash scripts/reproduce.sh --suite qa32 --dry_run
SETS_UP=1
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" -m pewe.grid "$@"
