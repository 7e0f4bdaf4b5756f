"""The commands of the README's walk-through of an adaptation, copied from there, on little text."""

import re
import shlex
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import pytest
from allennlp.commands import main as allennlp

from tests.pretrained.test_standing_alone import TAGGED
from tests.small_lm import DIM
from transformer_elmo import TransformerElmo
from transformer_elmo.commands.cli import main as transformer_elmo

README = Path(__file__).parent.parent / "README.md"
NEW_TEXT = "the owl flew over the barn .\nan owl and a cat sat in the barn .\nan owl ran .\n"


def commands():
    """The lines of the section that are meant to be typed."""
    (section,) = re.findall(
        r"^## Adapting a model to a new domain\n(.*?)^## ", README.read_text(), re.S | re.M
    )
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def run(command, monkeypatch):
    words = shlex.split(command)
    if words[0] == "export":
        for name, value in (word.split("=", 1) for word in words[1:]):
            monkeypatch.setenv(name, value)
        return
    with ExitStack() as stack:
        if ">" in words:
            *words, _, name = words
            stack.enter_context(redirect_stdout(stack.enter_context(open(name, "w"))))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("allennlp.commands.import_plugins", lambda: None)
        patch.setattr(sys, "argv", words)
        if words[0] == "allennlp":
            allennlp()
        else:
            assert words[0] == "transformer-elmo" and transformer_elmo(words[1:]) == 0


def test_the_walk_through(tmp_path, monkeypatch, lm_archive, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.tar.gz").symlink_to(lm_archive)
    Path("new.txt").write_text(NEW_TEXT * 5)
    Path("new-held-out.txt").write_text(NEW_TEXT)
    for name in ("tagged.txt", "tagged-held-out.txt"):
        Path(name).write_text(TAGGED)
    done = commands()
    for command in done:
        # Of the model that is here.
        run(
            command.replace('encoder.input_size": 512', f'encoder.input_size": {2 * DIM}'),
            monkeypatch,
        )
    before = TransformerElmo.open("model/model.tar.gz")
    elmo = TransformerElmo.open("adapted/model.tar.gz")
    assert "owl" in elmo.vocab and "owl" not in before.vocab
    printed = capsys.readouterr().out
    if any("compare" in command for command in done):
        assert "B's perplexity is 0." in printed
    if any("tagger" in command for command in done):
        assert Path("tagger/model.tar.gz").exists()
