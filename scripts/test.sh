#!/usr/bin/env bash
# Sets up .venv with everything the tests use, then lints, checks types and runs the tests.
# Usage: ./scripts/test.sh [arguments for pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
    -h|--help)
        echo "Usage: ./scripts/test.sh [arguments for pytest, such as tests/text -k corpus, or -m 'not slow']"
        exit 0
        ;;
esac

./scripts/setup.sh --peer --test

# A thread each for the tests that run side by side, instead of every core for every one of them.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TOKENIZERS_PARALLELISM=false
processes=${TEST_PROCESSES:-2}

echo "test: ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Beside the tests, some of which wait for each other.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
.venv/bin/mypy transformer_elmo/ tests/ scripts/ >"$types" 2>&1 &
mypy=$!
echo "test: pytest"
status=0
# In the order that tests/conftest.py puts the files in.
.venv/bin/python -m pytest --numprocesses "$processes" --dist loadfile --no-loadscope-reorder "$@" </dev/null || status=$?
echo "test: mypy"
wait "$mypy" || status=$?
cat "$types"
exit "$status"
