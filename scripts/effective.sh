#!/usr/bin/env bash
# How the effective number of sources changes Loss: 1 (Best_source), 2, 3, 5, all (Average), and Random beside them. Shares
# sources and similarities with scripts/reproduce.sh, which these flags are of; resumes as it does.
# --dry_run says how long it takes on this machine.
#
#   bash scripts/effective.sh --suite mini --delta adapter --seeds 42
SETS_UP=1
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" -m pewe.grid --init Random Best_source Loss_2 Loss_3 Loss_5 Average "$@"
