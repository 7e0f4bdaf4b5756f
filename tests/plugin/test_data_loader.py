import multiprocessing
import random
import time
from itertools import chain
from typing import Any, Dict

import numpy as np
import pytest
import torch
import torch.distributed as dist
from allennlp.common import Params
from allennlp.data import Batch, DataLoader, DatasetReader, Vocabulary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformer_elmo import LanguageModelingDataLoader
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import data_loader
from transformer_elmo.text import training_stream
from transformer_elmo.text.batching import cut_into_batches

WORDS = [
    *"a b the The THE of and . , 's don't café Café naïve İstanbul ß ǅ".split(),
    *"и Москва МОСКВА ελληνικά Ελλάδα 語 日本語 العربية עברית".split(),
    *"हिन्दी 한국어 👩‍🚀 e\u0301 \ufeff".split(),
    *["<S>", "</S>", "@@UNKNOWN@@", "\x00", "\x00\x07", "\x07", "w" * 48, "ю" * 25, "é" * 5000],
]
SPACES = ["\t", "\u00a0", "\u2028", "\u3000", "\x85", "\x0b", "\x0c", "\x1c", "\x1f", "\r", "  "]

IDS, CHARACTERS = {"type": "single_id"}, {"type": "elmo_characters"}
FAST = {"tokens": IDS, "token_characters": CHARACTERS}
LETTERS = {
    "tokens": IDS,
    "c": {"type": "characters", "namespace": "characters", "min_padding_length": 5},
}
CHUNKS = {"max_tokens": 60, "max_instances_in_memory": 25}


def make_reader(token_indexers=None, tokenizer="just_spaces", **kwargs):
    config = {
        "type": "simple_language_modeling",
        "tokenizer": tokenizer,
        "token_indexers": token_indexers or FAST,
        "start_tokens": ["<S>"],
        "end_tokens": ["</S>"],
        **kwargs,
    }
    return DatasetReader.from_params(Params(config).duplicate())


def make_vocabulary(words=WORDS[::2], namespaces=("tokens", "lower", "characters")):
    vocab = Vocabulary(non_padded_namespaces=["*labels", "*tags"])
    for namespace in namespaces:
        vocab.add_tokens_to_namespace(words, namespace)
    return vocab


def make_loader(path, reader=None, vocab=None, **kwargs):
    loader = LanguageModelingDataLoader(reader or make_reader(), path, quiet=True, **kwargs)
    loader.index_with(vocab or make_vocabulary())
    return loader


@pytest.fixture
def corpus(tmp_path):
    """Three files of 40 sentences, each of which ends with a word of its own."""
    generator, folder = random.Random(0), tmp_path / "corpus"
    folder.mkdir()
    for shard in range(3):
        sentences = [
            [*generator.choices(WORDS[:7], k=generator.randint(1, 19)), f"n{number}"]
            for number in range(40 * shard, 40 * shard + 40)
        ]
        text = "".join(f"{' '.join(words)}\n" for words in sentences)
        (folder / f"shard-{shard}").write_text(text)
    return folder


def own_words(batch):
    """The number of each sentence that ends with `n` and a number, from its characters."""
    numbers = []
    for sentence in batch["source"]["token_characters"]["elmo_tokens"]:
        characters = sentence[int((sentence[:, 0] > 0).sum()) - 2].tolist()[1:]
        numbers.append(int(bytes(c - 1 for c in characters if c <= 256).decode()[1:]))
    return numbers


def order_of(batches):
    return [own_words(batch) for batch in batches]


def numbers_of(batches):
    return sorted(chain(*order_of(batches)))


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


READERS: Dict[str, Dict[str, Any]] = {
    "the fast path": {"start_tokens": ["<S>", "x y"], "end_tokens": ["</S>", "й", "."]},
    "no boundary tokens": {"start_tokens": None, "end_tokens": None},
    "lowercase, namespaces, added tokens, no tokens but characters": {
        "token_indexers": {
            "a": {**IDS, "namespace": "lower", "lowercase_tokens": True},
            "b": {**CHARACTERS, "tokens_to_add": {"the": 1, "Москва": 300}},
            "c": {**CHARACTERS, "tokens_to_add": {"the": 70000}},
            "d": {**IDS, "namespace": "nothing"},
        }
    },
    "padding to a least length": {
        "token_indexers": {n: {**FAST[n], "token_min_padding_length": 7} for n in FAST}
    },
    "another tokenizer": {"tokenizer": "letters_digits"},
    "tokens of its own": {"token_indexers": {"tokens": {**IDS, "end_tokens": ["a", "b"]}}},
    "a feature": {"token_indexers": {"t": {**IDS, "feature_name": "pos_", "default_value": "a"}}},
    "characters": {"token_indexers": LETTERS},
}


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_batches_are_allennlps(tmp_path, name, data):
    others = st.characters(exclude_categories=["Cs"], exclude_characters="\n[{")
    word = st.one_of(st.sampled_from(WORDS), st.text(others, max_size=6))
    space = st.sampled_from([" "] * 8 + SPACES)
    pairs = st.lists(st.tuples(word, space), max_size=12)
    lines = data.draw(st.lists(pairs, min_size=1, max_size=12))
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    text = end.join(["a word", *("".join(map("".join, line)) for line in lines), ""])
    (tmp_path / "text").write_bytes(text.encode("utf-8"))
    reader, vocab, max_tokens, batch_size = make_reader(**READERS[name]), make_vocabulary(), 40, 4
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    instances = [reader.text_to_instance(line) for line in lines if line.strip()]
    least = max(i._token_min_padding_length for i in reader.token_indexers.values())
    lengths = np.array([max(least, len(instance["source"])) for instance in instances])
    expected = []
    for indices in cut_into_batches(lengths, max_tokens, batch_size):
        batch = Batch([instances[i] for i in indices])
        batch.index_instances(vocab)
        expected.append(batch.as_tensor_dict())
    options = {"max_tokens": max_tokens, "batch_size": batch_size, "shuffle": False}
    assert_same(list(make_loader(tmp_path / "text", reader, vocab, **options)), expected)


def test_words_like_padding_and_no_unknown_word(tmp_path):
    (tmp_path / "text").write_text("a @@PADDING@@ the\n@@PADDING@@\n")
    (batch,) = make_loader(tmp_path / "text", batch_size=9, shuffle=False)
    ids, unknown = batch["source"]["tokens"]["tokens"], 1
    assert ids[1, 2] == ids[0, 1] == unknown
    assert (ids > 0).sum(-1).tolist() == [3, 5]
    reader = make_reader({"tokens": {**IDS, "namespace": "word_labels"}})
    vocab = make_vocabulary(["a", "<S>", "</S>"], ["word_labels"])
    with pytest.raises(ConfigurationError, match=r"The word '.*' isn't in the vocabulary"):
        list(make_loader(tmp_path / "text", reader, vocab, batch_size=2))


@pytest.mark.parametrize("options", [(FAST, "letters_digits"), (LETTERS, "just_spaces")])
def test_workers_change_nothing(corpus, options):
    reader = make_reader(*options)
    alone = list(make_loader(corpus, reader, **CHUNKS))
    assert len(alone) > 5
    assert_same(list(make_loader(corpus, reader, num_workers=2, **CHUNKS)), alone)


def test_distinct_words_are_the_words(corpus):
    num_repeated = 0
    for plain, distinct in zip(
        make_loader(corpus, **CHUNKS), make_loader(corpus, distinct_words=True, **CHUNKS)
    ):
        ids, expected = (plain["source"][name] for name in FAST)
        assert_same(distinct["source"]["tokens"], ids)
        facts = distinct["source"]["token_characters"].pop("host_facts")
        characters, index = distinct["source"]["token_characters"].values()
        assert_same(characters[index], expected["elmo_tokens"])
        assert torch.equal(index > 0, ids["tokens"] > 0) and not characters[0].any()
        assert len(torch.unique(characters, dim=0)) == len(characters)
        assert facts.lengths.tolist() == (ids["tokens"] > 0).sum(-1).tolist()
        differs = characters[1:] != characters[1:, -1:]
        assert facts.longest_word == int(differs.any(0).nonzero().max()) + 1
        num_repeated += int((index > 0).sum()) - (len(characters) - 1)
    assert num_repeated > 0


def test_the_order_of_epochs(corpus):
    loader, again = (make_loader(corpus, **CHUNKS) for _ in range(2))
    epochs = [order_of(loader) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    torch.manual_seed(5)
    assert [order_of(again) for _ in range(3)] == epochs
    assert order_of(make_loader(corpus, seed=1, **CHUNKS)) not in epochs
    first = make_reader(max_instances=37)
    assert numbers_of(make_loader(corpus, first, **CHUNKS)) == list(range(37))
    bounded = make_loader(corpus, batches_per_epoch=11, **CHUNKS)
    assert len(bounded) == 11
    stream = [batch for _ in range(3) for batch in order_of(bounded)]
    assert stream == list(chain(*epochs))[:33]


@pytest.mark.parametrize("indexers", [FAST, {**FAST, "c": LETTERS["c"]}])
def test_long_sentences_are_dropped_or_kept(tmp_path, caplog, indexers):
    path = tmp_path / "text"
    path.write_text("".join("the " * i + f"n{i}\n" for i in range(10)))
    reader = make_reader(indexers, max_sequence_length=7)
    loader = make_loader(path, reader, batch_size=3)
    with caplog.at_level("WARNING"):
        assert numbers_of(loader) == [0, 1, 2, 3, 4]
    assert "5 sentences of more than" in caplog.text
    assert len(list(loader.iter_instances())) == 5
    kept = make_loader(path, reader, batch_size=3, keep_long_sentences=True)
    assert numbers_of(kept) == list(range(10))
    # The reader is asked when sentences are read.
    reader.max_sequence_length = None
    assert numbers_of(loader) == list(range(10))


def test_the_length_of_epochs(corpus, monkeypatch):
    for options in ({}, {"max_instances_in_memory": 25, "shuffle": False}):
        loader = make_loader(corpus, max_tokens=60, **options)
        assert len(loader) == len(list(loader)) == len(list(loader))
    # Of several chunks it is another one in each epoch, and a large corpus isn't counted.
    loaders = [make_loader(corpus, **CHUNKS), make_loader(corpus, max_tokens=60)]
    with pytest.raises(TypeError):
        len(loaders[0])
    monkeypatch.setattr(data_loader, "MAX_BYTES_TO_COUNT", 10)
    with pytest.raises(TypeError):
        len(loaders[1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, '"max_tokens".*"batch_size"'),
        ({"max_tokens": 0}, '"max_tokens" must be at least 1'),
        ({"batch_size": 1, "num_workers": -1}, '"num_workers" must be at least 0'),
        ({"batch_size": 1, "distinct_words": True}, '"distinct_words" needs'),
    ],
)
@pytest.mark.parametrize("indexers", [{"tokens": IDS}, LETTERS])
def test_wrong_values(corpus, options, message, indexers):
    with pytest.raises(ConfigurationError, match=message):
        make_loader(corpus, make_reader(indexers), **options)


def test_another_reader_no_path_and_no_vocabulary(corpus):
    with pytest.raises(ConfigurationError, match="simple_language_modeling"):
        make_loader(corpus, DatasetReader(), batch_size=1)
    # AllenNLP asks this of a config's `"validation_data_path": null`.
    loader = make_loader(None, batch_size=1)
    assert list(loader.iter_instances()) == []
    with pytest.raises(ConfigurationError, match="null"):
        next(iter(loader))
    with pytest.raises(ValueError, match="index_with"):
        next(iter(LanguageModelingDataLoader(make_reader(), corpus, batch_size=1)))


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"the\ncaf\xe9\n"])
def test_text_that_is_no_use_is_known_at_once(tmp_path, content):
    # Text for validation is read only after an epoch.
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"no sentence in .*text|line 2.*0xe9"):
        LanguageModelingDataLoader(make_reader(), tmp_path / "text", batch_size=1)


def test_a_worker_that_dies(corpus):
    loader = make_loader(corpus, batch_size=2, max_instances_in_memory=5, num_workers=1)
    iterator = iter(loader)
    # Workers of earlier passes may still be ending.
    earlier = multiprocessing.active_children()
    next(iterator)
    (worker,) = set(multiprocessing.active_children()).difference(earlier)
    worker.kill()
    with pytest.raises(ConfigurationError, match="num_workers"):
        list(iterator)
    # The next epoch has a new one.
    assert numbers_of(loader) == list(range(120))


def test_fewer_sentences_than_processes_are_known_at_the_start(tmp_path, monkeypatch):
    path, reader = tmp_path / "text", make_reader(max_instances=2)
    path.write_text("the cat\n\nthe dog\none more\n")
    monkeypatch.setattr(data_loader, "several_processes", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(ConfigurationError, match=r"text has 2 sentences, fewer than the 3"):
        make_loader(path, reader, max_tokens=60)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert len(make_loader(path, reader, max_tokens=60)) == 1


def test_passes_that_are_given_up_do_not_disturb_the_next(corpus, monkeypatch):
    loader = make_loader(corpus, batch_size=2, max_instances_in_memory=10)
    monkeypatch.setattr(training_stream, "SECONDS_TO_END", 0)
    sentences, busy, overlaps = loader._encoder.sentences, [], []

    def slow(*args):
        busy.append(args)
        time.sleep(0.02)
        overlaps.append(len(busy) > 1)
        result = sentences(*args)
        busy.pop()
        return result

    monkeypatch.setattr(loader._encoder, "sentences", slow)
    for _ in range(3):
        next(iter(loader))
    assert numbers_of(loader) == list(range(120))
    assert overlaps and not any(overlaps)


def test_what_was_seen_is_not_read_again(corpus):
    loader, resumed, calls = make_loader(corpus, **CHUNKS), make_loader(corpus, **CHUNKS), []
    list(loader)
    iterator = iter(loader)
    seen = [own_words(next(iterator)) for _ in range(4)]
    resumed.resume(loader.state_dict(), 1, 4, lambda: calls.append(len(seen)))
    assert list(resumed) == []
    again = iter(resumed)
    assert [next(again) for _ in seen] == [{}] * 4 and not calls
    assert order_of(again) == order_of(iterator) and calls == [4]
    assert order_of(resumed) == order_of(loader)


def test_another_corpus_or_setting_is_none_to_resume(corpus):
    state = make_loader(corpus, max_tokens=60).state_dict()
    for change, options in (
        ("max_tokens is now 61, and was 60", {"max_tokens": 61}),
        ("the vocabulary is now 4 words", {"vocab": make_vocabulary(["a", "b"])}),
        ("tokenizer is now Lett", {"reader": make_reader(tokenizer="letters_digits")}),
    ):
        with pytest.raises(ConfigurationError, match=change):
            make_loader(corpus, **{"max_tokens": 60, **options}).resume(state, 0, 1)
    (corpus / "shard-0").write_text("another one")
    with pytest.raises(ConfigurationError, match="the corpus is now"):
        make_loader(corpus, max_tokens=60).resume(state, 0, 1)


def test_its_instances_make_a_vocabulary(corpus):
    params = Params({"type": "language_modeling", "max_tokens": 60, "quiet": True})
    loader: Any = DataLoader.from_params(params, reader=make_reader(), data_path=str(corpus))
    loader.index_with(Vocabulary.from_instances(loader.iter_instances()))
    assert next(iter(loader.iter_instances())).indexed
    assert sum(len(batch["source"]["tokens"]["tokens"]) for batch in loader) == 120
