import os
from collections import Counter
from typing import Any

import numpy as np
import pytest

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text import vocabulary
from transformer_elmo.text.corpus import read_blocks
from transformer_elmo.text.vocabulary import count_words, write_vocabulary

TEXT = "the cat saw the dog\n\n \nthe\tdog\u00a0saw a cat .\r\nÉ é É\u2028<UNK> @@UNKNOWN@@ the"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode("utf-8"))
    return path


def test_count_words(path):
    counts = count_words([path, path], start_tokens=["<S>"], quiet=True)
    assert counts["the"] == 8 and counts["<S>"] == 6 and counts["É"] == 4 and counts["é"] == 2
    assert list(counts)[:4] == ["<S>", "the", "cat", "saw"]
    # The first line alone, which has five words.
    counts = count_words(path, ["<S>"], ["</S>", "cat"], quiet=True, max_words=5)
    expected = {"<S>": 1, "the": 2, "cat": 2, "saw": 1, "dog": 1, "</S>": 1}
    assert list(counts.items()) == list(expected.items())


def test_count_words_of_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "_FIRST_TABLE", 20)
    monkeypatch.setattr(read_blocks, "__defaults__", (0, 200))
    rng, names = np.random.default_rng(0), ["x", "été", "long-" * 5, "中文", "\u00a0"]
    lines = [
        " ".join(f"{names[i % 5]}{i % 3}{i}" for i in rng.zipf(1.3, size=7) % 400)
        for _ in range(500)
    ]
    (tmp_path / "text").write_text("\n".join(lines), encoding="utf-8")
    expected = Counter(" ".join(lines).split())
    counts = count_words(tmp_path / "text", quiet=True)
    assert list(counts.items()) == list(expected.items())


def test_special_words_then_by_frequency_then_by_code_point(path, tmp_path):
    target = tmp_path / "vocabulary"
    assert write_vocabulary(path, target, min_count=1, quiet=True) == 11
    assert sorted(os.listdir(target)) == ["non_padded_namespaces.txt", "tokens.txt"]
    assert (target / "non_padded_namespaces.txt").read_text() == "*labels\n*tags\n"
    lines = (target / "tokens.txt").read_text(encoding="utf-8").split("\n")
    assert lines[:3] == ["</S>", "<S>", "@@UNKNOWN@@"]
    assert lines[3:] == ["the", "cat", "dog", "saw", "É", ".", "a", "é", ""]
    options: Any = {"min_count": 2, "max_vocab_size": 2, "quiet": True}
    with pytest.raises(ConfigurationError, match="vocabulary exists"):
        write_vocabulary(path, target, **options)
    assert write_vocabulary(path, target, force=True, **options) == 5
    assert (target / "tokens.txt").read_text().split()[3:] == ["the", "cat"]
    with pytest.raises(ConfigurationError, match="smaller --min-count"):
        write_vocabulary(path, tmp_path / "v", min_count=100, quiet=True)
    assert not (tmp_path / "v").exists()


def test_all_or_nothing(path, tmp_path, no_larger_files):
    with no_larger_files(10), pytest.raises(ConfigurationError, match="vocabulary"):
        write_vocabulary(path, tmp_path / "vocabulary", min_count=1, quiet=True)
    assert os.listdir(tmp_path) == ["text"]
