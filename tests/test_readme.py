"""The Python in the README does what it says, copied from there."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from allennlp.commands import main

from tests.small_lm import DIM
from transformer_elmo import TransformerElmo

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def in_a_folder_with_an_archive(lm_archive, tmp_path, monkeypatch):
    (tmp_path / "output_path").mkdir()
    (tmp_path / "output_path" / "model.tar.gz").symlink_to(lm_archive)
    (tmp_path / "held-out.txt").write_text("the dog ran\nit was happy .\n")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def in_a_folder_with_a_model_folder(in_a_folder_with_an_archive):
    TransformerElmo.open("output_path/model.tar.gz").save("elmo")
    shutil.rmtree("output_path")


def block_with(*parts):
    (block,) = [block for block in BLOCKS if all(part in block for part in parts)]
    return block


def test_the_beginning(in_a_folder_with_a_model_folder, capsys):
    exec(block_with('TransformerElmo.open("elmo")', "one row for each word"), {})
    assert capsys.readouterr().out == f"(6, {2 * DIM})\n"


def test_calling_the_embedder_directly(in_a_folder_with_an_archive, capsys):
    names = {}
    exec(block_with("BidirectionalLanguageModelTokenEmbedder"), names)
    assert names["embeddings"].shape == (6, names["lm_embedder"].get_output_dim())
    assert isinstance(names["embeddings"], torch.Tensor)
    assert "Seattle" in capsys.readouterr().out


def test_the_python_api(in_a_folder_with_an_archive, capsys):
    names = {}
    exec(block_with("elmo.perplexity("), names)
    assert [len(rows) for rows in names["vectors"]] == [6, 3]
    assert names["layers"].shape[:2] == (3, 6)
    assert len(names["scores"].tokens) == 8
    assert len(capsys.readouterr().out.splitlines()) == 4
    exec(block_with("elmo.nearest("), names)
    assert "raining" in capsys.readouterr().out


@pytest.mark.parametrize(
    "library, printed", [("flair", "torch.Size"), ("spacy", "."), ("onnx", f"(7, {2 * DIM})")]
)
def test_other_libraries(in_a_folder_with_a_model_folder, capsys, library, printed):
    for name in {"onnx": ["onnx", "onnxscript", "onnxruntime"]}.get(library, [library]):
        pytest.importorskip(name)
    if library == "spacy":
        block = block_with("import spacy")
    else:
        block = block_with(f"transformer_elmo.integrations.{library}")
    exec(block, {})
    assert printed in capsys.readouterr().out


def test_the_commands_and_what_they_write(in_a_folder_with_an_archive, monkeypatch, capsys):
    """`allennlp`, but for its search for plugins."""
    readme = (ROOT / "README.md").read_text()
    Path("text.txt").write_text("the tree\n\nit was unheard-of\n")
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)
    for name in ("predict", "embed"):
        (command,) = re.findall(rf"^    (allennlp {name} output_path.*)$", readme, re.MULTILINE)
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        main()
    capsys.readouterr()
    exec(block_with("scores.jsonl"), {})
    (expected,) = re.findall(r"this prints\n\n```\n(.*?)```", readme, re.DOTALL)
    assert capsys.readouterr().out == expected.replace("256)", f"{2 * DIM})")


def test_every_block_is_run():
    assert len(BLOCKS) == 8


def test_every_named_file_exists():
    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r"(?:\./)?((?:scripts|training_config)/[\w/.-]+\.\w+)", readme):
        assert (ROOT / name).exists(), name
