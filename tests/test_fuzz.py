"""Properties of input of every kind: it ends well or in one clear message. `scripts/fuzz.py` goes
on for as long as one likes."""

import runpy
from getpass import getuser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = runpy.run_path(str(Path(__file__).resolve().parents[1] / "scripts" / "fuzz.py"))

# As many as some seconds have room for.
EXAMPLES = {"corpus": 400, "archive": 50, "folder": 70, "config": 30, "overrides": 40}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return FUZZ["Made"](tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("kind", FUZZ["CASES"])
def test_input_of_every_kind(kind, made, tmp_path, monkeypatch):
    space, temporary = tmp_path / "space", tmp_path / "temporary"
    space.mkdir()
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    @settings(
        max_examples=EXAMPLES[kind],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 10**9))
    def ends_as_it_should(seed):
        assert FUZZ["try_case"](kind, seed, made, space) in ("well", "message")
        assert {path.name for path in space.iterdir()} == {"case"}
        # What was unpacked is gone, too; torch's compiler has a folder for itself.
        assert {path.name for path in temporary.iterdir()} <= {f"torchinductor_{getuser()}"}

    ends_as_it_should()
