import os
from collections import Counter
from typing import Any

import numpy as np
import pytest
from allennlp.common import Params
from allennlp.data import DatasetReader, Vocabulary
from allennlp.training.util import make_vocab_from_params
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformer_elmo.commands.cli import main
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


def reader_params(**kwargs):
    return {
        "type": "simple_language_modeling",
        "tokenizer": "just_spaces",
        "start_tokens": ["<S>"],
        "end_tokens": ["</S>"],
        **kwargs,
    }


def index_to_token(vocab):
    return {name: dict(tokens) for name, tokens in vocab._index_to_token.items()}


class TestFromCorpus:
    @pytest.mark.parametrize(
        "indexers",
        [
            None,
            {
                "a": {"type": "single_id", "namespace": "lower", "lowercase_tokens": True},
                "b": {"type": "elmo_characters"},
                "c": {"type": "characters", "namespace": "letters", "min_padding_length": 3},
            },
            {"t": {"type": "single_id", "end_tokens": ["x"]}},
        ],
    )
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"max_vocab_size": 5},
            {"tokens_to_add": {"tokens": ["more"]}, "non_padded_namespaces": ["lower"]},
            {"padding_token": "pad", "oov_token": "<UNK>"},
        ],
    )
    def test_is_what_allennlp_makes_of_the_instances(self, path, indexers, options):
        params = reader_params(**({} if indexers is None else {"token_indexers": indexers}))
        reader = DatasetReader.from_params(Params(params).duplicate())
        expected = Vocabulary.from_instances(reader.read(path), **options)
        ours = Vocabulary.from_params(
            Params(
                {"type": "from_corpus", "data_path": str(path), "reader": params, **options}
            ).duplicate(),
            instances=iter(()),
        )
        assert type(ours) is Vocabulary
        assert index_to_token(ours) == index_to_token(expected)
        assert ours._non_padded_namespaces == expected._non_padded_namespaces

    @pytest.mark.parametrize("max_length", [4, 5, 6, 7, 100])
    def test_long_sentences_are_left_out_as_the_reader_does(self, path, monkeypatch, max_length):
        params = reader_params(max_sequence_length=max_length)
        reader = DatasetReader.from_params(Params(params).duplicate())
        expected = Vocabulary.from_instances(reader.read(path))
        # At the speed of counting: no instance is made.
        monkeypatch.setattr(type(reader), "_read", None)
        ours = Vocabulary.from_params(
            Params({"type": "from_corpus", "data_path": str(path), "reader": params})
        )
        assert index_to_token(ours) == index_to_token(expected)

    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.text(st.sampled_from("ab c\n\r\t\u00a0\u2028é"), max_size=60), st.integers(1, 3))
    def test_without_a_reader(self, tmp_path, text, min_count):
        path = tmp_path / "random"
        path.write_bytes(f"{text}\nx x x".encode())
        reader = DatasetReader.from_params(Params(reader_params()))
        options: Any = {"min_count": {"tokens": min_count}, "max_vocab_size": 4}
        expected = Vocabulary.from_instances(reader.read(path), **options)
        ours = Vocabulary.from_params(
            Params(
                {
                    "type": "from_corpus",
                    "data_path": [str(path)],
                    "start_tokens": ["<S>"],
                    "end_tokens": ["</S>"],
                    **options,
                }
            )
        )
        assert index_to_token(ours) == index_to_token(expected)

    def test_in_a_config(self, path, tmp_path):
        config = {
            "vocabulary": {
                "type": "from_corpus",
                "data_path": str(path),
                "min_count": {"tokens": 2},
            },
            "dataset_reader": reader_params(),
            "data_loader": {"type": "language_modeling", "batch_size": 2},
            "train_data_path": str(path),
        }
        made = make_vocab_from_params(Params(config).duplicate(), str(tmp_path / "out"))
        tokens = (tmp_path / "out" / "vocabulary" / "tokens.txt").read_text(encoding="utf-8")
        assert tokens.split("\n") == ["@@UNKNOWN@@", "the", "cat", "saw", "dog", "É", ""]
        # How AllenNLP opens it again from an archive.
        vocab_class, _ = Vocabulary.resolve_class_name("from_corpus")
        again = vocab_class.from_files(str(tmp_path / "out" / "vocabulary"), None, None)
        assert index_to_token(again) == index_to_token(made)

    def test_boundary_tokens_are_the_readers(self, path):
        params = {
            "type": "from_corpus",
            "data_path": str(path),
            "reader": reader_params(),
            "start_tokens": ["<S>"],
        }
        with pytest.raises(ConfigurationError, match="start_tokens"):
            Vocabulary.from_params(Params(params))


def test_count_words(path):
    counts = count_words([path, path], start_tokens=["<S>"], quiet=True)
    assert counts["the"] == 8 and counts["<S>"] == 6 and counts["É"] == 4 and counts["é"] == 2
    assert list(counts)[:4] == ["<S>", "the", "cat", "saw"]


def test_count_words_of_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "_FIRST_TABLE", 20)
    monkeypatch.setattr(vocabulary, "_ROWS_AT_A_TIME", 500)
    monkeypatch.setattr(read_blocks, "__defaults__", (0, 200))
    rng = np.random.default_rng(0)
    names = ["x", "été", "long-" * 5, "中文", "\u00a0"]
    lines = [
        " ".join(f"{names[i % 5]}{i % 3}{i}" for i in rng.zipf(1.3, size=7) % 400)
        for _ in range(500)
    ]
    path = tmp_path / "text"
    path.write_text("\n".join(lines), encoding="utf-8")
    expected = Counter(" ".join(lines).split())
    counts = count_words(path, quiet=True)
    assert counts == expected
    assert list(counts) == list(expected)


class TestWriteVocabulary:
    def test_special_words_then_by_frequency_then_by_code_point(self, path, tmp_path):
        target = tmp_path / "vocabulary"
        assert write_vocabulary(path, target, min_count=1, quiet=True) == 11
        assert sorted(os.listdir(target)) == ["non_padded_namespaces.txt", "tokens.txt"]
        lines = (target / "tokens.txt").read_text(encoding="utf-8").split("\n")
        assert lines[:3] == ["</S>", "<S>", "@@UNKNOWN@@"]
        assert lines[3:] == ["the", "cat", "dog", "saw", "É", ".", "a", "é", ""]
        assert (target / "non_padded_namespaces.txt").read_text() == "*labels\n*tags\n"
        vocab = Vocabulary.from_files(target)
        assert vocab.get_vocab_size() == len(lines)
        assert vocab.get_token_index("nothing") == vocab.get_token_index("@@UNKNOWN@@") == 3

    def test_min_count_and_size(self, path, tmp_path):
        assert write_vocabulary(path, tmp_path / "a", min_count=2, quiet=True) == 8
        assert (
            write_vocabulary(path, tmp_path / "b", min_count=2, max_vocab_size=2, quiet=True) == 5
        )
        lines = (tmp_path / "b" / "tokens.txt").read_text().split()
        assert lines == ["</S>", "<S>", "@@UNKNOWN@@", "the", "cat"]

    def test_all_or_nothing(self, path, tmp_path, monkeypatch):
        target = tmp_path / "vocabulary"
        target.mkdir()
        write_vocabulary(path, target, quiet=True, min_count=2)
        with pytest.raises(ConfigurationError, match="--force"):
            write_vocabulary(path, target, quiet=True)
        before = (target / "tokens.txt").read_bytes()

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ConfigurationError, match="no space is left"):
            write_vocabulary(path, target, min_count=1, force=True, quiet=True)
        with pytest.raises(ConfigurationError, match="no space is left"):
            write_vocabulary(path, tmp_path / "other", min_count=1, quiet=True)
        assert (target / "tokens.txt").read_bytes() == before
        assert sorted(os.listdir(tmp_path)) == ["text", "vocabulary"]
        monkeypatch.undo()
        write_vocabulary(path, target, min_count=1, force=True, quiet=True)
        assert (target / "tokens.txt").read_bytes() != before

    def test_nothing_left(self, path, tmp_path):
        with pytest.raises(ConfigurationError, match="smaller --min-count"):
            write_vocabulary(path, tmp_path / "v", min_count=100, quiet=True)
        assert not (tmp_path / "v").exists()

    def test_command(self, path, tmp_path, capsys):
        target = str(tmp_path / "v")
        assert main(["vocab", str(path), target, "--min-count", "2", "--quiet"]) == 0
        assert capsys.readouterr().out == f"{target}: 8 words\n"
        assert main(["vocab", str(path), target]) == 1
        assert capsys.readouterr().err.startswith(f"transformer-elmo vocab: {target} exists")
        assert main(["vocab", str(tmp_path / "missing"), target, "--force"]) == 1
        assert "missing" in capsys.readouterr().err


def from_files(folder):
    return Vocabulary.from_params(Params({"type": "lm_from_files", "directory": str(folder)}))


class TestFromFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "vocabulary"
        folder.mkdir()
        (folder / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")
        (folder / "labels.txt").write_text("A\nB\n")
        return folder

    def test_good_ones_are_allennlps(self, folder):
        (folder / "tokens.txt").write_text("@@UNKNOWN@@\nthe\nrain", encoding="utf-8")
        vocabulary = from_files(folder)
        assert vocabulary.get_token_to_index_vocabulary("tokens") == {
            "@@PADDING@@": 0,
            "@@UNKNOWN@@": 1,
            "the": 2,
            "rain": 3,
        }
        assert vocabulary == Vocabulary.from_files(folder)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (b"<S>\n<UNK>\nthe\n", r"tokens\.txt has no line @@UNKNOWN@@.*Line 2 is <UNK>"),
            (b"the\n", r"tokens\.txt has no line @@UNKNOWN@@"),
            (b"", r"tokens\.txt has no line @@UNKNOWN@@"),
            (b"@@UNKNOWN@@\na\nb\na\n", r"tokens\.txt, line 4: the word 'a' is also on line 2"),
            (b"@@UNKNOWN@@\na\n\nb\n", r"tokens\.txt, line 3: this line is empty"),
            (b"@@UNKNOWN@@\n\n\n", r"tokens\.txt, line 3: the word '' is also on line 2"),
            (b"@@UNKNOWN@@\n@@PADDING@@\n", r"tokens\.txt, line 2: @@PADDING@@ is added"),
            (b"@@UNKNOWN@@\na\n\xff\n", r"tokens\.txt, line 3: a byte that is not UTF-8 \(0xff\)"),
        ],
    )
    def test_bad_ones_are_told_by_file_and_line(self, folder, words, message):
        (folder / "tokens.txt").write_bytes(words)
        with pytest.raises(ConfigurationError, match=message):
            from_files(folder)

    def test_a_folder_among_the_files(self, folder):
        (folder / "more").mkdir()
        with pytest.raises(ConfigurationError, match="more is a folder"):
            from_files(folder)

    def test_without_the_file_of_namespaces(self, folder):
        (folder / "non_padded_namespaces.txt").unlink()
        with pytest.raises(ConfigurationError, match=r"non_padded_namespaces\.txt"):
            from_files(folder)

    def test_none_at_all(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MY_VOCABULARY", str(tmp_path / "none"))
        with pytest.raises(ConfigurationError, match=r"no vocabulary at .*none.*MY_VOCABULARY"):
            from_files(tmp_path / "none")
