from typing import Any

import pytest
import torch.distributed as dist
from allennlp.common import util
from allennlp.data import DatasetReader, Vocabulary
from allennlp.data.data_loaders import MultiProcessDataLoader
from allennlp.data.dataset_readers.dataset_reader import WorkerInfo
from allennlp.data.tokenizers import WhitespaceTokenizer

from transformer_elmo import SimpleLanguageModelingDatasetReader


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "b").write_text("third one .\r\nfourth\tand\u00a0last .")
    (folder / "a").write_text("first .\n\n  \nthe second sentence .\n")
    return folder


SENTENCES = [
    ["first", "."],
    ["the", "second", "sentence", "."],
    ["third", "one", "."],
    ["fourth", "and", "last", "."],
]


def make_reader(**kwargs):
    return SimpleLanguageModelingDatasetReader(WhitespaceTokenizer(), **kwargs)


def texts(instances):
    return [[token.text for token in instance["source"]] for instance in instances]


def test_reads_a_directory_without_its_blank_lines(path):
    assert texts(make_reader().read(path)) == SENTENCES
    assert texts(make_reader().read(str(path / "a"))) == SENTENCES[:2]


def test_boundary_tokens_and_long_sentences(path, caplog):
    reader = make_reader(start_tokens=["<S>"], end_tokens=["</S>", "."], max_sequence_length=6)
    with caplog.at_level("WARNING"):
        found = texts(reader.read(path))
    assert found == [["<S>", *words, "</S>", "."] for words in (SENTENCES[0], SENTENCES[2])]
    assert "Dropped 2 sentences" in caplog.text
    # Whoever evaluates turns it off.
    reader.max_sequence_length = None
    assert len(texts(reader.read(path))) == 4


def test_is_registered():
    found = DatasetReader.by_name("simple_language_modeling")
    assert found.__name__ == "SimpleLanguageModelingDatasetReader"


def test_workers_share_the_sentences(path):
    parts = []
    for i in range(3):
        reader = make_reader()
        reader._set_worker_info(WorkerInfo(3, i))
        parts.append(texts(reader.read(path)))
    assert sorted(sentence for part in parts for sentence in part) == sorted(SENTENCES)
    assert [len(part) for part in parts] == [2, 1, 1]


def test_processes_share_the_sentences(path, monkeypatch):
    monkeypatch.setattr(util, "is_distributed", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    parts = []
    for i in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda i=i: i)
        parts.append(texts(make_reader().read(path)))
    assert sorted(sentence for part in parts for sentence in part) == sorted(SENTENCES)
    assert [len(part) for part in parts] == [2, 1, 1]


def test_allennlps_own_loader_with_workers(path):
    loader = MultiProcessDataLoader(
        make_reader(), path, batch_size=2, num_workers=2, max_instances_in_memory=2, quiet=True
    )
    loader.index_with(Vocabulary(counter={"tokens": {"the": 1}}))
    sources: Any = [batch["source"] for batch in loader]
    assert sum(len(source["tokens"]["tokens"]) for source in sources) == 4


def test_same_as_the_peer(path, tmp_path):
    pytest.importorskip("allennlp_models")
    from allennlp_models.lm.dataset_readers import (
        SimpleLanguageModelingDatasetReader as PeerReader,
    )

    sentences = tmp_path / "sentences"
    sentences.write_text("".join(" ".join(words) + "\n" for words in SENTENCES))
    kwargs = {"start_tokens": ["<S>"], "end_tokens": ["</S>"], "max_sequence_length": 5}
    theirs = PeerReader(WhitespaceTokenizer(), **kwargs).read(str(sentences))
    ours = make_reader(**kwargs).read(sentences)
    assert texts(ours) == texts(theirs)
