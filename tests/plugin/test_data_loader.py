import copy
import multiprocessing
import os
import resource
import threading
import time
from collections import Counter
from functools import partial
from itertools import count as count_from
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
from transformer_elmo.text import training_stream as prefetch
from transformer_elmo.text import training_stream as schedule

WORDS = [
    *"a b the The THE of and . , 's don't café Café naïve İstanbul ß ǅ".split(),
    *"и Москва МОСКВА ελληνικά Ελλάδα 語 日本語 العربية עברית".split(),
    *"हिन्दी 한국어 👩‍🚀 e\u0301 \ufeff".split(),
    *["<S>", "</S>", "@@UNKNOWN@@", "\x00", "\x00\x07", "\x07", "w" * 48, "ю" * 25],
]
SPACES = ["\t", "\u00a0", "\u2028", "\u3000", "\x85", "\x0b", "\x0c", "\x1c", "\x1f", "\r", "  "]

FAST = {
    "tokens": {"type": "single_id"},
    "token_characters": {"type": "elmo_characters"},
}


def make_reader(token_indexers=None, tokenizer="just_spaces", **kwargs):
    params = {
        "type": "simple_language_modeling",
        "tokenizer": tokenizer,
        "token_indexers": token_indexers or FAST,
        "start_tokens": ["<S>"],
        "end_tokens": ["</S>"],
        **kwargs,
    }
    return DatasetReader.from_params(Params(copy.deepcopy(params)))


def make_vocabulary(words=WORDS[::2], namespaces=("tokens", "lower", "characters")):
    vocab = Vocabulary(non_padded_namespaces=["*labels", "*tags"])
    for namespace in namespaces:
        for word in words:
            vocab.add_token_to_namespace(word, namespace)
    return vocab


def make_loader(path, reader=None, vocab=None, **kwargs):
    loader = LanguageModelingDataLoader(reader or make_reader(), path, quiet=True, **kwargs)
    loader.index_with(vocab or make_vocabulary())
    return loader


def random_corpus(folder, num_shards=3, sentences_a_shard=40, seed=0, distinct=False):
    """
    Shards in which every sentence has a word of its own; with `distinct`, every word is its own.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    count = 0
    for shard in range(num_shards):
        lines = []
        for _ in range(sentences_a_shard):
            words = [WORDS[i % 7] for i in rng.integers(100, size=rng.integers(1, 20))]
            if distinct:
                words = [f"x{count}-{i}" for i in range(10)]
            lines.append(" ".join([*words, f"n{count}"]))
            count += 1
        (folder / f"shard-{shard:02d}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def own_words(batch):
    """
    The number of each sentence of `random_corpus`, read back from its characters.
    """
    numbers = []
    for sentence in batch["source"]["token_characters"]["elmo_tokens"]:
        length = int((sentence[:, 0] > 0).sum())
        characters = sentence[length - 2]
        text = bytes(c - 1 for c in characters.tolist()[1:] if c - 1 < 256).decode()
        numbers.append(int(text[1:]))
    return numbers


def flat(lists):
    return [item for items in lists for item in items]


def order_of(batches):
    return [own_words(batch) for batch in batches]


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    else:
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def allennlp_batches(path, reader, vocab, max_tokens, batch_size, min_length=0):
    """
    Batches of sentences sorted by length, made of instances one by one.
    """
    lines = path.read_bytes().decode("utf-8").split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    instances = [reader.text_to_instance(line) for line in lines if line.strip()]
    instances.sort(key=lambda instance: max(min_length, len(instance["source"])))
    groups = []
    for instance in instances:
        size = len(groups[-1]) + 1 if groups else 0
        if not groups or size > batch_size or size * len(instance["source"]) > max_tokens:
            groups.append([])
        groups[-1].append(instance)
    for group in groups:
        batch = Batch(group)
        batch.index_instances(vocab)
        yield batch.as_tensor_dict()


READERS: Dict[str, Dict[str, Any]] = {
    "the fast path": {},
    "no boundary tokens": {"start_tokens": None, "end_tokens": None},
    "several boundary tokens": {"start_tokens": ["<S>", "x y"], "end_tokens": ["</S>", "й", "."]},
    "lowercase, namespaces, added tokens, no tokens but characters": {
        "token_indexers": {
            "a": {"type": "single_id", "namespace": "lower", "lowercase_tokens": True},
            "b": {"type": "elmo_characters", "tokens_to_add": {"the": 1, "Москва": 300}},
            "c": {"type": "elmo_characters"},
            "d": {"type": "single_id", "namespace": "nothing"},
        }
    },
    "large added tokens": {
        "token_indexers": {"b": {"type": "elmo_characters", "tokens_to_add": {"the": 70000}}}
    },
    "characters as words": {"tokenizer": "character"},
    "another tokenizer": {"tokenizer": "letters_digits"},
    "an indexer with tokens of its own": {
        "token_indexers": {
            "tokens": {"type": "single_id", "start_tokens": ["<S>"], "end_tokens": ["a", "b"]},
        }
    },
    "an indexer of a feature": {
        "token_indexers": {
            "tokens": {"type": "single_id", "feature_name": "pos_", "default_value": "the"},
            "token_characters": {"type": "elmo_characters"},
        }
    },
    "characters": {
        "token_indexers": {
            "tokens": {"type": "single_id"},
            "c": {"type": "characters", "namespace": "characters", "min_padding_length": 5},
        }
    },
}


class TestSameAsAllenNLP:
    @pytest.mark.parametrize("name", READERS)
    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_random_text(self, tmp_path, name, data):
        word = st.one_of(
            st.sampled_from(WORDS),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=6),
        )
        space = st.sampled_from([" "] * 8 + SPACES)
        line = st.lists(st.tuples(word, space), max_size=12).map(
            lambda pairs: "".join(word + space for word, space in pairs)
        )
        lines = data.draw(st.lists(line, min_size=1, max_size=12))
        path = tmp_path / "text"
        end = data.draw(st.sampled_from(["\n", "\r\n"]))
        path.write_bytes((end.join(["a word", *lines, ""])).encode("utf-8"))

        reader = make_reader(**READERS[name])
        vocab = make_vocabulary()
        loader = make_loader(path, reader, vocab, max_tokens=40, batch_size=4, shuffle=False)
        ours = list(loader)
        theirs = list(allennlp_batches(path, reader, vocab, max_tokens=40, batch_size=4))
        assert len(ours) == len(theirs)
        for our_batch, their_batch in zip(ours, theirs):
            assert_same(our_batch, their_batch)

    @pytest.mark.parametrize("length", [1, 5, 30])
    def test_min_padding_length(self, tmp_path, length):
        path = tmp_path / "text"
        path.write_text("a b c\nd\n")
        # AllenNLP wants one length for all the indexers of a field.
        indexers = {
            "tokens": {"type": "single_id", "token_min_padding_length": length},
            "c": {"type": "elmo_characters", "token_min_padding_length": length},
        }
        reader, vocab = make_reader(indexers), make_vocabulary()
        (ours,) = make_loader(path, reader, vocab, batch_size=9, shuffle=False)
        (theirs,) = allennlp_batches(path, reader, vocab, 1000, 9, length)
        assert_same(ours, theirs)
        # The budget counts what the padding makes of a batch.
        width = max(length, 5)
        assert len(make_loader(path, reader, vocab, max_tokens=2 * width)) == 1
        assert len(make_loader(path, reader, vocab, max_tokens=2 * width - 1)) == 2

    def test_extreme_words_and_sentences(self, tmp_path):
        path = tmp_path / "text"
        lines = ["w" * 10_000, "é" * 5_000, "\x00", " ".join(["the", "x"] * 10_000), "a"]
        path.write_text("\n".join(lines), encoding="utf-8")
        reader, vocab = make_reader(), make_vocabulary()
        ours = list(make_loader(path, reader, vocab, max_tokens=500, shuffle=False))
        theirs = list(allennlp_batches(path, reader, vocab, 500, 1000))
        assert len(ours) == len(theirs) == 2
        for our_batch, their_batch in zip(ours, theirs):
            assert_same(our_batch, their_batch)
        # The long sentence went alone.
        assert ours[-1]["source"]["tokens"]["tokens"].shape == (1, 20_002)

    def test_a_word_that_is_spelled_like_padding_is_an_unknown_word(self, tmp_path):
        path = tmp_path / "text"
        path.write_text("a @@PADDING@@ the\n@@PADDING@@\n")
        vocab = make_vocabulary()
        (batch,) = make_loader(path, vocab=vocab, batch_size=9, shuffle=False)
        unknown = vocab.get_token_index("@@UNKNOWN@@")
        ids = batch["source"]["tokens"]["tokens"]
        assert ids[1, 2] == unknown and ids[0, 1] == unknown
        assert (ids > 0).sum(-1).tolist() == [3, 5]

    def test_vocabulary_without_an_unknown_word(self, tmp_path):
        path = tmp_path / "text"
        path.write_text("a b\n")
        indexers = {"tokens": {"type": "single_id", "namespace": "word_labels"}}
        vocab = make_vocabulary(["a", "<S>", "</S>"], ["word_labels"])
        with pytest.raises(ConfigurationError, match="The word 'b' isn't in the vocabulary"):
            list(make_loader(path, make_reader(indexers), vocab, batch_size=2))

    def test_workers_change_nothing(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        for tokenizer in ("just_spaces", "letters_digits"):
            for indexers in (FAST, READERS["characters"]["token_indexers"]):
                reader = make_reader(indexers, tokenizer)
                alone, together = (
                    list(
                        make_loader(
                            path,
                            reader,
                            max_tokens=60,
                            max_instances_in_memory=25,
                            num_workers=num_workers,
                        )
                    )
                    for num_workers in (0, 2)
                )
                assert len(alone) == len(together) > 5
                for ours, theirs in zip(alone, together):
                    assert_same(ours, theirs)


class TestDistinctWords:
    def test_gathered_they_are_the_words(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        kwargs = {"max_tokens": 60, "max_instances_in_memory": 25}
        num_repeated = 0
        for plain, distinct in zip(
            make_loader(path, **kwargs), make_loader(path, distinct_words=True, **kwargs)
        ):
            assert torch.equal(
                plain["source"]["tokens"]["tokens"], distinct["source"]["tokens"]["tokens"]
            )
            entry = distinct["source"]["token_characters"]
            assert set(entry) == {"elmo_tokens", "word_index", "host_facts"}
            lengths = (plain["source"]["tokens"]["tokens"] > 0).sum(-1)
            assert entry["host_facts"].lengths.tolist() == lengths.tolist()
            differs = entry["elmo_tokens"][1:] != entry["elmo_tokens"][1:, -1:]
            longest = int(differs.any(0).nonzero().max()) + 1
            assert entry["host_facts"].longest_word == longest
            characters, index = entry["elmo_tokens"], entry["word_index"]
            assert characters.dtype == index.dtype == torch.long
            expected = plain["source"]["token_characters"]["elmo_tokens"]
            assert torch.equal(characters[index], expected)
            assert torch.equal(index == 0, expected[:, :, 0] == 0)
            assert not characters[0].any()
            assert len(torch.unique(characters, dim=0)) == len(characters)
            assert set(index.unique().tolist()) | {0} == set(range(len(characters)))
            num_repeated += int((index > 0).sum()) - (len(characters) - 1)
        assert num_repeated > 0

    def test_needs_characters_in_a_table(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        for indexers in (
            {"tokens": {"type": "single_id"}},
            {**FAST, "c": {"type": "characters", "min_padding_length": 1}},
        ):
            with pytest.raises(ConfigurationError, match="distinct_words"):
                make_loader(path, make_reader(indexers), batch_size=2, distinct_words=True)


class TestOrder:
    def test_budget_cap_and_every_sentence_once(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        for shuffle in (True, False):
            loader = make_loader(
                path, max_tokens=50, batch_size=4, shuffle=shuffle, max_instances_in_memory=30
            )
            batches = list(loader)
            shapes = [batch["source"]["tokens"]["tokens"].shape for batch in batches]
            assert all(rows <= 4 and rows * columns <= 50 for rows, columns in shapes)
            assert sorted(flat(order_of(batches))) == list(range(120))

    def test_a_function_of_seed_epoch_and_corpus(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        kwargs = {"max_tokens": 60, "max_instances_in_memory": 25}
        loader = make_loader(path, **kwargs)
        epochs = [order_of(loader) for _ in range(3)]
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        # Sentences of all shards come early in some epoch.
        assert len({epoch[0][0] // 40 for epoch in epochs}) > 1
        again = make_loader(path, **kwargs)
        torch.manual_seed(5)
        np.random.seed(5)
        assert [order_of(again) for _ in range(3)] == epochs
        assert order_of(make_loader(path, seed=1, **kwargs)) not in epochs

    def test_without_shuffle_windows_come_in_order(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        loader = make_loader(path, max_tokens=60, shuffle=False, max_instances_in_memory=50)
        first, second = order_of(loader), order_of(loader)
        assert first == second
        numbers = flat(first)
        assert [sorted(numbers[:50]), sorted(numbers[50:100])] == [
            list(range(50)),
            list(range(50, 100)),
        ]

    def test_the_log_tells_how_far_it_is(self, tmp_path, caplog):
        path = random_corpus(tmp_path / "corpus")
        loader = make_loader(path, max_tokens=60, max_instances_in_memory=20, shuffle=False)
        with caplog.at_level("INFO"):
            list(loader)
        said = [message for message in caplog.messages if "Pass 1" in message]
        assert [message.split(": ")[1] for message in said] == [
            f"at file {i + 1} of 3, {path}/shard-0{i}." for i in range(3)
        ]

    def test_max_instances_are_the_first_ones(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        reader = make_reader(max_instances=37)
        loader = make_loader(path, reader, max_tokens=60, max_instances_in_memory=10)
        assert sorted(flat(order_of(loader))) == list(range(37))

    def test_batches_per_epoch(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        kwargs = {"max_tokens": 60, "max_instances_in_memory": 25}
        whole = make_loader(path, **kwargs)
        stream = order_of(whole) + order_of(whole) + order_of(whole)
        loader = make_loader(path, batches_per_epoch=11, **kwargs)
        assert len(loader) == 11
        assert flat(order_of(loader) for _ in range(5)) == stream[:55]


class TestLongSentences:
    def text(self, tmp_path):
        path = tmp_path / "text"
        path.write_text("".join("the " * i + f"n{i}\n" for i in range(10)))
        return path

    @pytest.mark.parametrize("indexers", [FAST, {**FAST, "c": {"type": "characters"}}])
    def test_dropped_counted_and_kept_on_request(self, tmp_path, caplog, indexers):
        path = self.text(tmp_path)
        reader = make_reader(indexers, max_sequence_length=7)
        loader = make_loader(path, reader, batch_size=3)
        with caplog.at_level("WARNING"):
            assert sorted(flat(order_of(loader))) == [0, 1, 2, 3, 4]
        assert "Dropped 5 sentences" in caplog.text
        assert len(list(loader.iter_instances())) == 5
        reader.max_sequence_length = None
        assert sorted(flat(order_of(loader))) == list(range(10))
        kept = make_loader(path, reader, batch_size=3, keep_long_sentences=True)
        assert sorted(flat(order_of(kept))) == list(range(10))

    def test_the_reader_asks_when_it_reads(self, tmp_path):
        path = self.text(tmp_path)
        reader = make_reader(max_sequence_length=7)
        loader = make_loader(path, reader, batch_size=3)
        reader.max_sequence_length = None
        assert sorted(flat(order_of(loader))) == list(range(10))


class TestLength:
    def test_known_for_small_and_unshuffled_corpora(self, tmp_path, monkeypatch):
        path = random_corpus(tmp_path / "corpus")
        loader = make_loader(path, max_tokens=60)
        assert len(loader) == len(list(loader)) == len(list(loader))
        # Several windows: different from epoch to epoch.
        loader = make_loader(path, max_tokens=60, max_instances_in_memory=25)
        with pytest.raises(TypeError):
            len(loader)
        list(loader)
        with pytest.raises(TypeError):
            len(loader)
        loader = make_loader(path, max_tokens=60, max_instances_in_memory=25, shuffle=False)
        assert len(loader) == len(list(loader))
        # A large corpus isn't counted for this.
        monkeypatch.setattr(data_loader, "MAX_BYTES_TO_COUNT", 10)
        loader = make_loader(path, max_tokens=60, shuffle=False)
        with pytest.raises(TypeError):
            len(loader)
        assert len(list(loader)) == len(loader)


class TestErrors:
    def test_no_size(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        with pytest.raises(ConfigurationError, match=r'"max_tokens".*"batch_size"'):
            make_loader(path)

    @pytest.mark.parametrize(
        "kwargs", [{"max_tokens": 0}, {"batch_size": 0}, {"batch_size": 1, "num_workers": -1}]
    )
    def test_bad_values(self, tmp_path, kwargs):
        path = random_corpus(tmp_path / "corpus")
        with pytest.raises(ConfigurationError, match="must be at least"):
            make_loader(path, **kwargs)

    def test_other_readers(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        reader = DatasetReader()
        with pytest.raises(ConfigurationError, match="simple_language_modeling"):
            make_loader(path, reader, batch_size=1)

    def test_no_path(self):
        # AllenNLP asks this of a config's `"validation_data_path": null`.
        loader = make_loader(None, batch_size=1)
        assert list(loader.iter_instances()) == []
        with pytest.raises(ConfigurationError, match="null"):
            next(iter(loader))

    def test_no_vocabulary(self, tmp_path):
        loader = LanguageModelingDataLoader(
            make_reader(), random_corpus(tmp_path / "corpus"), batch_size=1
        )
        with pytest.raises(ValueError, match="index_with"):
            next(iter(loader))

    def test_no_sentence(self, tmp_path):
        path = tmp_path / "text"
        path.write_text("\n \nthe the the\n")
        with pytest.raises(ConfigurationError, match="2 blank lines, 1 sentences"):
            list(make_loader(path, make_reader(max_sequence_length=3), batch_size=1))

    @pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"the\ncaf\xe9\n"])
    def test_text_that_is_no_use_is_known_at_once(self, tmp_path, content):
        # Text for validation is read only after an epoch.
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"no sentence in .*text|line 2.*0xe9"):
            LanguageModelingDataLoader(make_reader(), tmp_path / "text", batch_size=1)

    def test_empty_shards_are_fine(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        for name in ("a", "shard-00a", "z"):
            (path / name).touch()
        loader = make_loader(path, batch_size=7, max_instances_in_memory=16)
        assert sorted(flat(order_of(loader))) == list(range(120))

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_not_utf8_surfaces_from_the_background(self, tmp_path, num_workers, monkeypatch):
        monkeypatch.setattr(data_loader, "MAX_BYTES_TO_COUNT", 0)
        path = random_corpus(tmp_path / "corpus")
        with open(path / "shard-01", "ab") as file:
            file.write(b"caf\xe9\n")
        loader = make_loader(
            path, max_tokens=60, max_instances_in_memory=25, num_workers=num_workers
        )
        with pytest.raises(ConfigurationError, match=r"shard-01, line 41.*0xe9"):
            list(loader)

    def test_a_shard_that_vanishes_or_changes(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        loader = make_loader(path, batch_size=7)
        list(loader)
        shard = path / "shard-01"
        content = shard.read_bytes()
        shard.write_bytes(content + b"more\n")
        with pytest.raises(ConfigurationError, match="shard-01 has changed"):
            list(loader)
        shard.write_bytes(content)
        os.utime(shard, (1, 1))
        with pytest.raises(ConfigurationError, match=r"touched .* go on with --recover"):
            list(loader)
        shard.unlink()
        with pytest.raises(ConfigurationError, match="shard-01"):
            list(loader)

    def test_a_worker_that_dies(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        loader = make_loader(path, batch_size=2, max_instances_in_memory=5, num_workers=1)
        iterator = iter(loader)
        next(iterator)
        (worker,) = multiprocessing.active_children()
        worker.kill()
        with pytest.raises(ConfigurationError, match="num_workers"):
            list(iterator)
        # The next epoch has a new one.
        assert sorted(flat(order_of(loader))) == list(range(120))

    def test_a_pass_that_was_given_up_doesnt_disturb_the_next(self, tmp_path, monkeypatch):
        monkeypatch.setattr(prefetch, "SECONDS_TO_END", 0)
        path = random_corpus(tmp_path / "corpus")
        loader = make_loader(path, batch_size=2, max_instances_in_memory=10)
        encoder = loader._encoder
        encode, busy, overlaps = encoder.encode, [], []

        def slow(*args):
            busy.append(args)
            time.sleep(0.02)
            overlaps.append(len(busy) > 1)
            result = encode(*args)
            busy.pop()
            return result

        monkeypatch.setattr(encoder, "encode", slow)
        for _ in range(3):
            iterator = iter(loader)
            next(iterator)
            iterator.close()
        assert sorted(flat(order_of(loader))) == list(range(120))
        assert overlaps and not any(overlaps)

    def test_abandoned_iterations_leave_no_thread(self, tmp_path):
        path = random_corpus(tmp_path / "corpus", sentences_a_shard=400)
        loader = make_loader(path, batch_size=2, max_instances_in_memory=100)
        before = threading.active_count()
        for _ in range(3):
            iterator = iter(loader)
            next(iterator)
            iterator.close()
        assert threading.active_count() == before
        # And the next epoch is whole.
        assert sorted(flat(order_of(loader))) == list(range(1200))


class TestDistributed:
    @pytest.mark.parametrize("world_size", [2, 3, 4, 7])
    def test_dealt_out_the_same_sequence(self, tmp_path, monkeypatch, world_size):
        path = random_corpus(tmp_path / "corpus")
        kwargs = {"max_tokens": 60, "max_instances_in_memory": 25}
        alone = make_loader(path, **kwargs)
        sequence = [order_of(alone) for _ in range(2)]
        monkeypatch.setattr(data_loader, "several_processes", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: world_size)
        ranks = []
        for rank in range(world_size):
            monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
            loader = make_loader(path, **kwargs)
            ranks.append([order_of(loader) for _ in range(2)])
        for epoch in range(2):
            steps = [len(rank[epoch]) for rank in ranks]
            assert len(set(steps)) == 1
            interleaved = [
                batch for group in zip(*(rank[epoch] for rank in ranks)) for batch in group
            ]
            # The last whole round may have taken in what is left.
            whole = (len(sequence[epoch]) // world_size - 1) * world_size
            assert whole > 0
            assert interleaved[:whole] == sequence[epoch][:whole]
            assert sorted(flat(interleaved)) == list(range(120))

    def test_sentences_short_of_processes_join_the_round_before(self, tmp_path, monkeypatch):
        # 5 sentences of a chunk each for 4 processes: the last one can't be split.
        path = tmp_path / "text"
        path.write_text("".join(f"x{i} y{i} n{i}\n" for i in range(5)))
        monkeypatch.setattr(data_loader, "several_processes", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 4)
        batches = []
        for rank in range(4):
            monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
            (batch,) = make_loader(path, max_tokens=5, max_instances_in_memory=1, shuffle=False)
            batches.append(batch)
        assert order_of(batches) == [[0, 4], [1], [2], [3]]
        monkeypatch.setattr(data_loader, "several_processes", lambda: False)
        # Words that no vocabulary has keep their characters when chunks are joined.
        (joined,) = make_loader_of_text(tmp_path, "x0 y0 n0\nx4 y4 n4\n")
        assert_same(batches[0], joined)

    @pytest.mark.parametrize("limit", [None, 2])
    def test_fewer_sentences_than_processes_are_known_at_the_start(
        self, tmp_path, monkeypatch, limit
    ):
        path = tmp_path / "text"
        path.write_text("the cat\n\nthe dog\n" + ("one more\n" if limit else ""))
        monkeypatch.setattr(data_loader, "several_processes", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 3)
        with pytest.raises(ConfigurationError, match=r"text has 2 sentences, fewer than the 3"):
            make_loader(path, max_tokens=60, reader=make_reader(max_instances=limit))
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        make_loader(path, max_tokens=60, reader=make_reader(max_instances=limit))


def make_loader_of_text(folder, text):
    path = folder / "other"
    path.write_text(text)
    return make_loader(path, batch_size=100, shuffle=False)


class TestResumption:
    @pytest.mark.parametrize("batches_per_epoch", [None, 9])
    @pytest.mark.parametrize("world_size, new_world_size", [(1, 1), (2, 2), (2, 1), (1, 2)])
    def test_goes_on_at_any_batch(
        self, tmp_path, monkeypatch, batches_per_epoch, world_size, new_world_size
    ):
        path = random_corpus(tmp_path / "corpus")
        kwargs = {
            "max_tokens": 60,
            "max_instances_in_memory": 25,
            "batches_per_epoch": batches_per_epoch,
        }
        monkeypatch.setattr(data_loader, "several_processes", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: 0)
        monkeypatch.setattr(dist, "get_world_size", lambda: world_size)
        loader = make_loader(path, **kwargs)
        states, seen = [], []
        for epoch in range(3):
            count = 0
            states.append((epoch, count, loader.state_dict()))
            for batch in loader:
                count += 1
                seen.append((epoch, own_words(batch)))
                states.append((epoch, count, loader.state_dict()))
        sequence = sequence_of(seen)
        if new_world_size != world_size:
            states = states[:12]
        for epoch, count, state in states[::3]:
            monkeypatch.setattr(dist, "get_world_size", lambda: new_world_size)
            resumed = make_loader(path, **kwargs)
            calls, rest = [], []
            resumed.resume(state, epoch, count, partial(calls.append, "called"))
            for _ in range(epoch):
                assert list(resumed) == []
            iterator = iter(resumed)
            assert [next(iterator) for _ in range(count)] == [{}] * count
            assert not calls
            rest += [(epoch, own_words(batch)) for batch in iterator]
            assert calls == ["called"]
            for later in range(epoch + 1, 3):
                rest += [(later, own_words(batch)) for batch in resumed]
            if new_world_size == world_size:
                assert sequence_of(rest) == [
                    s for s in sequence if s not in seen_before(seen, epoch, count)
                ]
            else:
                # Both read the same global sequence, from the same place.
                monkeypatch.setattr(dist, "get_world_size", lambda: 1)
                alone = make_loader(path, **kwargs)
                alone.resume(state, epoch, count)
                for _ in range(epoch):
                    assert list(alone) == []
                sequence_left = order_of(batch for batch in alone if batch)
                wanted = sequence_left[::new_world_size][: len(sequence_left) // new_world_size - 1]
                assert [words for _, words in rest][: len(wanted)] == wanted

    def test_reads_nothing_of_what_is_over(self, tmp_path, monkeypatch):
        # The corpus is too large to be counted for its length.
        monkeypatch.setattr(data_loader, "MAX_BYTES_TO_COUNT", 0)
        path = random_corpus(tmp_path / "corpus")
        kwargs = {"max_tokens": 60, "max_instances_in_memory": 10}
        loader = make_loader(path, **kwargs)
        list(loader)
        iterator = iter(loader)
        for count in count_from(1):  # noqa: B007
            next(iterator)
            state = loader.state_dict()
            if state["position"]["chunk_number"] == 9:
                break
        rest = order_of(iterator)
        read = []
        read_chunks = schedule.read_chunks

        def counting(*args, **kwargs):
            for chunk in read_chunks(*args, **kwargs):
                read.append(chunk)
                yield chunk

        monkeypatch.setattr(schedule, "read_chunks", counting)
        resumed = make_loader(path, **kwargs)
        resumed.resume(state, 1, count)
        assert list(resumed) == []
        assert order_of(batch for batch in resumed if batch) == rest
        assert len(read) == 3

    def test_another_corpus_or_setting(self, tmp_path):
        path = random_corpus(tmp_path / "corpus")
        loader = make_loader(path, max_tokens=60)
        next(iter(loader))
        state = loader.state_dict()
        with pytest.raises(ConfigurationError, match="max_tokens is now 61, and was 60"):
            make_loader(path, max_tokens=61).resume(state, 0, 1)
        for change, reader in (
            ("max_instances is now 5, and was None", make_reader(max_instances=5)),
            ("start and end tokens is now 1, and was 2", make_reader(start_tokens=[])),
            ("tokenizer is now Lett.*, and was White", make_reader(tokenizer="letters_digits")),
        ):
            with pytest.raises(ConfigurationError, match=change):
                make_loader(path, reader, max_tokens=60).resume(state, 0, 1)
        (path / "shard-00").write_text("another one")
        with pytest.raises(ConfigurationError, match="the corpus is now"):
            make_loader(path, max_tokens=60).resume(state, 0, 1)


def sequence_of(seen):
    return [(epoch, tuple(words)) for epoch, words in seen]


def seen_before(seen, epoch, count):
    before = [s for s in seen if s[0] < epoch]
    return set(sequence_of(before + [s for s in seen if s[0] == epoch][:count]))


def peak_memory(path, sender):
    loader = make_loader(path, max_tokens=500, max_instances_in_memory=500)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = Counter(tensor_rows for tensor_rows in map(num_rows, loader))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send((before, after, sum(rows * times for rows, times in count.items())))


def num_rows(batch):
    return len(batch["source"]["tokens"]["tokens"])


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    # Every word of every shard is new, so whatever kept words would grow.
    path = random_corpus(tmp_path / "100", num_shards=100, sentences_a_shard=700, distinct=True)
    few = tmp_path / "4"
    few.mkdir()
    for shard in sorted(path.iterdir())[:4]:
        os.link(shard, few / shard.name)
    context = multiprocessing.get_context("fork")
    peaks = []
    for folder, num_sentences in ((few, 2800), (path, 70_000)):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=peak_memory, args=(folder, sender))
        process.start()
        before, after, count = receiver.recv()
        process.join(60)
        assert count == num_sentences
        assert after > before
        peaks.append(after - before)
    # Beside what the process had before, so that it can't hide behind the size of torch.
    assert peaks[1] <= 1.2 * peaks[0] + 4096


def test_works_for_allennlps_other_users(tmp_path):
    path = random_corpus(tmp_path / "corpus")
    params = Params(
        {
            "type": "language_modeling",
            "max_tokens": 60,
            "quiet": True,
        }
    )
    loader = DataLoader.from_params(params, reader=make_reader(), data_path=str(path))
    instances = list(loader.iter_instances())
    assert len(instances) == 120
    vocab = Vocabulary.from_instances(instances, min_count={"tokens": 2})
    loader.index_with(vocab)
    assert next(iter(loader.iter_instances())).indexed
    loader.set_target_device(torch.device("cpu"))
    assert sum(map(num_rows, loader)) == 120
