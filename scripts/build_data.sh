#!/usr/bin/env bash
# Build the paper's 51 tasks in CrossFit format into data/crossfit, with the full train files that source deltas need.
# Further flags are passed on (python -m data.build --help), for example
#   bash scripts/build_data.sh --tasks QA_task_list --jobs 4      the 32 question-answering tasks
#   bash scripts/build_data.sh --tasks pemt_task_list             PEMT's 6 sources and 17 targets; --shots_per_class is its k
#   bash scripts/build_data.sh --from_dir DIR                     from files on disk, without network
# The hub and Parquet files need: pip install -r requirements-data.txt
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$PYTHON" -m data.build --full "$@"
