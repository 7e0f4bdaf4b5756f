"""`scripts/setup.sh` without installing: how it chooses a Python, and what it refuses."""

import sys

import pytest

COMMANDS = "bash sh cat dirname sed grep head tail".split()

RUNS = f'exec {sys.executable} "$@"'
# What a version manager leaves on the PATH for a Python that isn't selected.
SHIM = "echo 'command not found' >&2; exit 127"
# A Python of another version, as far as the script can tell by running it.
DOES_NOT_FIT = "exit 1"
WRONG = "echo wrong"


@pytest.mark.parametrize(
    ("pythons", "named", "said"),
    [
        (
            {"python3": DOES_NOT_FIT, "python3.13": SHIM, "python3.12": RUNS, "python3.11": WRONG},
            "",
            "",
        ),
        ({"python3": RUNS, "python3.13": WRONG}, "", ""),
        ({"python3": SHIM}, sys.executable, ""),
        ({"python3": RUNS, "other": SHIM}, "other", "PYTHON names 'other'"),
        ({"python3": DOES_NOT_FIT, "python3.12": SHIM}, "", "found no Python 3.10 to 3.13"),
    ],
)
def test_which_python(run_script, path_with, pythons, named, said):
    path = path_with(*COMMANDS, **pythons)
    done = run_script("setup.sh", "--print-python", PATH=path, PYTHON=named)
    expected = (1, "") if said else (0, sys.executable)
    assert (done.returncode, done.stdout.strip()) == expected, done.stderr
    assert said in done.stderr and ("PYTHON" in done.stderr) == bool(said)


def test_options(run_script):
    done = run_script("setup.sh", "--pear")
    assert done.returncode == 1 and "got '--pear'" in done.stderr
    done = run_script("setup.sh", "--help")
    assert done.returncode == 0 and "--peer" in done.stdout
