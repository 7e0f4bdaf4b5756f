"""The two losses: their formulas, what the sampled one draws, and their layouts."""

import math

import pytest
import torch

from tests.nn.kernels.comparing import exact_losses, sampled_losses
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.language_model import losses_of_directions
from transformer_elmo.nn.softmax import SampledSoftmaxLoss, SoftmaxLoss, probabilities

DIM = 6


def sampled(num_words=50, num_samples=10, sparse=False, dim=DIM):
    loss = SampledSoftmaxLoss(num_words, dim, num_samples, sparse)
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter)
    return loss


def full(num_words=50):
    loss = SoftmaxLoss(num_words, DIM)
    torch.nn.init.normal_(loss.softmax_b)
    return loss


def gradients(losses, loss, embeddings):
    """Of a weighted sum of the losses, dense."""
    weights = torch.linspace(-1.0, 2.0, losses.numel())
    found = torch.autograd.grad((losses * weights).sum(), [embeddings, *loss.parameters()])
    return [gradient.to_dense() for gradient in found]


@pytest.mark.parametrize("make", [full, sampled, lambda: sampled(sparse=True)])
@pytest.mark.parametrize("training", [False, True])
def test_losses_and_gradients(make, training):
    torch.manual_seed(0)
    loss = make().train(training)
    embeddings = torch.randn(31, DIM, requires_grad=True)
    # Small ids, so that targets repeat and are among the samples.
    targets = torch.randint(12, (31,))
    torch.manual_seed(7)
    losses = loss.token_losses(embeddings, targets)
    if training and isinstance(loss, SampledSoftmaxLoss):
        torch.manual_seed(7)
        ids, threshold = loss.draw(embeddings.device)
        assert (targets.unsqueeze(-1) == ids).any()
        chances = torch.log1p(1 / (torch.cat([targets, ids]) + 1.0)) / math.log(51)
        log_counts = torch.log(-torch.expm1(-threshold.exp() * chances))
        expected = sampled_losses(embeddings, *loss.word_weights(), targets, ids, log_counts)
    else:
        expected = exact_losses(embeddings, loss.word_weights()[0], loss.word_weights()[1], targets)
    assert torch.allclose(losses, expected, atol=1e-5)
    for ours, theirs in zip(
        gradients(losses, loss, embeddings), gradients(expected, loss, embeddings)
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)
    torch.manual_seed(7)
    assert torch.allclose(loss(embeddings, targets), losses.sum(), atol=1e-4)


def test_sparse_gradients_have_the_used_rows_alone():
    loss = sampled(sparse=True).train()
    embeddings = torch.randn(4, DIM, requires_grad=True)
    targets = torch.tensor([3, 49, 3, 20])
    torch.manual_seed(7)
    loss(embeddings, targets).backward()
    torch.manual_seed(7)
    ids, _ = loss.draw(embeddings.device)
    used = sorted({*ids.tolist(), *targets.tolist()})
    for parameter in loss.parameters():
        assert parameter.grad.is_sparse and parameter.grad.is_coalesced()
        assert parameter.grad.indices()[0].tolist() == used
        assert parameter.grad.shape == parameter.shape


def test_one_sample_that_is_the_target():
    loss = sampled(num_words=2, num_samples=1).train()
    embeddings = torch.randn(8, DIM, requires_grad=True)
    losses = loss.token_losses(embeddings, torch.tensor([0, 1] * 4))
    losses.sum().backward()
    assert losses.isfinite().all() and (losses >= 0).all() and (losses == 0).any()
    assert embeddings.grad.isfinite().all()


def test_draws():
    loss = sampled(num_words=200, num_samples=30)
    torch.manual_seed(0)
    draws = 3000
    counts = torch.zeros(200, dtype=torch.double)
    for _ in range(draws):
        ids, _ = loss.draw(torch.device("cpu"))
        assert ids.unique().tolist() == ids.tolist()
        assert ids.min() >= 0 and ids.max() < 200 and ids.numel() == 30
        counts[ids] += 1
    frequencies = counts / draws
    assert (frequencies[:-1] - frequencies[1:]).mean() > 0
    # Drawing one after the other with replacement until 30 are distinct, simulated independently.
    probabilities = torch.log1p(1 / (torch.arange(200) + 1.0).double()) / math.log(201)
    simulated = torch.zeros(200, dtype=torch.double)
    for _ in range(draws):
        seen = torch.unique_consecutive(torch.multinomial(probabilities, 400, replacement=True))
        simulated[list(dict.fromkeys(seen.tolist()))[:30]] += 1
    errors = (2 * frequencies * (1 - frequencies) / draws).sqrt().clamp(min=1e-3)
    assert ((frequencies - simulated / draws).abs() < 5 * errors).all()


def test_weights_of_samples_are_unbiased():
    """One over the chance of being drawn, given the threshold: a word's add up to the draws."""
    loss = sampled(num_words=60, num_samples=20)
    torch.manual_seed(0)
    weights = torch.zeros(60, dtype=torch.double)
    draws = 8000
    for _ in range(draws):
        ids, log_threshold = loss.draw(torch.device("cpu"))
        weights[ids] += (-loss.log_expected_count(ids, log_threshold)).exp().double()
    assert torch.allclose(weights / draws, torch.ones(60).double(), atol=0.1)
    assert (weights / draws).mean().item() == pytest.approx(1.0, abs=0.01)


def test_probabilities_of_rare_words():
    """Where those of AllenNLP's loss are several per cent off."""
    num_words = 800_000
    exact = torch.log1p(1 / (torch.arange(num_words).double() + 1)) / math.log(num_words + 1)
    ours = probabilities(num_words, torch.device("cpu"))
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), exact, rtol=1e-6, atol=0)
    assert ours.double().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_one_draw_serves_several_directions():
    torch.manual_seed(0)
    loss = sampled().train()
    embeddings = [torch.randn(n, DIM) for n in (4, 7)]
    targets = [torch.randint(50, (n,)) for n in (4, 7)]
    torch.manual_seed(2)
    losses = losses_of_directions(loss, embeddings, targets)
    for vectors, ids, got in zip(embeddings, targets, losses):
        torch.manual_seed(2)
        assert torch.allclose(got, loss.token_losses(vectors, ids), atol=1e-5)


def test_half_precision_weights():
    loss = sampled().to(torch.float16).train()
    embeddings = torch.randn(9, DIM).half().requires_grad_()
    losses = loss.token_losses(embeddings, torch.arange(9))
    losses.sum().backward()
    assert losses.dtype == torch.float32 and losses.isfinite().all()
    assert embeddings.grad.dtype == torch.float16 and embeddings.grad.isfinite().all()


# Layouts.


@pytest.mark.parametrize("source", ["full", "dense", "sparse"])
@pytest.mark.parametrize("target", ["full", "dense", "sparse"])
def test_any_layout_loads_any_other(source, target):
    make = {"full": full, "dense": sampled, "sparse": lambda: sampled(sparse=True)}
    saved, loaded = make[source](), make[target]()
    names = set(loaded.state_dict())
    result = loaded.load_state_dict(saved.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert set(loaded.state_dict()) == names
    for ours, theirs in zip(loaded.word_weights(), saved.word_weights()):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("num_samples", [0, 50, 60])
def test_number_of_samples_must_fit(num_samples):
    with pytest.raises(ConfigurationError, match="less than the number of words"):
        SampledSoftmaxLoss(50, DIM, num_samples)
