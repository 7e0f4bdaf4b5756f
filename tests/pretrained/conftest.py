"""What is saved once, and how it is carried away."""

import shutil
from pathlib import Path

import pytest

from transformer_elmo import TransformerElmo


@pytest.fixture(scope="session")
def saved(lm_archive, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "folder"
    TransformerElmo.open(lm_archive).save(path)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    """A model folder."""
    return shutil.copytree(saved, tmp_path / "folder")


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Moves files or folders away, and deletes all else but texts to read, which come along."""

    def move(*names):
        away, elsewhere = tmp_path / "away", tmp_path / "elsewhere"
        away.mkdir()
        moved = [Path(shutil.move(tmp_path / name, away)) for name in names]
        elsewhere.mkdir()
        for path in tmp_path.iterdir():
            if path.suffix == ".txt":
                path.rename(elsewhere / path.name)
            elif path.is_file():
                path.unlink()
            elif path not in (away, elsewhere):
                shutil.rmtree(path)
        monkeypatch.chdir(elsewhere)
        return moved[0] if len(moved) == 1 else moved

    return move
