"""`transformer-elmo perplexity` and `nearest`."""

import json

import pytest

from tests.small_lm import random_sentences
from transformer_elmo import TransformerElmo


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    # The first and the last of five parts have no words, the second one none of those below.
    sentences = [*[""] * 16, *["it was happy"] * 16, *random_sentences(30, seed=3)]
    path.write_text("\n".join([*sentences, "", "an unheard-of owl", *[""] * 16, ""]))
    return path


def test_it_is_that_of_python_and_parts_add_up(command, lm_archive, text, tmp_path):
    words, whole, other = (tmp_path / name for name in ("words.txt", "all.json", "other.json"))
    words.write_text("the\ncat\n")
    options = [lm_archive, text, "--words-of", words, "--bits-per-character"]
    found = json.loads(command("perplexity", *options))
    expected = TransformerElmo.open(lm_archive).evaluate(
        str(text), words_of=str(words), bits_per_character=True
    )
    assert found == pytest.approx(expected, rel=1e-6)
    parts = [tmp_path / f"{k}.json" for k in (5, 4, 1, 3, 2)]
    for part in parts:
        command("perplexity", *options, "--part", f"{part.stem}/5", "--output-file", part)
    command("merge", whole, *parts)
    assert json.loads(whole.read_text()) == pytest.approx(expected, rel=1e-6)

    command("perplexity", lm_archive, text, "--part", "2/5", "--output-file", other)
    blank = [tmp_path / f"blank-{k}.json" for k in (1, 2)]
    text.write_text("\n\n")
    for part in blank:
        number = part.stem.removeprefix("blank-")
        command("perplexity", lm_archive, text, "--part", f"{number}/2", "--output-file", part)
    for name, given, message in (
        ("all.json", parts, "Give --force"),
        ("no.json", [*parts[:4], other], "they differ in bits_per_character, words_of"),
        ("no.json", [*parts[:4], whole], "isn't of a part, or is damaged"),
        ("no.json", blank, "no word to predict"),
        ("no.npy", parts, "is no part of a text's vectors"),
    ):
        assert message in command("merge", tmp_path / name, *given, status=1)
    assert not list(tmp_path.glob("no.*"))


def test_standard_input(command, lm_archive, text):
    for part, count in (([], 47), (["--part", "1/2"], 24)):
        found = command("perplexity", lm_archive, "-", *part, stdin=text.read_bytes())
        assert json.loads(found)["num_sentences"] == count


def test_nearest(command, lm_archive):
    expected = [list(neighbor) for neighbor in TransformerElmo.open(lm_archive).nearest("cat", 3)]
    found = command("nearest", lm_archive, "cat", "owl", "--top-k", 3)
    first, second = map(json.loads, found.splitlines())
    assert first == {"word": "cat", "nearest": expected} and second["word"] == "owl"
    there = command("nearest", lm_archive, "-", "--sentence", "the cat ran", stdin=b"cat\n\n")
    assert json.loads(there)["word"] == "cat" and len(json.loads(there)["nearest"]) == 10
