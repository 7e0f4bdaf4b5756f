#!/usr/bin/env bash
# Everything that a GPU can tell, in one folder, with tables in OUT/report.md: the tests that need a GPU, training,
# embedding, exact evaluation, profiles, loss curves, each beside allennlp-models where it can do it.
# Usage: scripts/benchmark/accelerator.sh OUT [--seconds 1200] [more arguments for accelerator.py: see its --help]
# A second run goes on with what is missing. On a bare machine with a Python 3.10 to 3.13 and a network, .venv is made
# first, within those seconds; with PYTHON set to a Python that has everything, nothing is installed.
set -euo pipefail
begun=$(date +%s)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?usage: scripts/benchmark/accelerator.sh OUT [--seconds 1200] [arguments for accelerator.py]}
shift
if [ -z "${PYTHON:-}" ]; then
    ./scripts/setup.sh --peer
    PYTHON=.venv/bin/python
fi
exec "$PYTHON" scripts/benchmark/accelerator.py "$out" --begun "$begun" "$@"
