from typing import Any

import pytest
import torch.distributed as dist
from allennlp.common import util
from allennlp.data import Vocabulary
from allennlp.data.data_loaders import MultiProcessDataLoader
from allennlp.data.tokenizers import WhitespaceTokenizer

from transformer_elmo import SimpleLanguageModelingDatasetReader

SENTENCES = [
    ["first", "."],
    ["the", "second", "sentence", "."],
    ["third", "one", "."],
    ["fourth", "and", "last", "."],
]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "b").write_text("third one .\r\nfourth\tand\u00a0last .")
    (tmp_path / "corpus" / "a").write_text("first .\n\n  \nthe second sentence .\n")
    return tmp_path / "corpus"


def make_reader(**kwargs):
    return SimpleLanguageModelingDatasetReader(WhitespaceTokenizer(), **kwargs)


def texts(instances):
    return [[token.text for token in instance["source"]] for instance in instances]


def test_boundary_tokens_and_long_sentences(path, caplog):
    assert texts(make_reader().read(path)) == SENTENCES
    reader = make_reader(start_tokens=["<S>"], end_tokens=["</S>", "."], max_sequence_length=6)
    with caplog.at_level("WARNING"):
        found = texts(reader.read(path))
    assert found == [["<S>", *words, "</S>", "."] for words in (SENTENCES[0], SENTENCES[2])]
    assert "Dropped 2 sentences" in caplog.text
    # Whoever evaluates turns it off.
    reader.max_sequence_length = None
    assert len(texts(reader.read(path))) == 4


def test_processes_share_the_sentences(path, monkeypatch):
    monkeypatch.setattr(util, "is_distributed", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        assert texts(make_reader().read(path)) == SENTENCES[rank::3]


def test_workers_of_allennlps_own_loader_share_the_sentences(path):
    loader = MultiProcessDataLoader(
        make_reader(), path, batch_size=2, num_workers=2, max_instances_in_memory=2, quiet=True
    )
    loader.index_with(Vocabulary(counter={"tokens": {"the": 1}}))
    sources: Any = [batch["source"] for batch in loader]
    assert sum(len(source["tokens"]["tokens"]) for source in sources) == 4


def test_same_as_the_peer(tmp_path):
    peer = pytest.importorskip("allennlp_models.lm.dataset_readers")
    path = tmp_path / "sentences"
    path.write_text("".join(" ".join(words) + "\n" for words in SENTENCES))
    kwargs = {"start_tokens": ["<S>"], "end_tokens": ["</S>"], "max_sequence_length": 5}
    theirs = peer.SimpleLanguageModelingDatasetReader(WhitespaceTokenizer(), **kwargs)
    assert texts(make_reader(**kwargs).read(path)) == texts(theirs.read(str(path)))
