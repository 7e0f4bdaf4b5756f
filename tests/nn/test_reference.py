"""The model as it runs against the model as it reads."""

import copy
import random
from itertools import product

import numpy as np
import pytest
import torch

from tests.nn.kernels.comparing import close, gradients
from transformer_elmo.inference.vectors import all_layers
from transformer_elmo.nn import reference
from transformer_elmo.nn.batch import HostLengths, WordBatch, longest_word
from transformer_elmo.nn.reference import ReferenceModel
from transformer_elmo.nn.transformer import PositionalEncoding
from transformer_elmo.pretrained.config import (
    CharactersConfig,
    ContextualizerConfig,
    ModelConfig,
    SoftmaxConfig,
    TextConfig,
    WordIdsConfig,
)
from transformer_elmo.text.word_table import character_ids

NUM_WORDS = 40
SOFTMAXES = [SoftmaxConfig(NUM_WORDS), *(SoftmaxConfig(NUM_WORDS, 8, s) for s in (False, True))]
WORDS = [None, *product(("relu", "tanh"), ("after_highway", "after_cnn"), (False, True))]


def config_of(words, activation, generator):
    """A model of random widths: of word ids, or of what `WORDS` says of characters."""
    dim = generator.choice([8, 16, 40])
    filters = [(width, generator.randint(1, 6)) for width in generator.sample(range(1, 8), 3)]
    of_words = (
        WordIdsConfig(NUM_WORDS + 1, dim)
        if words is None
        else CharactersConfig(
            *(262, generator.randint(1, 5), filters, generator.randint(0, 2), dim, *words)
        )
    )
    sizes = (generator.randint(1, 30), generator.randint(1, 3))
    contextualizer = ContextualizerConfig(dim, *sizes, 0.0, activation=activation)
    return ModelConfig(of_words, contextualizer, TextConfig(), generator.choice(SOFTMAXES))


def models_of(config):
    """The library's model and the reference, with the same random weights."""
    model = config.build().eval()
    for name, parameter in model.named_parameters():
        mean = 1.0 if name.endswith("gamma") else 0.0
        torch.nn.init.normal_(parameter, mean, 1.0 if name == "words.embedding.weight" else 0.3)
    plain = ReferenceModel(config).eval()
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    return model, plain


def batch_of(lengths, generator, by_ids=False, padding=0):
    """Words of all lengths, or of characters that no word has; and what the reference takes."""
    if generator.random() < 0.5:
        longest = generator.choice([5, 12, 60])
        sizes = (generator.choice([longest, generator.randint(1, longest)]) for _ in range(40))
        characters = character_ids(["".join(generator.choices("abc", k=n)) + "é" for n in sizes])
    else:
        characters = np.random.default_rng(generator.randrange(99)).integers(
            0, 3, (NUM_WORDS, generator.randint(7, 50))
        )
    table = torch.from_numpy(np.concatenate([np.zeros_like(characters[:1]), characters]))
    index = torch.zeros(len(lengths), max(lengths, default=0) + padding, dtype=torch.long)
    for row, length in enumerate(lengths):
        index[row, :length] = torch.randint(1, NUM_WORDS + 1, (length,))
    facts = HostLengths(np.array(lengths, dtype=np.int64), longest_word(characters))
    batch = WordBatch(table, index, index, facts if generator.random() < 0.5 else HostLengths())
    return batch, (index if by_ids else table[index], torch.tensor(lengths).long(), index)


def layers_and_losses(model, batch):
    encoded = model.encode(batch)
    words = encoded.word_vectors * encoded.mask.unsqueeze(-1)
    return [torch.stack(all_layers(words, encoded.layers)), *model.losses(encoded, batch.token_ids)]


def layers_and_losses_of(plain, inputs):
    """Of the reference."""
    return [plain(*inputs[:2]), *plain.losses(*inputs)]


def flat(results):
    return torch.cat([result.flatten() for result in results])


@pytest.mark.parametrize("activation", ["relu", "relu_squared"])
@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_same_function(words, activation, seed):
    generator = random.Random(f"{seed} {words} {activation}")
    torch.manual_seed(generator.randrange(2**30))
    model, plain = models_of(config_of(words, activation, generator))
    # Much padding and little, sentences of one word and of none, and batches without a word.
    lengths = [[9, 0, 1, 4], [9, 9, 8, 9, 9], [1], [12, 3, 1], [], [0, 0]][seed]
    batch, inputs = batch_of(lengths, generator, words is None, padding=seed // 2)
    wanted = layers_and_losses_of(plain, inputs)
    of_plain, exact = (
        gradients(flat(layers_and_losses_of(m, inputs)), list(m.parameters()))
        for m in (plain, copy.deepcopy(plain).double())
    )
    with torch.no_grad():
        # From weights that are prepared, and from vectors that are kept.
        found = [layers_and_losses(model, batch) for _ in range(2)]
    for training in (False, True):
        model.train(training).softmax.eval()
        found.append(layers_and_losses(model, batch))
        names, parameters = zip(*model.named_parameters())
        ours = gradients(flat(found[-1]), parameters)
        for name, found_one, plain_one, exact_one in zip(names, ours, of_plain, exact):
            # A key's bias adds the same to all scores: its gradient is nothing but rounding.
            tolerance = 1e-2 if "linears.1.bias" in name else 1e-4
            rounding = float((plain_one - exact_one).abs().max())
            assert close(found_one, exact_one, tolerance + rounding), name
    for results in found:
        for ours, theirs in zip(results, wanted):
            assert close(ours, theirs, 1e-5)


def small():
    words = CharactersConfig(262, 4, [(1, 4), (3, 8)], 1, 16, do_layer_norm=True)
    contextualizer = ContextualizerConfig(16, 24, 2, dropout=0.0)
    return ModelConfig(words, contextualizer, TextConfig(), SOFTMAXES[0])


DROPOUTS = [n for n, m in ReferenceModel(small()).named_modules() if type(m) is torch.nn.Dropout]


@pytest.mark.parametrize("name", DROPOUTS)
def test_places_of_dropout(name):
    """Where one of them leaves nothing, the same is missing."""
    model, plain = models_of(small())
    batch, inputs = batch_of([5, 2, 5], random.Random(2))
    before = flat(layers_and_losses_of(plain, inputs))
    for either in (model, plain):
        either.train().get_submodule(name).p = 1.0
        either.softmax.eval()
    wanted = flat(layers_and_losses_of(plain, inputs))
    assert close(flat(layers_and_losses(model, batch)), wanted, 1e-5)
    assert not close(before, wanted, 1e-2)


def test_beyond_the_table_of_positions(monkeypatch):
    ours, theirs = (
        either.contextualizer._position.positional_encoding
        for either in (small().build(), ReferenceModel(small()))
    )
    assert ours.shape == (1, 5000, 16) and torch.allclose(ours, theirs, atol=1e-6)
    monkeypatch.setattr(reference, "NUM_POSITIONS", 8)
    monkeypatch.setattr(PositionalEncoding.__init__, "__defaults__", (8,))
    model, plain = models_of(small())
    for either in (model, plain):
        # Not those of the formula, so that it matters which are taken where.
        either.contextualizer._position.positional_encoding += 1.0
    batch, inputs = batch_of([30, 8, 9, 3], random.Random(1))
    assert close(
        flat(layers_and_losses(model, batch)), flat(layers_and_losses_of(plain, inputs)), 1e-5
    )
