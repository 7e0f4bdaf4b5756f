"""A softmax for another vocabulary: rows that come over, are made, and are set by text."""

from itertools import pairwise

import pytest
import torch

from tests.small_lm import random_sentences, tensors
from transformer_elmo.nn.softmax import SAMPLE, FrequencyOrder
from transformer_elmo.nn.softmax_transfer import (
    WORDS_AT_A_TIME,
    adapt_softmax,
    calibrate,
    old_rows_of,
    shares_of,
)
from transformer_elmo.text.vocabulary import WordList, extended_words

DIM = 6


def rows(num_words, seed=0):
    torch.manual_seed(seed)
    return torch.randn(num_words + 1, DIM), torch.randn(num_words + 1)


def words(*names):
    return WordList(["@@UNKNOWN@@", *names])


def test_shared_rows_come_over_whatever_their_places():
    old, new = words("a", "b", "c"), WordList(["c", "x", "@@UNKNOWN@@", "a"])
    assert old_rows_of(old, new).tolist() == [3, -1, 0, 1]
    before, after = rows(4), rows(4, seed=1)
    report = adapt_softmax(before, after, old_rows_of(old, new), None)
    for mine, its in ((0, 3), (2, 0), (3, 1), (4, 4)):
        assert torch.equal(after[0][mine], before[0][its]) and after[1][mine] == before[1][its]
    assert torch.allclose(after[0][1], before[0].mean(0))
    assert (report.num_kept, report.num_made, report.num_dropped) == (3, 1, 1)
    assert "are the mean" in str(report) and "3 rows of the softmax came over" in str(report)


def test_unknown_words_are_the_same_under_two_names():
    old = WordList(["<UNK>", "a"], unknown_word="<UNK>")
    assert old_rows_of(old, WordList(["a", "@@UNKNOWN@@"])).tolist() == [1, 0]
    # A word that merely has that name isn't it.
    assert old_rows_of(WordList(["a"], "<UNK>"), words("a")).tolist() == [-1, 0]


def fitted(num_words, new_words, offset=3.0):
    """
    A softmax whose rows are a function of word vectors, adapted to the same words, some of them
    new. Returns the old rows of those, the new ones, the report, and whose vectors were asked for.
    """
    torch.manual_seed(0)
    vectors = torch.randn(num_words, DIM)
    weight = vectors @ torch.randn(DIM, DIM) + offset
    # The last row is of no word.
    old = torch.cat([weight, weight[:1]]), torch.zeros(num_words + 1)
    old[1][:-1] = vectors @ torch.arange(float(DIM))
    new, old_rows, asked = rows(num_words), torch.arange(num_words), []
    old_rows[new_words] = -1

    def word_vectors(numbers):
        asked.append(numbers)
        return vectors[numbers]

    report = adapt_softmax(old, new, old_rows, word_vectors)
    assert report.num_made == len(new_words)
    before, after = (torch.cat([w, b.unsqueeze(1)], 1)[new_words] for w, b in (old, new))
    return before, after, report, asked


@pytest.mark.parametrize(
    "num_words, offset, explained, tolerance",
    [(2000, 3.0, 0.99, 5e-2), (9000, 3.0, 0.99, 5e-2), (44, 1000.0, 0.9, 5.0)],
)
def test_new_rows_are_what_word_vectors_say(num_words, offset, explained, tolerance):
    """Nearly, and in blocks. What all rows have in common is not held back."""
    before, after, report, asked = fitted(num_words, [5, 40, num_words - 1], offset)
    assert report.explained > explained and torch.allclose(before, after, atol=tolerance)
    assert max(map(len, asked)) <= WORDS_AT_A_TIME


def test_of_many_shared_words_a_part_is_fitted(monkeypatch):
    """At equal distances from the first to the last."""
    monkeypatch.setattr("transformer_elmo.nn.softmax_transfer.MOST_FITTED", 64)
    _, _, report, (used, _) = fitted(1000, list(range(0, 1000, 10)))
    assert len(used) == 64 and used[0] < 10 and used[-1] > 980
    gaps = {after - before for before, after in pairwise(used)}
    assert max(gaps) - min(gaps) <= 3 and report.explained > 0.95


@pytest.mark.parametrize("num_shared", [0, 100])
def test_where_a_regression_explains_nothing_rows_are_the_mean(num_shared):
    old, new = rows(200), rows(200, seed=1)
    old_rows = torch.arange(200)
    old_rows[num_shared:] = -1
    report = adapt_softmax(old, new, old_rows, lambda numbers: torch.zeros(len(numbers), DIM))
    assert report.explained is None and report.num_made == 200 - num_shared
    assert torch.allclose(new[0][150], old[0].mean(0), atol=1e-6)


def test_biases_are_set_by_the_text():
    weight, bias = rows(40)
    contexts = rows(3000, seed=2)[0]
    shares = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) ** 4
    shares = (shares + 0.001) / (shares + 0.001).sum()

    def average():
        return torch.softmax(contexts @ weight.t() + bias, 1).mean(0)[:-1].double()

    def distance():
        return float((average().log() - shares.log()).abs().mean())

    last, before = bias[-1].item(), distance()
    calibrate((weight, bias), contexts, shares)
    assert distance() < 0.3 * before and bias[-1].item() == last


def test_shares():
    vocabulary = words("<S>", "</S>", "the", "gone")
    counts = {"<S>": 10, "</S>": 10, "the": 15, "rare": 2, "rarer": 3}
    shares = shares_of(vocabulary, counts, ["<S>", "</S>"])
    expected = torch.tensor([5.0, 5, 5, 15, 0.5], dtype=torch.float64)
    assert torch.allclose(shares, expected / expected.sum())


def test_an_extended_vocabulary_falls_by_the_new_text():
    counts = {"new": 3, "rare": 2, "b": 5, "c": 1}
    assert extended_words(["a", "b", "c", "d"], counts) == ["b", "new", "c", "a", "d"]
    assert extended_words([], counts, min_count=1) == ["b", "new", "rare", "c"]


@pytest.mark.parametrize("falls", [True, False])
def test_order(falls):
    order, found = FrequencyOrder(words(*map(str, range(1000)))), []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        # Zipf's law, near enough.
        targets = (torch.rand(SAMPLE // 4, generator=generator) * 6.9).exp().long() - 1
        found.append(order.problem(targets if falls else 999 - targets))
    assert [bool(problem) for problem in found] == [not falls and n == 3 for n in range(8)]
    assert falls or ("'998' on line 1,000" in found[3] and "num_samples" in found[3])


def test_training_tells_of_the_order(make_model, caplog, vocabulary, monkeypatch):
    """Once, and only where words are sampled."""
    monkeypatch.setattr("transformer_elmo.nn.softmax.SAMPLE", 50)
    monkeypatch.setattr("transformer_elmo.nn.softmax.LIMIT", 0.5)
    model, batch = make_model(), tensors(random_sentences(60), vocabulary)
    model.eval()(**batch)
    make_model(num_samples=None).train()(**batch)
    assert "falling order" not in caplog.text
    for _ in range(2):
        model.train()(**batch)
    assert caplog.text.count("falling order") == 1
