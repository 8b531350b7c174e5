#!/usr/bin/env bash
# Environment, linter, tests. Arguments go to pytest: bash scripts/test.sh -m slow, bash scripts/test.sh tests/test_data.py
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "${PYTHON:-}" ] || bash scripts/setup_env.sh
source scripts/common.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# Two processes, one thread each: two threads for each of them would wait for each other. A file's tests share what they make.
OMP_NUM_THREADS=1 exec "$PYTHON" -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile "$@"
