"""The contextualizer for any mask, holes among them, which the reference does not know."""

import math

import pytest
import torch
from torch.func import functional_call

from tests.nn.kernels.comparing import close, gradients
from transformer_elmo import BidirectionalLanguageModelTransformer
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn import reference
from transformer_elmo.nn.config import ContextualizerConfig

DIM = 16


def transformer(activation="relu"):
    torch.manual_seed(0)
    options = {"return_all_layers": True, "activation": activation}
    encoder = BidirectionalLanguageModelTransformer(DIM, 24, 2, dropout=0.0, **options)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def by_reference(encoder, vectors, mask, activation):
    """Every layer's output, a sentence at a time."""
    config = ContextualizerConfig(DIM, 24, encoder.num_layers, 0.0, activation=activation)
    plain = reference.BidirectionalTransformer(config)
    weights = dict(encoder.named_parameters())
    places = plain._position(torch.arange(mask.size(1)))
    layers = torch.zeros(encoder.num_layers, *mask.shape, 2 * DIM)
    for row, present in enumerate(mask):
        # The reference knows no holes: its first places, as if they were where these words are.
        words = vectors[row, present] + places[present] - places[: int(present.sum())]
        outputs = functional_call(plain, weights, (words[None], torch.tensor([len(words)])))
        layers[:, row, present] = torch.cat(outputs)
    return layers


RAGGED = torch.arange(7) < torch.tensor([7, 1, 4, 0, 6]).unsqueeze(-1)
MASKS = {
    "full": torch.ones(3, 5, dtype=torch.bool),
    "ragged, with an empty row": RAGGED,
    "padding on the left": RAGGED.flip(1),
    "holes": (torch.arange(48).view(6, 8) * 7) % 5 < 3,
    "little padding, a hole": torch.arange(45).view(5, 9) != 40,
    "one token": torch.ones(1, 1, dtype=torch.bool),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
@pytest.mark.parametrize("activation", ["relu", "relu_squared"])
def test_equals_the_reference(activation, mask):
    encoder = transformer(activation)
    vectors = torch.randn(*mask.shape, DIM)
    # Nothing sees padding.
    vectors[~mask] = math.nan
    inputs = [vectors.requires_grad_(), *encoder.parameters()]
    expected = by_reference(encoder, vectors, mask, activation)
    wanted = gradients(expected[-1], inputs)
    # In training mode without dropout, attention takes another way.
    for training in (False, True):
        layers = encoder.train(training)(vectors, mask)
        for layer, of_reference in zip(layers, expected, strict=True):
            assert torch.allclose(layer, of_reference, atol=1e-5)
            assert not layer[~mask].any()
        for ours, theirs in zip(gradients(layers[-1], inputs), wanted):
            assert close(ours, theirs, 1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((12, 8, 1), "multiple of the number of attention heads"),
        ((16, 8, 1, 0.1, None, False, "gelu"), "activation must be one of relu, relu_squared"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        BidirectionalLanguageModelTransformer(*arguments)
