"""Processes that share a corpus take the same steps, and look each word up once between them."""

import random
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest

from tests.text.test_training_stream import FIRST, plan
from transformer_elmo.text.batching import cut_into_batches, deal_rounds
from transformer_elmo.text.corpus import Shards
from transformer_elmo.text.training_stream import Schedule, WordsEncoder, read_chunks
from transformer_elmo.text.word_table import TokenIds, WordTable

WORDS = "the of café Москва 日本語 e\u0301 \ufeff \x00 sixteen-bytes-and-more".split(" ")
SPACES = [" "] * 6 + ["  ", "\t", "\u00a0", "\u2028", "\u3000", "\x85", "\x1c", "\r"]


def sentence(rng, length, spaces=" "):
    words = [rng.choice([*WORDS, f"new{rng.randrange(50)}"]) for _ in range(length)]
    return "".join(word + rng.choice(spaces) for word in words)


def corpora():
    rng = random.Random(0)
    some = [sentence(rng, rng.randrange(12)) for _ in range(200)]
    yield "blank lines", "\n".join(["", *some, "", ""])
    yield "Windows", "\r\n".join(some) + "\r\n"
    yield "one word a line", "\n".join(rng.choice(WORDS) for _ in range(300))
    yield "a long sentence", "\n".join([*some[:50], sentence(rng, 1_000_000), *some[50:]])
    yield "spaces", "\ufeff" + "\n".join(sentence(rng, rng.randrange(12), SPACES) for _ in some)
    yield "JSON, too", "\n".join([*some, '["New York", ""]', '{"text": "a b"}', "[]", *some])
    yield "a line", "a b"


SCHEDULE = Schedule(max_tokens=40, max_lines=32, num_boundary_tokens=2)


class Table(WordTable):
    """Counts the words that are looked up."""

    num_words = 0

    def encode(self, parts):
        rows, new_words = super().encode(parts)
        self.num_words += len(rows)
        return rows, new_words


def read(path, rank, world_size, max_words, position=FIRST):
    """The batches of a process, as words, with where each leaves the pass; and the table."""
    table = Table({"": TokenIds({word: i for i, word in enumerate(WORDS[:6], 1)}, 0)})
    share = (rank, world_size)
    planned = plan(Shards([path]), SCHEDULE, position, max_words, WordsEncoder(table), share)
    found = []
    for step in islice(deal_rounds(iter(planned), world_size), position.num_skipped, None):
        batch = step.batches[rank].encoded()
        words = ["", *WORDS[:6], *batch.chunk.new_words]
        starts = batch.chunk.starts[batch.begin : batch.end + 1].tolist()
        rows = batch.chunk.rows.tolist()
        sentences = [[words[row] for row in rows[a:b]] for a, b in pairwise(starts)]
        found.append((sentences, step.resume_at, step.num_skipped))
    return found, table


def plainly(path, max_words):
    """The batches of a pass, by Python's own means."""
    for number, chunk in enumerate(read_chunks([path], SCHEDULE.max_lines)):
        split = (line.split() if isinstance(line, str) else line for line in chunk.sentences())
        kept = [words for words in split if 0 < len(words) <= max_words]
        lengths = np.array([len(words) + 2 for words in kept], dtype=np.int64)
        for batch in cut_into_batches(lengths, 40, None, (0, 0, 1, number)):
            yield [kept[i] for i in batch]


@pytest.mark.parametrize("name, text", corpora(), ids=[name for name, _ in corpora()])
@pytest.mark.parametrize("max_words", [float("inf"), 9])
def test_any_number_of_processes_takes_the_same_steps(tmp_path, name, text, max_words):
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    alone, _ = read(path, 0, 1, max_words)
    sequence = [sentences for sentences, *_ in alone]
    assert sequence == list(plainly(path, max_words))
    num_words = sum(len(words) for batch in sequence for words in batch)
    for world_size in (2, 8):
        if world_size > len(sequence):
            continue
        ranks = [read(path, rank, world_size, max_words) for rank in range(world_size)]
        steps = list(zip(*(found for found, _ in ranks), strict=True))
        dealt = [[sentences for sentences, *_ in step] for step in steps]
        whole = max(0, len(sequence) // world_size - 1)
        assert [batch for step in dealt[:whole] for batch in step] == sequence[: whole * world_size]
        flat = [words for step in dealt for batch in step for words in batch]
        assert sorted(flat) == sorted(words for batch in sequence for words in batch)
        if name != "JSON, too" and len(sequence) > 4 * world_size:
            # Each word once, but for those of the last steps, which are dealt anew, and where one
            # process has nearly all the words of a chunk.
            last = sum(len(words) for batch in sequence[-2 * world_size :] for words in batch)
            assert sum(table.num_words for _, table in ranks) <= 1.1 * num_words + 2 * last
        # From the middle of the pass, and from its last steps.
        for after in {len(steps) // 2, len(steps) - 2} & set(range(len(steps))):
            for rank, (found, _) in enumerate(ranks):
                _, resume_at, num_skipped = found[after]
                if resume_at is not None:
                    place = replace(resume_at.position, num_skipped=num_skipped)
                    again, _ = read(path, rank, world_size, max_words, place)
                    assert [s for s, *_ in again] == [s for s, *_ in found[after + 1 :]]
