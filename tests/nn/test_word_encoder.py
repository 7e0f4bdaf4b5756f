"""Words' vectors are AllenNLP's, each distinct word encoded once and remembered."""

import random

import pytest
import torch
from allennlp.data.token_indexers.elmo_indexer import ELMoCharacterMapper
from allennlp.modules.seq2vec_encoders import CnnHighwayEncoder
from allennlp.modules.text_field_embedders import BasicTextFieldEmbedder
from allennlp.modules.token_embedders import Embedding, EmptyEmbedder, TokenCharactersEncoder

from tests.nn.kernels.comparing import close, gradients
from transformer_elmo.nn import word_encoder
from transformer_elmo.nn.word_encoder import CharacterCnn, distinct_words
from transformer_elmo.plugin import text_fields
from transformer_elmo.plugin.text_fields import embed_text_field, text_field_mask

FILTERS = [(1, 4), (2, 6), (3, 5), (7, 9)]


def character_cnn(location="after_highway", activation="relu"):
    torch.manual_seed(1)
    encoder = CnnHighwayEncoder(6, FILTERS, 2, 10, activation, location, do_layer_norm=True)
    # AllenNLP's start values are so small that padding's windows would never be the maximum.
    for parameter in (p for convolution in encoder._convolutions for p in convolution.parameters()):
        torch.nn.init.normal_(parameter)
    return TokenCharactersEncoder(Embedding(embedding_dim=6, num_embeddings=262), encoder)


def characters_of(words):
    mapper = ELMoCharacterMapper()
    return torch.tensor([mapper.convert_word_to_char_ids(word) for word in words])


def random_words(number, generator, longest=60):
    return [
        "".join(generator.choice("abcdeé日") for _ in range(generator.randint(1, longest)))
        for _ in range(number)
    ]


def embedded(module, characters):
    return embed_text_field(BasicTextFieldEmbedder({"elmo": module}), {"elmo": {"t": characters}})


@pytest.mark.parametrize("location", ["after_highway", "after_cnn"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_equals_allennlps_pass_on_words_of_every_length(location, activation):
    """Vectors, and gradients, over every occurrence."""
    module, generator = character_cnn(location, activation), random.Random(1)
    # Every length there is: each width group, and words that fill all 50 characters and more.
    words = ["x" * length for length in range(1, 60)] + random_words(37, generator)
    words += generator.choices(words, k=24)
    generator.shuffle(words)
    characters = characters_of(words).view(10, 12, 50)
    for row in range(10):
        characters[row, 12 - row :] = 0
    present = (characters > 0).any(-1, keepdim=True)
    vectors, expected = embedded(module, characters) * present, module(characters) * present
    assert torch.allclose(vectors, expected, atol=1e-5)
    parameters = list(module.parameters())
    for ours, theirs in zip(gradients(vectors, parameters), gradients(expected, parameters)):
        assert close(ours, theirs, 1e-4)


def test_gradients_are_the_same_to_the_bit_every_time():
    """Whatever the threads do: a run that is taken up again must end as one never stopped."""
    module = character_cnn()
    characters = characters_of(random_words(20, random.Random(0), longest=8))
    characters = characters[torch.randint(20, (4, 4000))]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (
            gradients(embedded(module, characters), list(module.parameters())) for _ in range(6)
        )
    finally:
        torch.set_num_threads(threads)
    for again in others:
        assert all(map(torch.equal, again, first))


def test_words_are_encoded_in_trimmed_widths(monkeypatch):
    shapes, plain = [], word_encoder.max_over_windows

    def noting(characters, convolutions):
        shapes.append(characters.shape[:2])
        return plain(characters, convolutions)

    monkeypatch.setattr(word_encoder, "max_over_windows", noting)
    words = characters_of(["a", "ab", "a" * 7, "a" * 12, "a" * 30])
    text_fields.character_cnn(character_cnn()).encode(words)
    # With a mark at each end and a window of the widest filter: 10, 11, 16, 21 and 39 columns.
    assert shapes == [(2, 12), (1, 16), (1, 24), (1, 50)]


@pytest.mark.parametrize("clash", [False, True])
def test_distinct_words(monkeypatch, clash):
    if clash:
        monkeypatch.setattr(word_encoder, "_factors", lambda *_: 0)
    generator = random.Random(5)
    occurrences = generator.choices(random_words(40, generator, 5), k=200)
    characters = characters_of(occurrences)
    distinct, index = distinct_words(characters)
    assert torch.equal(distinct[index], characters)
    assert distinct.size(0) == len(set(occurrences))


def test_distinct_words_of_the_data_loader_beside_other_embedders():
    modules = {"tokens": EmptyEmbedder(), "words": Embedding(3, 10), "elmo": character_cnn()}
    embedder = BasicTextFieldEmbedder(modules)
    table = torch.cat([torch.zeros(1, 50, dtype=torch.long), characters_of(["a", "bc", "def"])])
    index = torch.tensor([[1, 3, 1], [2, 0, 0]])
    ids = {"tokens": torch.tensor([[5, 6, 5], [7, 0, 0]])}
    # An embedder that knows nothing of distinct words sees each occurrence.
    rows = {"tokens": torch.tensor([0, 5, 7, 6]), "word_index": index}
    plain = {"tokens": ids, "words": ids, "elmo": {"elmo_tokens": table[index]}}
    told_apart = {**plain, "words": rows, "elmo": {"elmo_tokens": table, "word_index": index}}
    expected = embedder(plain)
    for source in (plain, told_apart):
        assert torch.equal(text_field_mask(source), index > 0)
        vectors = embed_text_field(embedder, source)
        assert torch.allclose(vectors[index > 0], expected[index > 0], atol=1e-5)


def test_what_stands_still_is_encoded_once(monkeypatch):
    calls, plain = [], CharacterCnn.encode

    def counting(cnn, words, longest=None):
        calls.append(words.size(0))
        return plain(cnn, words, longest)

    monkeypatch.setattr(CharacterCnn, "encode", counting)
    module = character_cnn()
    words = characters_of(["a", "bc", "a", "def"]).unsqueeze(0)
    others = characters_of(["def", "new", "bc", "a" * 50]).unsqueeze(0)
    for _ in range(2):
        assert embedded(module, words).requires_grad
    module.requires_grad_(False)
    for again in (words, others, others):
        assert torch.allclose(embedded(module, again), module(again), atol=1e-5)
    assert calls == [3, 3, 3, 2]
    exact = embedded(module, words)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = embedded(module, words)
    assert torch.allclose(rounded, exact, atol=0.1) and not torch.equal(rounded, exact)
