"""A pass over a corpus: which sentences come when, and from where it can be taken up again."""

import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text.corpus import Shards
from transformer_elmo.text.training_stream import (
    PassLog,
    Position,
    Schedule,
    WordsEncoder,
    read_chunks,
)
from transformer_elmo.text.word_table import CharacterIds, TokenIds, WordTable

SCHEDULE = Schedule(max_tokens=60, max_lines=25, num_boundary_tokens=2)
FIRST = Position(0)
NAMES = [f"n{i}" for i in range(120)]


@pytest.fixture
def shards(tmp_path):
    """Three files of forty sentences, each of which ends with a name of its own."""
    lengths = np.random.default_rng(0).integers(0, 20, size=len(NAMES))
    lines = [f"{'word ' * length}{name}\n" for length, name in zip(lengths, NAMES)]
    paths = [tmp_path / f"shard-{i}" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_text("".join(lines[40 * i : 40 * i + 40]))
    return Shards(paths)


def make_encoder(words=NAMES):
    ids = {"@@UNKNOWN@@": 1, **{word: i for i, word in enumerate(words, start=2)}}
    columns = {"tokens": TokenIds(ids, 1), "characters": CharacterIds()}
    return WordsEncoder(WordTable(columns, ["<S>"]), ["<S>"])


def plan(shards, schedule=SCHEDULE, position=FIRST, max_words=1000, encoder=None, share=(0, 1)):
    encoder = encoder or make_encoder()

    def find(chunks):
        return ((text, encoder.sentences(text, max_words)) for text in chunks)

    return flat(schedule.plan(shards, position, find, PassLog("the text", max_words), share))


def names(batch):
    last = batch.chunk.rows[batch.chunk.starts[batch.begin + 1 : batch.end + 1] - 1]
    # Row 1 is <S>, and row 2 the unknown word.
    return [NAMES[row - 3] for row in last]


def order(*arguments, **options):
    return [names(batch) for batch in plan(*arguments, **options)]


def flat(lists):
    return [item for items in lists for item in items]


def test_a_function_of_seed_and_pass(shards):
    passes = [order(shards, position=Position(number)) for number in range(3)]
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert passes == [order(shards, position=Position(number)) for number in range(3)]
    assert order(shards, replace(SCHEDULE, seed=1)) not in passes
    # Each sentence once, and those of other files first in some pass.
    assert all(sorted(flat(found)) == sorted(NAMES) for found in passes)
    assert len({NAMES.index(found[0][0]) // 40 for found in passes}) > 1


def test_without_shuffling_chunks_come_in_order(shards):
    schedule = replace(SCHEDULE, shuffle=False)
    found = flat(order(shards, schedule))
    assert found == flat(order(shards, schedule, Position(1)))
    for begin in range(0, 120, 25):
        assert sorted(found[begin : begin + 25]) == sorted(NAMES[begin : begin + 25])


def test_a_limit_takes_the_first_ones(shards):
    assert sorted(flat(order(shards, replace(SCHEDULE, limit=37)))) == sorted(NAMES[:37])


def test_a_least_length_is_part_of_the_budget(shards):
    schedule = replace(SCHEDULE, max_tokens=100, min_length=50)
    assert {len(batch) for batch in plan(shards, schedule)} <= {1, 2}


@pytest.mark.parametrize("shuffle", [True, False])
def test_goes_on_at_any_batch(shards, shuffle):
    schedule = replace(SCHEDULE, shuffle=shuffle)
    batches = plan(shards, schedule)
    expected = list(map(names, batches))
    for number in range(0, len(batches), 3):
        position = Position.from_json(batches[number].position.to_json())
        assert order(shards, schedule, position) == expected[number:]


def test_what_is_over_is_not_read(shards):
    schedule = replace(SCHEDULE, shuffle=False)
    batches = plan(shards, schedule)
    number = next(i for i, batch in enumerate(batches) if batch.position.place.shard == 1)
    shards.paths[0].unlink()
    left = order(shards, schedule, batches[number].position)
    assert left == list(map(names, batches[number:]))


def test_files_that_change_or_vanish(shards):
    path = shards.paths[1]
    content = path.read_bytes()
    path.write_bytes(content + b"more\n")
    with pytest.raises(ConfigurationError, match="shard-1 was written or touched"):
        plan(shards)
    path.write_bytes(content)
    os.utime(path, (1, 1))
    with pytest.raises(ConfigurationError, match=r"shard-1 .* touched .* go on with --recover"):
        plan(shards)
    path.unlink()
    with pytest.raises(ConfigurationError, match="shard-1"):
        plan(shards)


def test_the_log(shards, tmp_path, caplog):
    with caplog.at_level("INFO"):
        plan(shards, replace(SCHEDULE, shuffle=False), max_words=10)
    *places, read = caplog.messages
    assert [place.split(": at ")[1] for place in places] == [
        f"file {i + 1} of 3, {path}." for i, path in enumerate(shards.paths)
    ]
    assert "skipped 0 blank lines," in read and "of more than 10 tokens" in read
    (tmp_path / "text").write_text("\n \nthe the the\n")
    with pytest.raises(ConfigurationError, match="1 files, 2 blank lines, 1 sentences of more"):
        plan(Shards([tmp_path / "text"]), max_words=2)


def test_batches_of_two_chunks_are_merged(tmp_path):
    """Words that no vocabulary has keep their characters."""
    (tmp_path / "text").write_text("the new word\nthe other word\n")
    encoder, found = make_encoder(["the"]), []
    for max_lines in (1, 2):
        schedule = Schedule(batch_size=9, max_lines=max_lines, shuffle=False)
        first, *rest = plan(Shards([tmp_path / "text"]), schedule, encoder=encoder)
        batch = first.merge(*rest) if rest else first
        arrays, _ = encoder.arrays(batch.chunk, batch.begin, batch.end)
        found.append(arrays["characters"]["elmo_tokens"].tolist())
    assert found[0] == found[1]


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    peaks = []
    for number in (2, 20):
        paths = [tmp_path / f"{number}-{i}" for i in range(number)]
        for path in paths:
            # Every word is new, so that whatever kept words would grow.
            path.write_text("".join(f"a{path.name}{i} b{path.name}{i}\n" for i in range(1000)))
        encoder, num_sentences = make_encoder(), 0
        tracemalloc.start()
        for text in read_chunks(paths, 250):
            chunk = encoder.sentences(text, 9).encoded()
            encoder.arrays(chunk, 0, 200)
            num_sentences += len(chunk.lengths())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert num_sentences == 1000 * number
    assert peaks[1] <= 1.1 * peaks[0]
