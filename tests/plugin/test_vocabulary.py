from typing import Any

import pytest
from allennlp.common import Params
from allennlp.data import DatasetReader, Vocabulary

from tests.small_lm import reader_config
from transformer_elmo.errors import ConfigurationError

TEXT = "the cat saw the dog\n\n \nthe\tdog\u00a0saw a cat .\r\nÉ é É\u2028<UNK> @@UNKNOWN@@ the"
INDEXERS = {
    "a": {"type": "single_id", "namespace": "lower", "lowercase_tokens": True},
    "b": {"type": "elmo_characters"},
    "c": {"type": "characters", "namespace": "letters", "min_padding_length": 3},
}
OTHERS = {"t": {"type": "single_id", "end_tokens": ["x"]}}
OPTIONS: Any = [
    {"max_vocab_size": 5},
    {"tokens_to_add": {"tokens": ["more"]}, "non_padded_namespaces": ["lower"]},
    {"padding_token": "pad", "oov_token": "<UNK>"},
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode("utf-8"))
    return path


def counted(path, **options):
    params = Params({"type": "from_corpus", "data_path": str(path), **options})
    return Vocabulary.from_params(params.duplicate(), instances=iter(()))


def assert_same(ours, theirs):
    assert type(ours) is Vocabulary
    ours, theirs = ((dict(v._index_to_token), v._non_padded_namespaces) for v in (ours, theirs))
    assert ours == theirs


@pytest.mark.parametrize("indexers", [reader_config()["token_indexers"], INDEXERS, OTHERS])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_corpus_is_counted_as_its_instances(path, indexers, options):
    config = {**reader_config(), "token_indexers": indexers}
    reader = DatasetReader.from_params(Params(config).duplicate())
    expected = Vocabulary.from_instances(reader.read(path), **options)
    assert_same(counted(path, reader=config, **options), expected)


@pytest.mark.parametrize("max_length", [4, 5, 6, 7])
def test_long_sentences_are_left_out_as_the_reader_does(path, monkeypatch, max_length):
    config = {**reader_config(), "max_sequence_length": max_length}
    reader = DatasetReader.from_params(Params(config).duplicate())
    expected = Vocabulary.from_instances(reader.read(path))
    # At the speed of counting: no instance is made.
    monkeypatch.setattr(type(reader), "_read", None)
    assert_same(counted(path, reader=config), expected)


@pytest.mark.parametrize("options", [*OPTIONS, {"min_count": {"tokens": 2}}])
def test_without_a_reader(path, options):
    boundaries = {"start_tokens": ["<S>"], "end_tokens": ["</S>"]}
    reader = DatasetReader.from_params(Params(reader_config()))
    expected = Vocabulary.from_instances(reader.read(path), **options)
    assert_same(counted(path, **boundaries, **options), expected)
    with pytest.raises(ConfigurationError, match="start_tokens"):
        counted(path, reader=reader_config(), **boundaries)


def from_files(folder):
    return Vocabulary.from_params(Params({"type": "lm_from_files", "directory": str(folder)}))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    (folder / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")
    (folder / "labels.txt").write_text("A\nB\n")
    return folder


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokens", b"<S>\n<UNK>\nthe\n", " has no line @@UNKNOWN@@.*Line 2 is <UNK>"),
        ("tokens", b"@@UNKNOWN@@\na\nb\na\n", ", line 4: the word 'a' is also on line 2"),
        ("tokens", b"@@UNKNOWN@@\na\n\nb\n", ", line 3: this line is empty"),
        ("tokens", b"@@UNKNOWN@@\n@@PADDING@@\n", ", line 2: @@PADDING@@ is added"),
        ("tokens", b"@@UNKNOWN@@\na\n\xff\n", r", line 3: a byte that is not UTF-8 \(0xff\)"),
        ("labels", b"A\nA\n", ", line 2: the word 'A' is also on line 1"),
        ("non_padded_namespaces", b"*tags\n\n*labels\n", ".*, line 2: this line is empty"),
        ("non_padded_namespaces", None, ""),
    ],
)
def test_bad_folders_are_told_by_file_and_line(folder, file, content, message):
    path = folder / f"{file}.txt"
    path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"{file}\.txt{message}"):
        from_files(folder)


def test_a_good_folder_one_within_and_none(folder, monkeypatch):
    (folder / "tokens.txt").write_text("@@UNKNOWN@@\nthe\nrain", encoding="utf-8")
    assert_same(from_files(folder), Vocabulary.from_files(folder))
    (folder / "more").mkdir()
    with pytest.raises(ConfigurationError, match="more is a folder"):
        from_files(folder)
    monkeypatch.setenv("MY_VOCABULARY", str(folder / "none"))
    with pytest.raises(ConfigurationError, match=r"no vocabulary at .*none.*MY_VOCABULARY"):
        from_files(folder / "none")
