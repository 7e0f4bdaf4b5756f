"""The quickstart's text and its report, in several languages; its training is tested elsewhere."""

import itertools
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.small_lm import random_sentences

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CHINESE = ["".join(words) for words in itertools.permutations("我喜欢北京", 4)]


@pytest.fixture
def corpus(script_module):
    return script_module("quickstart_corpus")


@pytest.fixture
def prepare(corpus, tmp_path, monkeypatch):
    def run(lines):
        path = tmp_path / "text"
        path.write_bytes(lines if isinstance(lines, bytes) else "\n".join(lines).encode())
        monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "data"), "--corpus", str(path)])
        corpus.main()
        return tmp_path / "data"

    return run


def test_words(corpus):
    found = corpus.words("Don't stop, well-known friend.")
    assert found == ["Don't", "stop", ",", "well-known", "friend", "."]
    # Devanagari, whose vowel signs are no letters to Python.
    assert corpus.words("हिन्दी है") == ["हिन्दी", "है"]


def test_text_without_spaces_is_split_into_characters(corpus, prepare):
    data = prepare([f"{line}。" for line in CHINESE])
    (line, *_) = (data / "heldout.txt").read_text(encoding="utf-8").splitlines()
    assert all(len(word) == 1 for word in line.split()) and line.endswith(" 。")
    assert corpus.characters("我用Python 3。") == ["我", "用", "Python", "3", "。"]
    # Words that are split already stay.
    data = prepare([" ".join(f"{character}文" for character in line) for line in CHINESE])
    assert "京文" in (data / "vocabulary" / "tokens.txt").read_text(encoding="utf-8").split()


def test_no_more_than_a_quickstart_takes(corpus, prepare, capsys, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_WORDS", 1000)
    data = prepare([f"number {n} comes after {n - 1} ." for n in range(1, 100_000)])
    assert "The first 1002 words" in capsys.readouterr().out
    text = "".join(shard.read_text() for shard in (data / "train").iterdir())
    assert len(text.split()) < 1000


@pytest.mark.parametrize(
    "text, expected",
    [
        ([f"only {n} lines here" for n in range(30)], "at least 100 different sentences.*found 30"),
        (b"caf\xe9 is open\n" * 200, "line 1: byte 4 of the line .0xe9. is not UTF-8"),
    ],
)
def test_text_that_will_not_do_is_told_in_one_line(prepare, tmp_path, text, expected):
    with pytest.raises(SystemExit, match=f"^quickstart: .*{expected}[^\n]*$"):
        prepare(text)
    assert not (tmp_path / "data").exists()


def test_the_sentence_embedded_is_of_the_language(script_module, prepare):
    report = script_module("quickstart_report")
    data = prepare(random_sentences(400))
    assert report.sentence_to_embed(data) in (data / "heldout.txt").read_text().splitlines()
    known = [f"{report.SENTENCE} {n}" for n in range(200)]
    assert report.sentence_to_embed(prepare(known)) == report.SENTENCE


def test_folders_of_others_are_not_replaced(run_script, tmp_path):
    """Found out before anything is written, with a set-up that does nothing."""
    root, mine = tmp_path / "root", tmp_path / "mine"
    for folder in (root / "scripts", root / ".venv" / "bin", mine / "data"):
        folder.mkdir(parents=True)
    (root / ".venv" / "bin" / "activate").touch()
    (root / "scripts" / "setup.sh").touch(mode=0o755)
    shutil.copy(SCRIPTS / "quickstart.sh", root / "scripts")
    (mine / "data" / "thesis").write_text("years of work")
    script = os.path.relpath(root / "scripts" / "quickstart.sh", SCRIPTS)
    message = run_script(script, status=1, QUICKSTART_DIR=str(mine))
    assert f"QUICKSTART_DIR names {mine}, which is in use" in message
    assert (mine / "data" / "thesis").exists()
