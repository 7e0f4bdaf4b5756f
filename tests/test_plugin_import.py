"""The command line imports AllenNLP only where something needs it."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from transformer_elmo import elmo, entry, model_folder, plugin_import
from transformer_elmo.text import corpus

ROOT = Path(entry.__file__).parents[1]

AS_COMMAND = """
import sys
sys.argv[0] = "/somewhere/bin/transformer-elmo"
import transformer_elmo
from transformer_elmo import TransformerElmo
from transformer_elmo.cli import main

def imported():
    return "allennlp" in sys.modules or "spacy" in sys.modules

"""


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", AS_COMMAND + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_without_it(lm_archive, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat\n", encoding="utf-8")
    run(
        """
archive, text, folder, vectors = sys.argv[1:]
for command in (["export", archive, folder], ["score", folder, text], ["score", archive, text],
                ["embed", archive, text, vectors, "--top"],
                ["report", archive, "--output", vectors + ".html"]):
    assert main(command) == 0, command
    assert not imported(), command
assert main(["score", archive + ".no", text]) == 1 and not imported()
""",
        *(lm_archive, tmp_path / "text.txt", tmp_path / "folder", tmp_path / "vectors.npz"),
    )


@pytest.mark.slow
def test_what_needs_it(lm_archive, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat\n", encoding="utf-8")
    said = run(
        """
archive, text, vectors = sys.argv[1:]
override = '{"model.dropout": 0.5}'
assert main(["embed", archive, text, vectors, "--top", "-o", override]) == 0
assert imported()
elmo = TransformerElmo.open(archive, tokenizer="letters_digits")
print(elmo.words("a1"), transformer_elmo.LanguageModel.__name__)

import allennlp.common.params
from allennlp.common import checks
from transformer_elmo import ConfigurationError
assert ConfigurationError is checks.ConfigurationError
assert ConfigurationError is allennlp.common.params.ConfigurationError
""",
        *(lm_archive, tmp_path / "text.txt", tmp_path / "vectors.npz"),
    )
    assert said.splitlines()[-1] == "['a', '1'] LanguageModel"


def test_what_else_loads_it(monkeypatch):
    load = Mock(return_value="which isn't installed")
    monkeypatch.setattr(plugin_import, "load", load)
    for changed, name in ((model_folder, "other_tokenizer"), (corpus, "download")):
        monkeypatch.setattr(changed, name, lambda named: f"{named} of the core")
    monkeypatch.setattr(elmo, "openers", [])
    plugin_import.load_when_needed()
    (opener,) = elmo.openers
    assert opener(__file__) is None and opener("https://here/there") is None
    assert opener("/nowhere") is None
    assert load.call_count == 2
    tokenizer: Any = model_folder.other_tokenizer
    assert tokenizer("spacy") == "spacy of the core"
    assert corpus.download("https://here/there") == "https://here/there of the core"
    assert load.call_count == 4


@pytest.mark.parametrize(
    ("argv", "original", "is_command"),
    [
        (["/venv/bin/transformer-elmo", "score"], ["python", "/venv/bin/transformer-elmo"], True),
        (["-m", "score"], ["python", "-m", "transformer_elmo", "score"], True),
        (["-m"], ["python", "-I", "-m", "transformer_elmo.torchvision_stand_in"], True),
        (["-m"], ["python", "-m", "transformer_elmo_of_mine"], False),
        (["-m"], ["python", "-m", "allennlp", "-m", "transformer_elmo"], False),
        (["-c"], ["python", "-c", "import transformer_elmo"], False),
        (["train.py", "-m", "transformer_elmo"], ["python", "train.py"], False),
        ([""], ["python"], False),
        ([], ["python"], False),
    ],
)
def test_which_process_is_the_command(argv, original, is_command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert entry.is_command() == is_command
