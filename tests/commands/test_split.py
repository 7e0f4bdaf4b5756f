"""`transformer-elmo split`: raw text into sentences and words."""

import os
import sys

import pytest

from transformer_elmo.commands import split
from transformer_elmo.text.corpus import parse_line

RAW = """\
Mr. Smith went home (at 5.30 p.m.). "It is late," he
said.  Isn't it?

Привет, мир! 船。
"""


@pytest.fixture
def sentences(command):
    pytest.importorskip("spacy")
    return lambda raw, *options: command("split", "-", *options, stdin=raw.encode()).splitlines()


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


def test_letters_that_spacy_does_not_know(sentences):
    raw = "გამარჯობა. როგორ ხარ?\n元気ですか？はい！\nمرحبا. كيف حالك؟\nआप हैं।\n"
    expected = "გამარჯობა . | როგორ ხარ ? | 元気ですか ？ | はい ！ | مرحبا . | كيف حالك ؟ | आप हैं ।"
    assert sentences(raw) == sentences(raw, "--language", "en") == expected.split(" | ")


def test_json(sentences):
    """Its texts are split; and what is written is never taken for JSON that it isn't."""
    raw = '{"text": "One. Two\\nthree."}\n["New", "York"]\n'
    assert sentences(raw) == ["One .", "Two", "three .", "New York"]
    (line,) = sentences('{ "a": 1 }', "--input-format", "text")
    assert parse_line(line) == ["{", '"', "a", '"', ":", "1", "}"]


@pytest.mark.parametrize("options", [[], ["--wrapped"]])
def test_long_lines_come_in_pieces(sentences, monkeypatch, options):
    monkeypatch.setattr(split, "MOST_CHARACTERS", 50)
    raw = "It rains again . " * 20 + "a" * 120 + "\n" + "so\n" * 60
    lines = sentences(raw, *options)
    assert "".join(lines).replace(" ", "") == "".join(raw.split())
    assert max(map(len, lines)) <= 50 + 3


def test_what_is_missing(command, tmp_path, monkeypatch):
    raw, output, pipe = (tmp_path / name for name in ("raw.txt", "text.txt", "pipe"))
    raw.write_text(RAW)
    output.write_text("mine")
    os.mkfifo(pipe)
    arguments = ["split", raw, "--output-file", output]
    for more, message in (
        ([], "Give --force"),
        (["--force", "--language", "qq"], "no rules for 'qq'"),
        (["--force", "--output-file", pipe], "a device. Name a file."),
    ):
        assert message in command(*arguments, *more, status=1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "spacy", None)
        assert "pip install spacy" in command(*arguments, "--force", status=1)
    assert output.read_text() == "mine" and pipe.is_fifo()
    command(*arguments, "--force")
    assert "Привет , мир !\n" in output.read_text(encoding="utf-8")
