import math
from typing import Any

import pytest
import torch
from allennlp.common import Params
from allennlp.modules.layer_norm import LayerNorm as AllenNLPLayerNorm
from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
from torch.func import functional_call

from tests.device import pretend
from transformer_elmo import BidirectionalLanguageModelTransformer
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn import reference
from transformer_elmo.nn.batch import PackedBatch
from transformer_elmo.nn.config import ContextualizerConfig
from transformer_elmo.nn.transformer import BidirectionalTransformer, LayerNorm

DIM = 16

ACTIVATIONS = ("relu", "relu_squared")


def transformer(return_all_layers=False, num_layers=2, dropout=0.1, activation="relu"):
    torch.manual_seed(0)
    encoder = BidirectionalLanguageModelTransformer(
        input_dim=DIM,
        hidden_dim=24,
        num_layers=num_layers,
        dropout=dropout,
        return_all_layers=return_all_layers,
        activation=activation,
    )
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
        if len(words):
            outputs = functional_call(plain, weights, (words[None], torch.tensor([len(words)])))
            layers[:, row, present] = torch.cat(outputs)
    return layers


def masks():
    lengths = torch.tensor([7, 1, 4, 0, 6])
    ragged = torch.arange(7) < lengths.unsqueeze(-1)
    torch.manual_seed(3)
    nearly_full = torch.ones(5, 9, dtype=torch.bool)
    nearly_full[2, 7:] = False
    return {
        "full": torch.ones(3, 5, dtype=torch.bool),
        "ragged, with an empty row": ragged,
        "padding on the left": ragged.flip(1),
        "holes": torch.rand(6, 8) < 0.6,
        "little padding": nearly_full,
        "little padding, a hole": nearly_full.flip(1) & (torch.arange(45).view(5, 9) != 40),
        "one token": torch.ones(1, 1, dtype=torch.bool),
        "nothing but padding": torch.zeros(2, 3, dtype=torch.bool),
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_reference_for_any_mask(activation, name):
    mask = masks()[name]
    encoder = transformer(return_all_layers=True, activation=activation)
    vectors = torch.randn(*mask.shape, DIM)
    expected = by_reference(encoder, vectors, mask, activation)
    layers = encoder(vectors, mask)
    assert len(layers) == 2
    for layer, wanted in zip(layers, expected):
        assert torch.allclose(layer, wanted, atol=1e-5)
        assert not layer[~mask].any()

    encoder._return_all_layers = False
    assert torch.equal(encoder(vectors, mask), layers[-1])


def test_both_ways_of_holding_padding_are_covered():
    padded = {PackedBatch(mask).forward.padded for mask in masks().values()}
    assert padded == {True, False}


@pytest.mark.parametrize("name", ["ragged, with an empty row", "little padding, a hole", "full"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_equal_the_references(activation, name, training):
    mask = masks()[name]
    # In training mode without dropout, attention takes another way.
    encoder = transformer(dropout=0.0, activation=activation).train(training)
    vectors = torch.randn(*mask.shape, DIM, requires_grad=True)
    weights = torch.randn(*mask.shape, 2 * DIM)
    wanted = torch.autograd.grad(
        (by_reference(encoder, vectors, mask, activation)[-1] * weights).sum(),
        [vectors, *encoder.parameters()],
    )
    got = torch.autograd.grad(
        (encoder(vectors, mask) * weights).sum(), [vectors, *encoder.parameters()]
    )
    for ours, theirs in zip(got, wanted):
        assert torch.allclose(ours, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_direction_sees_the_other_side(activation):
    encoder = transformer(activation=activation)
    mask = torch.ones(1, 6, dtype=torch.bool)
    vectors = torch.randn(1, 6, DIM)
    changed = vectors.clone()
    changed[0, 3] = torch.randn(DIM)
    difference = (encoder(vectors, mask) - encoder(changed, mask))[0].abs()
    forward, backward = difference.split(DIM, -1)
    assert forward[:3].max() < 1e-6 < forward[3:].max()
    assert backward[4:].max() < 1e-6 < backward[:4].max()


def test_padding_never_matters():
    encoder = transformer()
    vectors = torch.randn(2, 5, DIM)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    alone = encoder(vectors[1:, :3], mask[1:, :3])
    vectors[1, 3:] = math.nan
    assert torch.allclose(encoder(vectors, mask)[1:, :3], alone, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_layer_norm_is_allennlps(scale):
    ours, theirs = LayerNorm(DIM), AllenNLPLayerNorm(DIM)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    vectors = torch.randn(5, DIM) * scale
    assert torch.allclose(ours(vectors), theirs(vectors), atol=1e-4, rtol=1e-4)


def test_layer_norm_of_a_constant_is_finite():
    norm = LayerNorm(DIM)
    vectors = torch.full((2, DIM), 3.0, requires_grad=True)
    output = norm(vectors)
    assert torch.equal(output, torch.zeros(2, DIM))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_autocast(activation):
    encoder = transformer(dropout=0.1, activation=activation)
    mask = masks()["ragged, with an empty row"]
    vectors = torch.randn(*mask.shape, DIM)
    exact = encoder(vectors, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(encoder(vectors, mask).float(), exact, atol=0.15)
        loss = encoder.train()(vectors, mask).float().pow(2).sum()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in encoder.parameters())
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_errors():
    with pytest.raises(ConfigurationError, match="multiple of the number of attention heads"):
        BidirectionalLanguageModelTransformer(12, 8, 1)
    with pytest.raises(ConfigurationError, match="at least 1"):
        BidirectionalLanguageModelTransformer(16, 8, 0)
    with pytest.raises(ConfigurationError, match="activation must be one of relu, relu_squared"):
        BidirectionalLanguageModelTransformer(16, 8, 1, activation="gelu")


def test_a_squared_relu_changes_neither_first_weights_nor_their_names():
    models = []
    for activation in ACTIVATIONS:
        torch.manual_seed(0)
        models.append(BidirectionalLanguageModelTransformer(DIM, 24, 2, activation=activation))
    vectors, mask = torch.randn(2, 5, DIM), torch.ones(2, 5, dtype=torch.bool)
    weights = [model.state_dict() for model in models]
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    one, other = (model.eval()(vectors, mask) for model in models)
    assert not torch.allclose(one, other, atol=1e-3)


def test_on_another_device():
    """No tensor is left on the CPU, and nothing makes the host wait."""
    encoder = transformer(dropout=0.0, activation="relu_squared").train()
    mask = masks()["ragged, with an empty row"]
    vectors = torch.randn(*mask.shape, DIM)
    lengths = mask.sum(-1).numpy()
    expected = BidirectionalTransformer.forward(encoder, vectors, mask, lengths)[-1]
    with pretend.pretend_device():
        there = pretend.moved(encoder)
        arguments: Any = pretend.moved((vectors, mask))
        pretend.waits.clear()
        result: Any = BidirectionalTransformer.forward(there, arguments[0], arguments[1], lengths)[
            -1
        ]
        result.sum().backward()
        assert not pretend.waits
    assert torch.allclose(result.held, expected, atol=1e-5)


def test_the_peer_does_not_know_other_activations():
    """So that it never opens such an archive with other numbers."""
    peer = pytest.importorskip(
        "allennlp_models.lm.modules.seq2seq_encoders.bidirectional_lm_transformer"
    )
    section = {"input_dim": DIM, "hidden_dim": 24, "num_layers": 2, "activation": "relu_squared"}
    kind = "bidirectional_language_model_transformer"
    assert Seq2SeqEncoder.from_params(Params({**section, "type": kind}))
    with pytest.raises(TypeError, match="unexpected keyword argument 'activation'"):
        peer.BidirectionalLanguageModelTransformer(**section)


@pytest.mark.parametrize("return_all_layers", [False, True])
def test_equals_the_peer(return_all_layers):
    peer = pytest.importorskip(
        "allennlp_models.lm.modules.seq2seq_encoders.bidirectional_lm_transformer"
    )
    ours = transformer(return_all_layers)
    theirs = peer.BidirectionalLanguageModelTransformer(
        DIM, 24, 2, return_all_layers=return_all_layers
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    mask = torch.arange(7) < torch.tensor([7, 1, 4, 6]).unsqueeze(-1)
    vectors = torch.randn(*mask.shape, DIM)
    got, wanted = ours(vectors, mask), theirs(vectors, mask)
    if not return_all_layers:
        got, wanted = [got], [wanted]
    for layer, expected in zip(got, wanted):
        assert torch.allclose(layer[mask], expected[mask], atol=1e-5)
    for got_mask, wanted_mask in zip(
        ours.get_attention_masks(mask), theirs.get_attention_masks(mask)
    ):
        assert torch.equal(got_mask, wanted_mask)
