import math

import pytest
import torch
from allennlp.modules.sampled_softmax_loss import SampledSoftmaxLoss as AllenNLPSampledSoftmaxLoss

from tests.nn.kernels.comparing import exact_losses, sampled_losses
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels import softmax as token_losses
from transformer_elmo.nn.language_model import losses_of_directions
from transformer_elmo.nn.softmax import SampledSoftmaxLoss, SoftmaxLoss

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


def plain_losses(loss, embeddings, targets):
    weight, bias = loss.word_weights()
    return exact_losses(embeddings, weight, bias, targets)


def gradients(losses, loss, embeddings):
    """Of a weighted sum of the losses, dense."""
    weights = torch.linspace(-1.0, 2.0, losses.numel())
    found = torch.autograd.grad((losses * weights).sum(), [embeddings, *loss.parameters()])
    return [gradient.to_dense() for gradient in found]


# The exact loss.


@pytest.mark.parametrize("make", [full, sampled, lambda: sampled(sparse=True)])
@pytest.mark.parametrize("memory", [1, 40, 2**20])
def test_exact_loss_in_blocks(monkeypatch, make, memory):
    torch.manual_seed(0)
    monkeypatch.setattr(token_losses, "CPU_LOGITS_IN_MEMORY", memory)
    monkeypatch.setattr(token_losses, "TOKENS_PER_BLOCK", 4)
    loss = make().eval()
    embeddings = torch.randn(11, DIM, requires_grad=True)
    targets = torch.randint(50, (11,))
    losses = loss.token_losses(embeddings, targets)
    expected = plain_losses(loss, embeddings, targets)
    assert torch.allclose(losses, expected, atol=1e-5)
    for ours, theirs in zip(
        gradients(losses, loss, embeddings), gradients(expected, loss, embeddings)
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(loss(embeddings, targets), expected.sum(), atol=1e-4)


def test_exact_loss_in_bounded_memory(monkeypatch):
    """No tensor is larger than the bound, whatever the batch and the vocabulary."""
    monkeypatch.setattr(token_losses, "CPU_LOGITS_IN_MEMORY", 500)
    monkeypatch.setattr(token_losses, "TOKENS_PER_BLOCK", 20)
    sizes = []
    plain = token_losses.product

    def noting(*args, **kwargs):
        result = plain(*args, **kwargs)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(token_losses, "product", noting)
    loss = full(300).eval()
    with torch.no_grad():
        loss.token_losses(torch.randn(90, DIM), torch.randint(300, (90,)))
    assert max(sizes) == 500
    assert sum(sizes) == 90 * 300


def test_exact_loss_of_large_logits():
    loss = full().eval()
    embeddings = torch.randn(5, DIM) * 1000
    targets = torch.arange(5)
    losses = loss.token_losses(embeddings, targets)
    assert losses.isfinite().all()
    assert torch.allclose(losses, plain_losses(loss, embeddings, targets), rtol=1e-5)


def test_no_tokens():
    for loss in (full(), sampled(), sampled(sparse=True)):
        for training in (False, True):
            embeddings = torch.zeros(0, DIM, requires_grad=True)
            losses = loss.train(training).token_losses(embeddings, torch.zeros(0).long())
            assert losses.shape == (0,)


@pytest.mark.parametrize("make", [full, sampled, lambda: sampled(sparse=True)])
@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_keeps_losses_and_gradients_in_float32(make, training):
    torch.manual_seed(0)
    loss = make().train(training)
    embeddings = torch.randn(11, DIM, requires_grad=True)
    targets = torch.randint(50, (11,))
    torch.manual_seed(1)
    exact = loss.token_losses(embeddings, targets)
    wanted = gradients(exact, loss, embeddings)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss.token_losses(embeddings, targets)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, atol=0.1)
    for ours, theirs in zip(gradients(rounded, loss, embeddings), wanted):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, theirs, atol=0.02 * theirs.abs().max())


# The sampled loss.


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("memory", [1, 25, 2**20])
def test_sampled_loss_equals_the_formula(monkeypatch, sparse, memory):
    torch.manual_seed(0)
    monkeypatch.setattr(token_losses, "CPU_LOGITS_IN_MEMORY", memory)
    loss = sampled(sparse=sparse).train()
    embeddings = torch.randn(31, DIM, requires_grad=True)
    # Small ids, so that targets repeat and are among the samples.
    targets = torch.randint(12, (31,))
    torch.manual_seed(7)
    losses = loss.token_losses(embeddings, targets)
    torch.manual_seed(7)
    ids, threshold = loss.draw(embeddings.device)
    assert (targets.unsqueeze(-1) == ids).any()

    def log_counts(ids):
        chances = torch.log1p(1 / (ids + 1.0)) / math.log(51)
        return torch.log(-torch.expm1(-threshold.exp() * chances))

    weight, bias = loss.word_weights()
    expected = sampled_losses(
        embeddings, weight, bias, targets, log_counts(targets), ids, log_counts(ids)
    )
    assert torch.allclose(losses, expected, atol=1e-5)
    for ours, theirs in zip(
        gradients(losses, loss, embeddings), gradients(expected, loss, embeddings)
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


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


def test_gradients_accumulate_over_steps():
    loss = sampled(sparse=True).train()
    dense = sampled().train()
    dense.load_state_dict(loss.state_dict())
    for module in (loss, dense):
        torch.manual_seed(3)
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            embeddings = torch.randn(5, DIM, generator=generator)
            module(embeddings, torch.randint(50, (5,), generator=generator)).backward()
    assert torch.allclose(loss.softmax_w.weight.grad.to_dense(), dense.softmax_w.grad, atol=1e-5)


def test_frozen_words():
    loss = sampled().train().requires_grad_(False)
    embeddings = torch.randn(5, DIM, requires_grad=True)
    loss(embeddings, torch.arange(5)).backward()
    assert embeddings.grad.isfinite().all()


def test_one_sample_that_is_the_target():
    loss = sampled(num_words=2, num_samples=1).train()
    embeddings = torch.randn(8, DIM, requires_grad=True)
    losses = loss.token_losses(embeddings, torch.tensor([0, 1] * 4))
    losses.sum().backward()
    assert losses.isfinite().all() and (losses >= 0).all() and (losses == 0).any()
    assert embeddings.grad.isfinite().all()


def test_evaluation_is_exact():
    loss = sampled().eval()
    embeddings, targets = torch.randn(5, DIM), torch.arange(5)
    expected = plain_losses(loss, embeddings, targets)
    assert torch.allclose(loss.token_losses(embeddings, targets), expected, atol=1e-5)


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
    # Given the first loser's arrival time, one over the chance of being drawn weights each drawn
    # word without bias: the weights of a word add up to the number of draws.
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
    num_words = 800_000
    loss = SampledSoftmaxLoss(num_words, 1, 8)
    ids = torch.arange(num_words)
    exact = torch.log1p(1 / (ids.double() + 1)) / math.log(num_words + 1)
    ours = loss.probability(ids)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), exact, rtol=1e-6, atol=0)
    assert ours.double().sum().item() == pytest.approx(1.0, abs=1e-6)
    # What AllenNLP's loss does with the ids of a batch is several per cent off there.
    rare = ids[-10_000:].float()
    theirs = torch.log((rare + 2.0) / (rare + 1.0)) / math.log(num_words + 1)
    assert ((theirs.double() / exact[-10_000:]) - 1).abs().max() > 0.01


def mean_gradient(loss, embeddings, targets, draws):
    total = torch.zeros_like(embeddings)
    for _ in range(draws):
        total += torch.autograd.grad(loss(embeddings, targets), embeddings)[0]
    return total / draws


@pytest.mark.parametrize("num_words", [300, 20_000])
def test_gradient_is_as_near_the_full_one_as_allennlps(num_words):
    """The same measure for both: the mean gradient's distance from that of the full softmax."""
    torch.manual_seed(0)
    ours = SampledSoftmaxLoss(num_words, DIM, 100).train()
    theirs = AllenNLPSampledSoftmaxLoss(num_words, DIM, 100).train()
    theirs.load_state_dict(ours.state_dict())
    embeddings = torch.randn(20, DIM, requires_grad=True)
    targets = torch.randint(num_words, (20,))
    wanted = torch.autograd.grad(plain_losses(ours, embeddings, targets).sum(), embeddings)[0]
    distances = []
    for loss in (ours, theirs):
        torch.manual_seed(1)
        got = mean_gradient(loss, embeddings, targets, 300)
        distances.append(((got - wanted).norm() / wanted.norm()).item())
    assert distances[0] < 0.1
    assert distances[0] < 1.2 * distances[1] + 0.01


def test_gradient_is_nearer_where_allennlps_is_wrong():
    """
    Near id 800,000, AllenNLP's float32 ratio `(id + 2) / (id + 1)` has few values left, so that
    expected counts, and with them the gradients, are several per cent off.
    """
    num_words, num_samples = 800_000, 8
    loss = SampledSoftmaxLoss(num_words, 1, num_samples).train()
    theirs = AllenNLPSampledSoftmaxLoss(num_words, 1, num_samples).train()
    targets = torch.arange(num_words - 2000, num_words)
    exact = torch.log1p(1 / (targets.double() + 1)) / math.log(num_words + 1)
    tries = 9.0
    # What either adds to a target's logit, for the same number of tries.
    wanted = (-torch.expm1(tries * torch.log1p(-exact))).log()
    _, their_counts, _ = theirs.log_uniform_candidate_sampler(
        targets, choice_func=lambda *_: (torch.arange(num_samples).numpy(), int(tries))
    )
    our_counts = loss.log_expected_count(targets, torch.tensor(math.log(tries)))
    our_error = (our_counts.double() - wanted).abs().max().item()
    their_error = (their_counts.double().log() - wanted).abs().max().item()
    assert our_error < 1e-4
    assert their_error > 0.01


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
