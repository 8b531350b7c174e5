#!/usr/bin/env bash
# Environment, linter, tests. Arguments go to pytest: bash scripts/test.sh -m slow, bash scripts/test.sh tests/test_data.py
SETS_UP=1 FLAGS=none
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# Two processes, one thread each: two threads for each of them would wait for each other. A file's tests share what they make.
OMP_NUM_THREADS=1 exec "$PYTHON" -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile "$@"
