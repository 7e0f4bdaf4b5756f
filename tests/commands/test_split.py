"""`transformer-elmo split`: raw text into sentences and words."""

import io
import sys

import pytest

from transformer_elmo.commands import split
from transformer_elmo.commands.cli import main

RAW = """\
Mr. Smith went home (at 5.30 p.m.). "It is late," he
said.  Isn't it?

Привет, мир! 船。
"""


@pytest.fixture
def sentences(monkeypatch, capsys):
    pytest.importorskip("spacy")

    def run(raw, *options):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw.encode())))
        assert main(["split", "-", *options]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_languages(sentences):
    assert sentences(RAW, "--language", "en", "--wrapped") == [
        "Mr. Smith went home ( at 5.30 p.m. ) .",
        '" It is late , " he said .',
        "Is n't it ?",
        "Привет , мир !",
        "船 。",
    ]
    by_line = sentences(RAW)
    assert by_line[:2] == ["Mr .", "Smith went home ( at 5.30 p.m . ) ."]
    assert '" It is late , " he' in by_line and "said ." in by_line


@pytest.mark.parametrize("options", [[], ["--wrapped"]])
def test_long_lines_come_in_pieces(sentences, monkeypatch, options):
    monkeypatch.setattr(split, "MOST_CHARACTERS", 50)
    raw = "It rains again . " * 20 + "a" * 120 + "\n" + "so\n" * 60
    lines = sentences(raw, *options)
    assert "".join(lines).replace(" ", "") == "".join(raw.split())
    assert max(map(len, lines)) <= 50 + 3


def test_what_is_missing(tmp_path, monkeypatch, capsys):
    raw, output = tmp_path / "raw.txt", tmp_path / "text.txt"
    raw.write_text(RAW)
    output.write_text("mine")
    arguments = ["split", str(raw), "--output-file", str(output), "--force"]
    assert main([*arguments, "--language", "qq"]) == 1
    error = capsys.readouterr().err
    assert "no rules for 'qq'" in error and "xx" in error and error.count("\n") == 1
    assert main(arguments[:-1]) == 1 and "Give --force" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "spacy", None)
        assert main(arguments) == 1 and "pip install spacy" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert main(arguments) == 0 and "Привет , мир !\n" in output.read_text(encoding="utf-8")
