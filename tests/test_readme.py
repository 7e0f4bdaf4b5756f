"""The Python in the README does what it says, copied from there."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def in_a_folder_with_an_archive(lm_archive, tmp_path, monkeypatch):
    (tmp_path / "output_path").mkdir()
    (tmp_path / "output_path" / "model.tar.gz").symlink_to(lm_archive)
    (tmp_path / "held-out.txt").write_text("the dog ran\nit was happy .\n")
    monkeypatch.chdir(tmp_path)


def test_calling_the_embedder_directly(in_a_folder_with_an_archive, capsys):
    (block,) = [block for block in BLOCKS if "BidirectionalLanguageModelTokenEmbedder" in block]
    names = {}
    exec(block, names)
    assert names["embeddings"].shape == (6, names["lm_embedder"].get_output_dim())
    assert isinstance(names["embeddings"], torch.Tensor)
    assert "Seattle" in capsys.readouterr().out


def test_the_python_api(in_a_folder_with_an_archive, capsys):
    (block,) = [block for block in BLOCKS if "TransformerElmo.from_archive" in block]
    names = {}
    exec(block, names)
    assert [len(rows) for rows in names["vectors"]] == [6, 3]
    assert names["layers"].shape[:2] == (3, 6)
    assert len(names["scores"].tokens) == 8
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_every_block_is_run():
    assert len(BLOCKS) == 2


def test_every_named_file_exists():
    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r"(?:\./)?((?:scripts|training_config)/[\w/.-]+\.\w+)", readme):
        assert (ROOT / name).exists(), name
    tree = readme.partition("## Architecture")[2]
    room = ROOT / "transformer_elmo"
    for names, room_name in re.findall(r"^ {8}([\w., ]+\.py)|^ {6}(\w+)/", tree, re.MULTILINE):
        room = ROOT / "transformer_elmo" / room_name if room_name else room
        for name in re.findall(r"\w+\.py", names):
            assert (room / name).exists(), f"{room.name}/{name}"
