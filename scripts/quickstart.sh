#!/usr/bin/env bash
# The main job on the embedded default, CPU only: source adapters of the mini gym, Loss similarity, ensembles, few-shot
# tuning from three inits, a table and a report. Every step resumes; a second call prints the table.
#
#   bash scripts/quickstart.sh                                        all tasks of the mini gym
#   bash scripts/quickstart.sh --tasks mini_read_towns mini_read_people ...   some tasks
SETS_UP=1
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" -m pewe.grid --suite mini --name quickstart --delta adapter --seeds 42 --init Random Average Loss "$@"
