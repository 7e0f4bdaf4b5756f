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
    "pythons, named",
    [
        ({"python3": DOES_NOT_FIT, "python3.13": SHIM, "python3.12": RUNS}, ""),
        ({"python3": RUNS, "python3.13": WRONG}, ""),
        ({"python3": SHIM}, sys.executable),
    ],
)
def test_which_python(run_script, path_with, pythons, named):
    path = path_with(*COMMANDS, **pythons)
    printed = run_script("setup.sh", "--print-python", PATH=path, PYTHON=named)
    assert printed.strip() == sys.executable


@pytest.mark.parametrize(
    "pythons, named, message",
    [
        ({"python3": RUNS, "other": SHIM}, "other", "PYTHON names 'other'"),
        ({"python3": DOES_NOT_FIT, "python3.12": SHIM}, "", "found no Python 3.10 to 3.13"),
    ],
)
def test_no_python_that_will_do(run_script, path_with, pythons, named, message):
    path = path_with(*COMMANDS, **pythons)
    assert message in run_script("setup.sh", "--print-python", status=1, PATH=path, PYTHON=named)


def test_an_option_that_there_is_not(run_script):
    assert "got '--pear'" in run_script("setup.sh", "--pear", status=1)
