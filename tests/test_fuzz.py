"""Properties of input of every kind: it ends well or in one clear message. `scripts/fuzz.py` goes
on for as long as one likes."""

import importlib.util
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]


def _loaded():
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "scripts" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ = _loaded()
CASES, Made, try_case = FUZZ.CASES, FUZZ.Made, FUZZ.try_case

# As many as some seconds have room for.
EXAMPLES = {
    "corpus": 400,
    "archive": 50,
    "folder": 70,
    "config": 30,
    "overrides": 40,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return tmp_path_factory.mktemp("space")


@pytest.mark.parametrize("kind", sorted(CASES))
def test_input_of_every_kind(kind, made, space, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    @settings(
        max_examples=EXAMPLES[kind],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 10**9))
    def ends_as_it_should(seed):
        assert try_case(kind, seed, made, space) in ("well", "message")
        assert {path.name for path in space.iterdir()} == {"case"}
        # What was unpacked is gone, too; torch's compiler has a folder for itself.
        assert {path.name for path in tmp_path.iterdir()} <= {f"torchinductor_{getuser()}"}

    ends_as_it_should()
