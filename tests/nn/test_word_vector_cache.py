"""Vectors that are kept are those of the weights as they are now."""

import torch

from transformer_elmo.nn.word_vector_cache import WordVectorCache

WORDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def vectors_of(cache, table, words=WORDS):
    return cache.vectors(words, [table], lambda some: table[some].sum(1))


def test_each_number_counts():
    """One that is changed in place is noticed, wherever it stands in a large weight."""
    cache, table = WordVectorCache(), torch.randn(1000, 5)
    before = vectors_of(cache, table)
    for row, column in ((1, 0), (2, 3), (4, 1), (6, 4)):
        table[row, column] += 1.0
        after = vectors_of(cache, table)
        assert torch.equal(after, table[WORDS].sum(1)) and not torch.equal(after, before)
        before = after
    table.data[:] = 0.0
    assert not vectors_of(cache, table).any()


def test_what_was_kept_in_inference_mode_takes_part_in_training():
    cache, table = WordVectorCache(), torch.randn(10, 5)
    with torch.inference_mode():
        vectors_of(cache, table, WORDS.clone())
    again = torch.cat([WORDS, torch.tensor([[7, 8, 9]])])
    for words in (WORDS, again):
        factor = torch.ones(5, requires_grad=True)
        vectors = vectors_of(cache, table, words)
        (vectors * factor).sum().backward()
        assert factor.grad is not None
        assert torch.allclose(factor.grad, table[words].sum((0, 1)))


def test_words_made_in_inference_mode():
    cache, table = WordVectorCache(), torch.randn(10, 5)
    with torch.inference_mode():
        words = WORDS.clone()
        vectors_of(cache, table, words)
    assert torch.equal(vectors_of(cache, table), table[WORDS].sum(1))
