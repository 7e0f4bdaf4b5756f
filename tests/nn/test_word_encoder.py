"""Words' vectors are AllenNLP's, each distinct word encoded once and remembered."""

import random

import pytest
import torch
from allennlp.data.token_indexers.elmo_indexer import ELMoCharacterMapper
from allennlp.modules.seq2vec_encoders import CnnHighwayEncoder
from allennlp.modules.text_field_embedders import BasicTextFieldEmbedder
from allennlp.modules.token_embedders import Embedding, EmptyEmbedder, TokenCharactersEncoder

from transformer_elmo.nn import word_encoder
from transformer_elmo.nn.word_encoder import CharacterCnn, distinct_words
from transformer_elmo.plugin import text_fields
from transformer_elmo.plugin.text_fields import embed_text_field, text_field_mask

NUM_CHARACTERS = 50
FILTERS = [(1, 4), (2, 6), (3, 5), (7, 9)]


def character_cnn(location="after_highway", filters=FILTERS, activation="relu", layer_norm=True):
    encoder = CnnHighwayEncoder(
        embedding_dim=6,
        filters=filters,
        num_highway=2,
        projection_dim=10,
        activation=activation,
        projection_location=location,
        do_layer_norm=layer_norm,
    )
    # AllenNLP's start values are so small that padding's windows would never be the maximum.
    for convolution in encoder._convolutions:
        for parameter in convolution.parameters():
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


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same_function(module, characters):
    """Vectors and gradients equal those of AllenNLP's own pass over every occurrence."""
    embedder = BasicTextFieldEmbedder({"elmo": module})
    source = {"elmo": {"tokens": characters}}
    module.zero_grad()
    expected = embedder(source)
    weights = torch.randn_like(expected) * (characters > 0).any(-1, keepdim=True)
    (expected * weights).sum().backward()
    wanted = gradients(module)
    module.zero_grad()

    vectors = embed_text_field(embedder, source)
    present = (characters > 0).any(-1)
    assert torch.allclose(vectors[present], expected[present], atol=1e-5)
    (vectors * weights).sum().backward()
    for name, gradient in gradients(module).items():
        scale = wanted[name].abs().max().clamp(min=1.0)
        assert torch.allclose(gradient, wanted[name], atol=1e-4 * scale), name
    assert set(gradients(module)) == set(wanted)


@pytest.mark.parametrize("location", ["after_highway", "after_cnn"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_equals_allennlps_pass_on_words_of_every_length(location, activation):
    torch.manual_seed(1)
    generator = random.Random(1)
    # Every length there is: each width group, and words that fill all 50 characters and more.
    words = ["x" * length for length in range(1, 60)] + random_words(37, generator)
    words += generator.choices(words, k=24)
    generator.shuffle(words)
    characters = characters_of(words).view(10, 12, NUM_CHARACTERS)
    for row in range(10):
        characters[row, 12 - row :] = 0
    assert_same_function(character_cnn(location, activation=activation), characters)


def test_words_are_encoded_in_trimmed_widths(monkeypatch):
    widths = []
    plain = word_encoder.max_over_windows

    def noting(characters, convolutions):
        widths.append((characters.size(0), characters.size(1)))
        return plain(characters, convolutions)

    monkeypatch.setattr(word_encoder, "max_over_windows", noting)
    words = characters_of(["a", "ab", "a" * 7, "a" * 12, "a" * 30])
    text_fields.character_cnn(character_cnn()).encode(words)
    # With a mark at each end and a window of the widest filter: 10, 11, 16, 21 and 39 columns.
    assert widths == [(2, 12), (1, 16), (1, 24), (1, NUM_CHARACTERS)]


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
    for none in (characters[:0], characters[:, :0]):
        distinct, index = distinct_words(none)
        assert torch.equal(distinct[index], none)


@pytest.mark.parametrize("shape", [(0, 4, NUM_CHARACTERS), (2, 0), (2, 3, 0), (2, 3, 1), (0, 3, 2)])
def test_batches_narrower_than_a_filter_are_padded(shape):
    """Without words, without characters, or with short words alone."""
    embedder = BasicTextFieldEmbedder({"elmo": character_cnn()})
    characters = torch.ones(shape, dtype=torch.long)
    widest = max(width for width, _ in FILTERS)
    padded = torch.zeros(*shape[:2], widest, dtype=torch.long)
    padded[..., : sum(shape[2:])] = 1
    vectors, expected = (
        embed_text_field(embedder, {"elmo": {"tokens": words}}) for words in (characters, padded)
    )
    assert vectors.shape == (*shape[:2], 10) and torch.allclose(vectors, expected, atol=1e-6)


def test_distinct_words_of_the_data_loader_beside_other_embedders():
    torch.manual_seed(2)
    modules = {"tokens": EmptyEmbedder(), "words": Embedding(3, 10), "elmo": character_cnn()}
    embedder = BasicTextFieldEmbedder(modules)
    table = torch.cat(
        [torch.zeros(1, NUM_CHARACTERS, dtype=torch.long), characters_of(["a", "bc", "def"])]
    )
    index = torch.tensor([[1, 3, 1], [2, 0, 0]])
    ids = {"tokens": torch.tensor([[5, 6, 5], [7, 0, 0]])}
    told_apart = {"elmo_tokens": table, "word_index": index}
    plain = {"tokens": ids, "words": ids, "elmo": {"elmo_tokens": table[index]}}
    expected = embedder(plain)
    for source in (plain, {**plain, "elmo": told_apart}):
        assert torch.equal(text_field_mask(source), index > 0)
        vectors = embed_text_field(embedder, source)
        assert torch.allclose(vectors[index > 0], expected[index > 0], atol=1e-5)


def test_other_embedders_see_occurrences():
    embedder = BasicTextFieldEmbedder({"words": Embedding(embedding_dim=3, num_embeddings=10)})
    rows = {"tokens": torch.tensor([0, 4, 5]), "word_index": torch.tensor([[1, 2, 1]])}
    vectors = embed_text_field(embedder, {"words": rows})
    assert torch.equal(vectors, embedder({"words": {"tokens": torch.tensor([[4, 5, 4]])}}))


# The cache of word vectors.


@pytest.fixture
def counted(monkeypatch):
    """How many words each call encoded."""
    calls = []
    plain = CharacterCnn.encode

    def counting(cnn, words, longest=None):
        calls.append(words.size(0))
        return plain(cnn, words, longest)

    monkeypatch.setattr(CharacterCnn, "encode", counting)
    return calls


def embedded(module, words):
    characters = characters_of(words).unsqueeze(0)
    return embed_text_field(BasicTextFieldEmbedder({"elmo": module}), {"elmo": {"t": characters}})


def plain(module, words):
    return module(characters_of(words).unsqueeze(0))


def test_frozen_words_are_encoded_once(counted):
    module = character_cnn().requires_grad_(False)
    first = ["a", "bc", "a", "def"]
    assert torch.allclose(embedded(module, first), plain(module, first), atol=1e-5)
    second = ["def", "new", "bc", "a" * 50]
    assert torch.allclose(embedded(module, second), plain(module, second), atol=1e-5)
    assert torch.allclose(embedded(module, second), plain(module, second), atol=1e-5)
    assert counted == [3, 2]


def test_weights_to_be_learned_are_never_cached(counted):
    module = character_cnn()
    for _ in range(2):
        assert embedded(module, ["a", "b"]).requires_grad
    assert counted == [2, 2]
    with torch.no_grad():
        for _ in range(2):
            assert not embedded(module, ["a", "b"]).requires_grad
    assert counted == [2, 2, 2]


def test_cache_follows_weights_and_precisions():
    torch.manual_seed(4)
    # A layer norm would undo the change.
    module = character_cnn(layer_norm=False).requires_grad_(False)
    words = ["a", "bc", "def"]
    exact = embedded(module, words)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = embedded(module, words)
    assert torch.allclose(rounded, exact, atol=0.1) and not torch.equal(rounded, exact)
    assert torch.equal(embedded(module, words), exact)
    module._encoder._module._projection.weight.data.mul_(2.0)
    changed = embedded(module, words)
    assert not torch.allclose(changed, exact, atol=1e-3)
    assert torch.allclose(changed, plain(module, words), atol=1e-5)
    assert embedded(module.double(), words).dtype == torch.float64


def test_archives_and_copies_know_nothing_of_the_cache():
    module = character_cnn().requires_grad_(False)
    names = set(module.state_dict())
    embedded(module, ["a"])
    assert set(module.state_dict()) == names
    assert module in text_fields._caches
    number = len(text_fields._caches)
    del module
    assert len(text_fields._caches) == number - 1


def test_gradients_are_the_same_to_the_bit_every_time():
    """Whatever the threads do: a run that is taken up again must end as one never stopped."""
    torch.manual_seed(0)
    module = character_cnn()
    characters = characters_of(random_words(20, random.Random(0), longest=8))
    characters = characters[torch.randint(20, (4, 4000))]
    embedder = BasicTextFieldEmbedder({"elmo": module})
    weights = torch.randn(4, 4000, 10)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = []
        for _ in range(8):
            module.zero_grad()
            vectors = embed_text_field(embedder, {"elmo": {"tokens": characters}})
            (vectors * weights).sum().backward()
            found.append(gradients(module))
    finally:
        torch.set_num_threads(threads)
    for again in found[1:]:
        assert all(torch.equal(again[name], gradient) for name, gradient in found[0].items())
