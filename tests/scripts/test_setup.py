"""`scripts/setup.sh` without installing: how it chooses a Python, and what it refuses."""

import sys
from pathlib import Path

import pytest

COMMANDS = "bash sh cat dirname sed grep head tail".split()

RUNS = f'exec {sys.executable} "$@"'
# What a version manager leaves on the PATH for a Python that isn't selected.
SHIM = "echo 'command not found' >&2; exit 127"
# A Python of another version, as far as the script can tell by running it.
DOES_NOT_FIT = "exit 1"


@pytest.fixture
def print_python(run_script, path_with):
    def run(**variables):
        pythons = variables.pop("pythons", {})
        return run_script(
            "setup.sh",
            "--print-python",
            PATH=path_with(*COMMANDS, **pythons),
            **variables,
        )

    return run


def test_first_python_that_runs_is_chosen(print_python, tmp_path):
    chosen = tmp_path / "chosen"
    pythons = {
        "python3": DOES_NOT_FIT,
        "python3.13": SHIM,
        "python3.12": f": >{chosen}; {RUNS}",
        "python3.11": "echo wrong",
    }
    done = print_python(pythons=pythons)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).exists()
    assert chosen.exists()


def test_python3_comes_first(print_python):
    done = print_python(pythons={"python3": RUNS, "python3.13": "echo wrong"})
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable)


def test_no_python_that_fits(print_python):
    done = print_python(pythons={"python3": DOES_NOT_FIT, "python3.12": SHIM})
    assert done.returncode == 1
    assert "found no Python 3.10 to 3.13" in done.stderr
    assert "PYTHON=" in done.stderr


def test_python_by_name(print_python):
    done = print_python(pythons={"python3": SHIM}, PYTHON=sys.executable)
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable)


def test_python_by_name_that_does_not_run(print_python):
    done = print_python(pythons={"python3": RUNS, "other": SHIM}, PYTHON="other")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "PYTHON names 'other'" in done.stderr


def test_unknown_option(run_script):
    done = run_script("setup.sh", "--pear")
    assert done.returncode == 1
    assert "got '--pear'" in done.stderr


def test_help_names_every_variable(run_script):
    done = run_script("setup.sh", "--help")
    assert done.returncode == 0
    for name in ("PYTHON", "TORCH_VERSION", "TORCH_INDEX_URL", "USE_SYSTEM_TORCH", "--peer"):
        assert name in done.stdout
