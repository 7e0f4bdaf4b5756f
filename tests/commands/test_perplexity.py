"""`transformer-elmo perplexity` and `nearest`."""

import io
import json

import pytest

from tests.small_lm import random_sentences
from transformer_elmo import TransformerElmo
from transformer_elmo.commands.cli import main


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join([*random_sentences(30, seed=3), "", "an unheard-of owl"]) + "\n")
    return path


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the\ncat\n")
    return path


def command(*arguments):
    return main(list(map(str, arguments)))


def test_it_is_that_of_python_and_parts_add_up(lm_archive, text, words, tmp_path, capsys):
    options = [lm_archive, text, "--words-of", words, "--bits-per-character"]
    assert command("perplexity", *options) == 0
    found = json.loads(capsys.readouterr().out)
    expected = TransformerElmo.open(lm_archive).evaluate(
        str(text), words_of=str(words), bits_per_character=True
    )
    assert found == pytest.approx(expected, rel=1e-6)
    parts = [tmp_path / f"{k}.json" for k in (3, 1, 2)]
    for part in parts:
        name = f"{part.stem}/3"
        assert command("perplexity", *options, "--part", name, "--output-file", part) == 0
    assert command("merge", tmp_path / "all.json", *parts) == 0
    added = json.loads((tmp_path / "all.json").read_text())
    assert added == pytest.approx(expected, rel=1e-6)

    assert command("merge", tmp_path / "all.json", *parts) == 1
    assert "Give --force" in capsys.readouterr().err
    other = tmp_path / "other.json"
    arguments = ["perplexity", lm_archive, text, "--part", "2/3", "--output-file", other]
    assert command(*arguments) == 0
    capsys.readouterr()
    for given, message in (
        (parts[:2], "Of 3 parts, 2 is missing"),
        ([*parts[:2], other], "they differ in bits_per_character, words_of"),
        ([*parts[:2], tmp_path / "all.json"], "isn't of a part, or is damaged"),
        ([tmp_path / "gone.json"], "No such file"),
    ):
        assert command("merge", tmp_path / "no.json", *given) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert command("merge", tmp_path / "no.npy", *parts) == 1
    assert "is no part of a text's vectors" in capsys.readouterr().err
    assert not list(tmp_path.glob("no.*"))


def test_standard_input(lm_archive, text, monkeypatch, capsys):
    expected = TransformerElmo.open(lm_archive).perplexity(str(text))
    for part, share in (([], 1), (["--part", "1/2"], 0.5)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.read_bytes())))
        assert command("perplexity", lm_archive, "-", *part) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["num_sentences"] == int(31 * share) + (share < 1)
        assert (found["perplexity"] == pytest.approx(expected)) is (share == 1)


def test_nearest(lm_archive, monkeypatch, capsys):
    expected = TransformerElmo.open(lm_archive).nearest("cat", 3)
    assert command("nearest", lm_archive, "cat", "owl", "--top-k", 3) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["word"] == "cat" and second["word"] == "owl"
    assert first["nearest"] == [list(neighbor) for neighbor in expected]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"cat\n\n")))
    assert command("nearest", lm_archive, "-", "--sentence", "the cat ran") == 0
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert found["word"] == "cat" and len(found["nearest"]) == 10
    assert command("nearest", lm_archive, "cat", "--sentence", "no such") == 1
    assert "no word 'cat'" in capsys.readouterr().err
