#!/usr/bin/env bash
# Everything that a GPU can tell, in one folder: the tests that need one, then the steps of accelerator.py.
# Usage: scripts/benchmark/accelerator.sh OUT [arguments for accelerator.py]
# A second run goes on with what is missing. PYTHON names a Python that has all packages; without it, .venv is made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?usage: scripts/benchmark/accelerator.sh OUT [arguments for accelerator.py]}
shift
mkdir -p "$out"
if [ -z "${PYTHON:-}" ]; then
    ./scripts/setup.sh --peer --test
    PYTHON=.venv/bin/python
fi
if [ ! -f "$out/tests.done" ]; then
    if "$PYTHON" -m pytest tests/device -q --no-header -p no:cacheprovider >"$out/tests.txt" 2>&1; then
        touch "$out/tests.done"
    fi
    tail -n 40 "$out/tests.txt"
fi
exec "$PYTHON" scripts/benchmark/accelerator.py "$out" "$@"
