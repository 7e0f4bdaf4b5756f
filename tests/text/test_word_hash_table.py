import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transformer_elmo.text import word_table as lookup
from transformer_elmo.text.word_table import WordHashTable, text_bytes, words_at

WORDS = st.text(st.sampled_from("abcé中\x00\x01 \u00a0\u2028\u200b\x1c\t👩"), max_size=18)


@example([], [], 1)
@example([" \n\n"], [], 1)
@example(["a b"], [], 1)
@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=30), st.lists(WORDS, unique=True, max_size=30), st.integers(1, 3))
def test_finds_what_split_gives(parts, words, first_row):
    text = " ".join([*parts, *words])
    data = text_bytes(text)
    rows, starts, ends = WordHashTable(words, first_row).find(data)
    expected = {
        word: first_row + i for i, word in enumerate(words) if len(word.encode("utf-8")) <= 16
    }
    assert words_at(data, starts, ends) == text.split()
    assert rows.tolist() == [expected.get(word, 0) for word in text.split()]


def test_many_words_that_want_the_same_slots(monkeypatch):
    words = [f"w{i}" for i in range(3000)]
    monkeypatch.setattr(lookup, "_MIX", [np.uint64(0)] * 3)
    rows, *_ = WordHashTable(words[:300], 1).find(" ".join(words).encode())
    assert rows.tolist() == list(range(1, 301)) + [0] * 2700


def test_words_that_text_cannot_have():
    rows, *_ = WordHashTable(["a\ud800", "a", ""], 1).find("a a\ufffd".encode())
    assert rows.tolist() == [2, 0]
