"""The two losses: their formulas, what the sampled one draws, and their layouts."""

import math

import pytest
import torch

from tests.nn.kernels.comparing import close, exact_losses, gradients, sampled_losses
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.softmax import SampledSoftmaxLoss, SoftmaxLoss, probabilities

NUM_WORDS, DIM = 50, 6


def sampled(num_words=NUM_WORDS, num_samples=10, sparse=False):
    return SampledSoftmaxLoss(num_words, DIM, num_samples, sparse)


MAKERS = {
    "full": lambda: SoftmaxLoss(NUM_WORDS, DIM),
    "dense": sampled,
    "sparse": lambda: sampled(sparse=True),
}


def made(layout):
    torch.manual_seed(0)
    loss = MAKERS[layout]()
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter)
    return loss


@pytest.mark.parametrize("layout", MAKERS)
@pytest.mark.parametrize("training", [False, True])
def test_losses_and_gradients(layout, training):
    loss = made(layout).train(training)
    embeddings = torch.randn(31, DIM, requires_grad=True)
    # Small ids, so that targets repeat and are among the samples.
    targets = torch.randint(12, (31,))
    torch.manual_seed(7)
    losses = loss.token_losses(embeddings, targets)
    weight, bias = loss.word_weights()
    expected = exact_losses(embeddings, weight, bias, targets)
    if training and layout != "full":
        torch.manual_seed(7)
        ids, threshold = loss.draw(embeddings.device)
        assert (targets.unsqueeze(-1) == ids).any()
        chances = torch.log1p(1 / (torch.cat([targets, ids]) + 1.0)) / math.log(NUM_WORDS + 1)
        log_counts = torch.log(-torch.expm1(-threshold.exp() * chances))
        expected = sampled_losses(embeddings, weight, bias, targets, ids, log_counts)
    assert torch.allclose(losses, expected, atol=1e-5)
    inputs = [embeddings, *loss.parameters()]
    for ours, theirs in zip(gradients(losses, inputs), gradients(expected, inputs)):
        assert close(ours, theirs, 1e-5)
    torch.manual_seed(7)
    assert torch.allclose(loss(embeddings, targets), losses.sum(), atol=1e-4)


def test_sparse_gradients_have_the_used_rows_alone():
    loss = made("sparse").train()
    embeddings, targets = torch.randn(4, DIM), torch.tensor([3, 49, 3, 20])
    torch.manual_seed(7)
    loss(embeddings, targets).backward()
    torch.manual_seed(7)
    ids, _ = loss.draw(targets.device)
    used = sorted({*ids.tolist(), *targets.tolist()})
    for parameter in loss.parameters():
        assert parameter.grad.is_sparse and parameter.grad.is_coalesced()
        assert parameter.grad.indices()[0].tolist() == used
        assert parameter.grad.shape == parameter.shape


def test_draws():
    """As by drawing one word after the other with replacement until so many are distinct."""
    num_words, num_samples, num_draws = 60, 20, 8000
    loss = sampled(num_words, num_samples)
    chances = torch.log1p(1 / (torch.arange(num_words) + 1.0).double()) / math.log(num_words + 1)
    torch.manual_seed(0)
    counts, simulated, weights = torch.zeros(3, num_words, dtype=torch.double)
    for _ in range(num_draws):
        ids, log_threshold = loss.draw(torch.device("cpu"))
        assert ids.unique().tolist() == ids.tolist() and ids.numel() == num_samples
        counts[ids] += 1
        weights[ids] += (-loss.log_expected_count(ids, log_threshold)).exp().double()
        one_by_one = torch.multinomial(chances, 1000, replacement=True)
        simulated[list(dict.fromkeys(one_by_one.tolist()))[:num_samples]] += 1
    shares = counts / num_draws
    errors = (2 * shares * (1 - shares) / num_draws).sqrt().clamp(min=1e-3)
    assert ((shares - simulated / num_draws).abs() < 5 * errors).all()
    # One over the chance of being drawn, given the threshold: a word's add up to the draws.
    assert torch.allclose(weights / num_draws, torch.ones(num_words).double(), atol=0.1)
    assert (weights / num_draws).mean().item() == pytest.approx(1.0, abs=0.01)


def test_probabilities_of_rare_words():
    """Where those of AllenNLP's loss are several per cent off."""
    exact = torch.log1p(1 / (torch.arange(800_000).double() + 1)) / math.log(800_001)
    ours = probabilities(800_000, torch.device("cpu"))
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("source", MAKERS)
@pytest.mark.parametrize("target", MAKERS)
def test_any_layout_loads_any_other(source, target):
    saved, loaded = made(source), MAKERS[target]()
    names = set(loaded.state_dict())
    loaded.load_state_dict(saved.state_dict())
    assert set(loaded.state_dict()) == names
    assert all(map(torch.equal, loaded.word_weights(), saved.word_weights()))


@pytest.mark.parametrize("num_samples", [0, 50, 60])
def test_number_of_samples_must_fit(num_samples):
    with pytest.raises(ConfigurationError, match="less than the number of words"):
        sampled(50, num_samples)
