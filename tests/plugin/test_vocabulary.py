from typing import Any

import pytest
from allennlp.common import Params
from allennlp.data import DatasetReader, Vocabulary
from allennlp.training.util import make_vocab_from_params
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.small_lm import reader_config
from transformer_elmo.errors import ConfigurationError

TEXT = "the cat saw the dog\n\n \nthe\tdog\u00a0saw a cat .\r\nÉ é É\u2028<UNK> @@UNKNOWN@@ the"
INDEXERS = {
    "a": {"type": "single_id", "namespace": "lower", "lowercase_tokens": True},
    "b": {"type": "elmo_characters"},
    "c": {"type": "characters", "namespace": "letters", "min_padding_length": 3},
}
OTHERS = {"t": {"type": "single_id", "end_tokens": ["x"]}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode("utf-8"))
    return path


def counted(path, **options):
    params = Params({"type": "from_corpus", "data_path": str(path), **options})
    return Vocabulary.from_params(params.duplicate(), instances=iter(()))


def assert_same(ours, theirs):
    ours, theirs = (dict(vocab._index_to_token) for vocab in (ours, theirs))
    assert ours == theirs


class TestFromCorpus:
    """It is what AllenNLP makes of the instances."""

    @pytest.mark.parametrize("indexers", [reader_config()["token_indexers"], INDEXERS, OTHERS])
    @pytest.mark.parametrize(
        "options",
        [
            {"max_vocab_size": 5},
            {"tokens_to_add": {"tokens": ["more"]}, "non_padded_namespaces": ["lower"]},
            {"padding_token": "pad", "oov_token": "<UNK>"},
        ],
    )
    def test_with_a_reader(self, path, indexers, options):
        config = {**reader_config(), "token_indexers": indexers}
        reader = DatasetReader.from_params(Params(config).duplicate())
        expected = Vocabulary.from_instances(reader.read(path), **options)
        ours = counted(path, reader=config, **options)
        assert type(ours) is Vocabulary
        assert_same(ours, expected)
        assert ours._non_padded_namespaces == expected._non_padded_namespaces

    @pytest.mark.parametrize("max_length", [4, 5, 6, 7])
    def test_long_sentences_are_left_out_as_the_reader_does(self, path, monkeypatch, max_length):
        config = {**reader_config(), "max_sequence_length": max_length}
        reader = DatasetReader.from_params(Params(config).duplicate())
        expected = Vocabulary.from_instances(reader.read(path))
        # At the speed of counting: no instance is made.
        monkeypatch.setattr(type(reader), "_read", None)
        assert_same(counted(path, reader=config), expected)

    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.text(st.sampled_from("ab c\n\r\t\u00a0\u2028é"), max_size=60), st.integers(1, 3))
    def test_without_a_reader(self, path, text, min_count):
        path.write_bytes(f"{text}\nx x x".encode())
        reader = DatasetReader.from_params(Params(reader_config()))
        options: Any = {"min_count": {"tokens": min_count}, "max_vocab_size": 4}
        expected = Vocabulary.from_instances(reader.read(path), **options)
        assert_same(counted(path, start_tokens=["<S>"], end_tokens=["</S>"], **options), expected)

    def test_in_a_config(self, path, tmp_path):
        section = {"type": "from_corpus", "data_path": str(path), "min_count": {"tokens": 2}}
        config = {
            "vocabulary": section,
            "dataset_reader": reader_config(),
            "data_loader": {"type": "language_modeling", "batch_size": 2},
            "train_data_path": str(path),
        }
        made = make_vocab_from_params(Params(config).duplicate(), str(tmp_path / "out"))
        tokens = (tmp_path / "out" / "vocabulary" / "tokens.txt").read_text(encoding="utf-8")
        assert tokens.split("\n") == ["@@UNKNOWN@@", "the", "cat", "saw", "dog", "É", ""]
        # How AllenNLP opens it again from an archive.
        vocab_class, _ = Vocabulary.resolve_class_name("from_corpus")
        assert_same(vocab_class.from_files(str(tmp_path / "out" / "vocabulary"), None, None), made)

    def test_boundary_tokens_are_the_readers(self, path):
        with pytest.raises(ConfigurationError, match="start_tokens"):
            counted(path, reader=reader_config(), start_tokens=["<S>"])


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
        assert_same(from_files(folder), Vocabulary.from_files(folder))

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("tokens", b"<S>\n<UNK>\nthe\n", " has no line @@UNKNOWN@@.*Line 2 is <UNK>"),
            ("tokens", b"", " has no line @@UNKNOWN@@"),
            ("tokens", b"@@UNKNOWN@@\na\nb\na\n", ", line 4: the word 'a' is also on line 2"),
            ("tokens", b"@@UNKNOWN@@\na\n\nb\n", ", line 3: this line is empty"),
            ("tokens", b"@@UNKNOWN@@\n@@PADDING@@\n", ", line 2: @@PADDING@@ is added"),
            ("tokens", b"@@UNKNOWN@@\na\n\xff\n", r", line 3: a byte that is not UTF-8 \(0xff\)"),
            ("labels", b"A\nA\n", ", line 2: the word 'A' is also on line 1"),
            ("non_padded_namespaces", b"*tags\n\n*labels\n", ".*, line 2: this line is empty"),
            ("non_padded_namespaces", None, ""),
        ],
    )
    def test_bad_ones_are_told_by_file_and_line(self, folder, file, content, message):
        path = folder / f"{file}.txt"
        path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=rf"{file}\.txt{message}"):
            from_files(folder)

    def test_a_folder_among_the_files(self, folder):
        (folder / "more").mkdir()
        with pytest.raises(ConfigurationError, match="more is a folder"):
            from_files(folder)

    def test_none_at_all(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MY_VOCABULARY", str(tmp_path / "none"))
        with pytest.raises(ConfigurationError, match=r"no vocabulary at .*none.*MY_VOCABULARY"):
            from_files(tmp_path / "none")
