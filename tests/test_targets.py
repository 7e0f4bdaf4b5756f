"""What can't be written is found out before the work, and told in one message."""

import sys
from itertools import product

import pytest
from allennlp.commands import main as allennlp

from transformer_elmo.commands.cli import main as transformer_elmo
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.plugin.compat.shown_errors import message_of

# Nobody, root included, can make a file or a folder in the first.
TARGETS = ["/proc/results", "a-file/results", "no-folder/results"]
OF_FILES = [
    "allennlp evaluate LM text.txt --output-file OUT.json",
    "allennlp evaluate LM text.txt --predictions-output-file OUT.json",
    "allennlp predict LM text.txt --output-file OUT.json",
    "allennlp embed LM text.txt OUT.npy --top",
]
OF_FOLDERS = [
    "allennlp train config.json -s OUT",
    "allennlp train config.json -s OUT --recover",
    "transformer-elmo export LM OUT",
]


@pytest.mark.parametrize(
    "command, target", [*product(OF_FILES, TARGETS), *product(OF_FOLDERS, TARGETS[:2])]
)
def test_one_message(command, target, lm_archive, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    (tmp_path / "text.txt").write_text("the cat\n")
    (tmp_path / "config.json").write_text('{"model": {}, "trainer": {}}')
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)
    monkeypatch.setattr(TransformerElmo, "open", None)
    words = command.replace("OUT", target).replace("LM", str(lm_archive)).split()
    if words[0] == "allennlp":
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises((Exception, SystemExit)) as caught:
            allennlp()
        ended = isinstance(caught.value, SystemExit)
        said = str(caught.value) if ended else message_of(caught.value)
    else:
        assert transformer_elmo(words[1:]) == 1
        said = capsys.readouterr().err.strip()
    assert said is not None and "results" in said and "\n" not in said
