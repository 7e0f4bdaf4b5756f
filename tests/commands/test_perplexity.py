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


def command(*arguments):
    return main(list(map(str, arguments)))


def test_it_is_that_of_python_and_parts_add_up(lm_archive, text, tmp_path, capsys):
    words = tmp_path / "words.txt"
    words.write_text("the\ncat\n")
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

    other = tmp_path / "other.json"
    arguments = ["perplexity", lm_archive, text, "--part", "2/3", "--output-file", other]
    assert command(*arguments) == 0
    for name, given, message in (
        ("all.json", parts, "Give --force"),
        ("no.json", [*parts[:2], other], "they differ in bits_per_character, words_of"),
        ("no.json", [*parts[:2], tmp_path / "all.json"], "isn't of a part, or is damaged"),
        ("no.npy", parts, "is no part of a text's vectors"),
    ):
        capsys.readouterr()
        assert command("merge", tmp_path / name, *given) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("no.*"))


def test_standard_input(lm_archive, text, monkeypatch, capsys):
    for part, count in (([], 31), (["--part", "1/2"], 16)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.read_bytes())))
        assert command("perplexity", lm_archive, "-", *part) == 0
        assert json.loads(capsys.readouterr().out)["num_sentences"] == count


def test_nearest(lm_archive, monkeypatch, capsys):
    expected = TransformerElmo.open(lm_archive).nearest("cat", 3)
    assert command("nearest", lm_archive, "cat", "owl", "--top-k", 3) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"word": "cat", "nearest": [list(neighbor) for neighbor in expected]}
    assert second["word"] == "owl"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"cat\n\n")))
    assert command("nearest", lm_archive, "-", "--sentence", "the cat ran") == 0
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert found["word"] == "cat" and len(found["nearest"]) == 10
