"""Sentences on their way through a model: lines, and batches in order."""

import pytest

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text.corpus import parse_line
from transformer_elmo.text.reader import in_batches


def test_batches_come_in_order_and_as_they_are_needed():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    batches = []

    def run(batch):
        batches.append(batch)
        return [-number for number in batch]

    results = in_batches(items(), lambda number: number % 7 + 1, run, max_tokens=20)
    assert [next(results) for _ in range(5)] == [0, -1, -2, -3, -4]
    assert len(taken) < 60
    assert list(results) == [-number for number in range(5, 1000)]
    assert all(len(b) * max(number % 7 + 1 for number in b) <= 20 for b in batches)
    assert list(in_batches([], len, run, 10)) == []


def test_lines():
    assert parse_line("the cat") == "the cat"
    assert parse_line('{"tokens": ["the", "cat"]}') == ["the", "cat"]
    assert parse_line('{"sentence": "the cat"}') == "the cat"
    assert parse_line('{"tokens": 3', "text") == '{"tokens": 3'
    assert parse_line("{ a }") == "{ a }"
    # Spaces are JSON, too, and quotation marks are text, too.
    assert parse_line(' { "tokens" : ["the", "cat"] }') == ["the", "cat"]
    assert parse_line('{ " said he }') == '{ " said he }'
    assert parse_line('{"words": ["the", "cat"]}') == ["the", "cat"]
    assert parse_line('["the", "cat"]') == ["the", "cat"]
    assert parse_line('{"words": []}') == parse_line("[]") == []
    # What is no list of words is text.
    for line in ('["the" cat', '["the", 3]', "[] the", '[ " the " ]', '["the", "cat"] said he'):
        assert parse_line(line) == line
    too_long = f'{{"n": {"9" * 5000}}}'
    for line in ('{"tokens": 3}', '{"tokens": [3]}', '{"word": []}', '{"tokens": [', too_long):
        with pytest.raises(ConfigurationError, match=r"^Line 4 "):
            parse_line(line, number=4)
    with pytest.raises(ConfigurationError, match="JSON"):
        parse_line("[3]", "json")
