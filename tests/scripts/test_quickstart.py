"""The quickstart's text and its report, in several languages; its training is tested elsewhere."""

import importlib.util
import itertools
import os
import sys
from pathlib import Path

import pytest

from tests.small_lm import random_sentences

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def module(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


corpus, report = module("quickstart_corpus"), module("quickstart_report")

CHINESE = ["\u6211", "\u559c\u6b22", "\u5317\u4eac", "\u5929\u6c14", "\u82f9\u679c", "\u4e66"]


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    def run(lines, name="text"):
        path = tmp_path / name
        path.write_bytes(lines if isinstance(lines, bytes) else "\n".join(lines).encode())
        arguments = ["x", str(tmp_path / "data"), "--corpus", str(path)]
        monkeypatch.setattr(sys, "argv", arguments)
        corpus.main()
        return tmp_path / "data"

    return run


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Don't stop, well-known friend.", "Don't stop , well-known friend ."),
        (
            "\u041c\u043e\u0441\u043a\u0432\u0430, \u043d\u0435\u0442",
            "\u041c\u043e\u0441\u043a\u0432\u0430 , \u043d\u0435\u0442",
        ),
        # Devanagari, whose vowel signs are no letters to Python.
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u0939\u0948",
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u0939\u0948",
        ),
    ],
)
def test_words(sentence, expected):
    assert corpus.words(sentence) == expected.split()


def test_text_without_spaces_is_split_into_characters(prepare, capsys):
    lines = ["".join(p) + "\u3002" for p in itertools.permutations(CHINESE, 4)]
    data = prepare(lines)
    (line, *_) = (data / "heldout.txt").read_text(encoding="utf-8").splitlines()
    assert all(len(word) == 1 for word in line.split()) and line.endswith(" \u3002")
    assert corpus.characters("\u6211\u7528Python 3\u3002") == [
        "\u6211",
        "\u7528",
        "Python",
        "3",
        "\u3002",
    ]
    # Words that are split already stay.
    data = prepare([" ".join(p) for p in itertools.permutations(CHINESE, 4)])
    assert (
        "\u82f9\u679c" in (data / "vocabulary" / "tokens.txt").read_text(encoding="utf-8").split()
    )


def test_no_more_than_a_quickstart_takes(prepare, capsys, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_WORDS", 1000)
    data = prepare([f"number {n} comes after {n - 1} ." for n in range(1, 100_000)])
    assert "The first 1002 words" in capsys.readouterr().out
    text = "".join(shard.read_text() for shard in (data / "train").iterdir())
    assert len(text.split()) < 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([f"only {n} lines here" for n in range(30)], "at least 100 different sentences.*found 30"),
        (b"caf\xe9 is open\n" * 200, "line 1: byte 4 of the line .0xe9. is not UTF-8"),
        ([], "found 0"),
    ],
)
def test_text_that_will_not_do_is_told_in_one_line(prepare, tmp_path, text, expected):
    with pytest.raises(SystemExit, match=f"^quickstart: .*{expected}") as error:
        prepare(text)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_the_sentence_embedded_is_of_the_language(prepare):
    data = prepare(random_sentences(400))
    assert report.sentence_to_embed(data) in (data / "heldout.txt").read_text().splitlines()
    known = [f"{report.SENTENCE} {n}" for n in range(200)]
    assert report.sentence_to_embed(prepare(known)) == report.SENTENCE


def test_folders_of_others_are_not_replaced(run_script, path_with, tmp_path):
    """Found out before anything is written, with a set-up that does nothing."""
    root = tmp_path / "root"
    (root / "scripts").mkdir(parents=True)
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "activate").write_text("")
    (root / "scripts" / "setup.sh").write_text("#!/bin/sh\n")
    (root / "scripts" / "setup.sh").chmod(0o755)
    (root / "scripts" / "quickstart.sh").write_bytes((SCRIPTS / "quickstart.sh").read_bytes())
    mine = tmp_path / "mine"
    (mine / "data").mkdir(parents=True)
    (mine / "data" / "thesis").write_text("years of work")
    script = os.path.relpath(root / "scripts" / "quickstart.sh", SCRIPTS)
    done = run_script(script, QUICKSTART_DIR=str(mine))
    assert done.returncode == 1
    assert f"QUICKSTART_DIR names {mine}, which is in use" in done.stderr
    assert (mine / "data" / "thesis").exists()
