import copy
from typing import Any

import pytest
import torch
from allennlp.common import Params
from allennlp.training.optimizers import DenseSparseAdam as AllenNLPDenseSparseAdam
from allennlp.training.optimizers import Optimizer

from tests.small_lm import random_sentences, tensors
from transformer_elmo import DenseSparseAdam, MuonSparseAdam
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.optimizers import orthogonalized

MATRICES = [f"{name}.weight" for name in ("square", "more", "hidden", "result")]


class Words(torch.nn.Module):
    """Sparse rows, matrices of several shapes, vectors, and what never gets a gradient."""

    def __init__(self):
        super().__init__()
        self.vectors = torch.nn.Embedding(20, 6, sparse=True)
        self.biases = torch.nn.Embedding(20, 1, sparse=True)
        self.square, self.more, self.idle = (torch.nn.Linear(6, 6) for _ in range(3))
        self.hidden, self.result = torch.nn.Linear(6, 16), torch.nn.Linear(16, 6)
        self.scalar = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, ids):
        rows = self.more(self.square(self.vectors(ids) * self.scalar + self.biases(ids)))
        return self.result(self.hidden(rows).relu()).pow(3).mean()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Words()


def adam_of(model, **settings):
    return DenseSparseAdam(list(model.named_parameters()), **settings)


def muon_of(model, **settings):
    settings = {"muon": ["square", "more", "idle", "hidden", "result"], "lr": 0.01, **settings}
    return MuonSparseAdam(list(model.named_parameters()), **settings)


def steps(model, optimizer, number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        optimizer.zero_grad()
        # Repeated ids, so that the sparse gradients have repeated rows.
        model(torch.randint(20, (7,), generator=generator)).backward()
        optimizer.step()


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 0.02, "betas": (0.5, 0.8), "eps": 1e-3},
        {"betas": (0.0, 0.99)},
        {"parameter_groups": [[["vectors"], {"lr": 0.05}], [["more"], {"betas": [0.7, 0.8]}]]},
    ],
)
@pytest.mark.parametrize("goes_on", ["both", "ours", "theirs"])
def test_adam_is_allennlps(model, settings, goes_on):
    """Numbers and state, so that one can go on from the other."""
    other = copy.deepcopy(model)
    ours = adam_of(model, **copy.deepcopy(settings))
    theirs = AllenNLPDenseSparseAdam(list(other.named_parameters()), **copy.deepcopy(settings))
    for seed in range(3):
        steps(model, ours, 4, seed)
        steps(other, theirs, 4, seed)
        for (name, p), q in zip(model.named_parameters(), other.parameters()):
            torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5, msg=name)
        if goes_on == "ours":
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        elif goes_on == "theirs":
            theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p, q in zip(model.parameters(), other.parameters()):
        assert set(ours.state[p]) == set(theirs.state[q])
        for key, value in ours.state[p].items():
            found, expected = (torch.as_tensor(v).float() for v in (value, theirs.state[q][key]))
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "key, values, message",
    [
        ("lr", [-1.0, float("nan"), True, "high"], "must be a number, not negative"),
        ("eps", [-1.0], "must be a number, not negative"),
        ("betas", [(0.9, 1.0), [0.9], 0.9], "must be two numbers, at least 0 and less than 1"),
        ("momentum", [-0.1, 1.0], "must be a number, at least 0 and less than 1"),
    ],
)
def test_values_out_of_range(model, key, values, message):
    """In a group, too."""
    make = muon_of if key == "momentum" else adam_of
    for value in values:
        with pytest.raises(ValueError, match=f"^{key} {message}"):
            make(model, **{key: value})
        group = [["vectors"], {key: value}]
        with pytest.raises(ValueError, match=rf"^parameter_groups\.1\.1\.{key} {message}"):
            make(model, parameter_groups=[[["square"], {}], group])


@pytest.mark.parametrize(
    "key, message", [("weight_decay", "no weight decay"), ("beta", "no such key. Is it betas?")]
)
def test_keys_of_groups_that_nothing_would_look_at(model, key, message):
    with pytest.raises(ConfigurationError, match=rf"^parameter_groups\.0\.1\.{key}: .*{message}"):
        adam_of(model, parameter_groups=[[["square"], {key: 0.1}]])


def newton_schulz(matrix):
    """One matrix, in double precision, rows by columns with no more rows than columns."""
    if matrix.size(0) > matrix.size(1):
        return newton_schulz(matrix.T).T
    result = matrix / matrix.pow(2).sum().sqrt()
    for _ in range(5):
        square = result @ result.T
        result = 3.4445 * result - 4.7750 * (square @ result) + 2.0315 * (square @ square @ result)
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 0.1, "momentum": 0.7},
        {"parameter_groups": [[["hidden.weight"], {"lr": 0.02, "momentum": 0.0}]]},
    ],
)
def test_muon_by_its_formula_and_adam_for_all_the_rest(model, settings):
    model = model.double()
    other = copy.deepcopy(model)
    muon, adam = muon_of(model, **settings), adam_of(other, lr=settings.get("lr", 0.01))
    named = dict(model.named_parameters())
    groups = {p: group for group in muon.param_groups for p in group["params"]}
    expected = {name: named[name].detach().clone() for name in MATRICES}
    averages = {name: torch.zeros_like(expected[name]) for name in MATRICES}
    for seed in range(4):
        steps(model, muon, 1, seed)
        for name in MATRICES:
            gradient, group = named[name].grad, groups[named[name]]
            decay, rate = group["momentum"], group["lr"]
            averages[name] = decay * averages[name] + (1 - decay) * gradient
            update = newton_schulz(decay * averages[name] + (1 - decay) * gradient)
            expected[name] -= rate * 0.2 * max(update.shape) ** 0.5 * update
        for p, q in zip(model.parameters(), other.parameters()):
            q.grad = None if p.grad is None else p.grad.clone()
        adam.step()
    for name, value in named.items():
        if name in MATRICES:
            assert torch.allclose(value, expected[name], atol=1e-10), name
        else:
            assert torch.equal(value, other.get_parameter(name)), name
    assert not muon.state[model.idle.weight]


@pytest.mark.parametrize("smallest", [0.5, 1e-3, 1e-10])
def test_matrices_are_made_orthogonal(smallest):
    """By the iteration, or by products of squares where these are cheaper."""
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((16, 64), (64, 16), (1, 9), (40, 60), (60, 40), (50, 60), (31, 500)):
        least = min(rows, columns)
        left, right = (
            torch.linalg.qr(torch.randn(2, size, least, generator=generator).double())[0]
            for size in (rows, columns)
        )
        # With singular values from 1 down to the smallest.
        matrices = left * torch.logspace(0, torch.tensor(smallest).log10().item(), least) @ right.mT
        expected = torch.stack([newton_schulz(matrix) for matrix in matrices])
        assert torch.allclose(orthogonalized(matrices), expected, atol=1e-10)
        # Rounding moves singular values by a thousandth; bfloat16, in which the iteration is at
        # home, by a tenth.
        error = torch.linalg.matrix_norm(orthogonalized(matrices.float()).double() - expected, 2)
        assert error.max() < 2e-3
    assert torch.equal(orthogonalized(torch.zeros(1, 4, 5)), torch.zeros(1, 4, 5))


def test_by_default_muon_is_for_the_transformers_linear_layers(make_model):
    model = make_model()
    named = list(model.named_parameters())
    optimizer = Optimizer.from_params(Params({"type": "muon_sparse_adam"}), model_parameters=named)
    model.train()(**tensors(random_sentences(5), model.vocab))["loss"].backward()
    optimizer.step()
    names = [name for name, p in named if "momentum_buffer" in optimizer.state[p]]
    # In 2 directions and 2 layers each: query, key, value, output, and two of the feed-forward.
    assert len(names) == 2 * 2 * 6
    assert all("_transformer.layers." in name and name.endswith(".weight") for name in names)


@pytest.mark.parametrize("make", [adam_of, muon_of])
def test_a_step_without_effect_can_be_taken_back(model, make):
    optimizer = make(model)
    steps(model, optimizer, 3)
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]])
    optimizer.found_inf = torch.ones(())
    model(torch.arange(7)).backward()
    for parameter in (model.square.weight, model.hidden.weight):
        parameter.grad.fill_(torch.nan)
    model.result.weight.grad[0, 0] = torch.inf
    optimizer.step()
    optimizer.take_back_step()
    found = [model.state_dict(), optimizer.state_dict()["state"]]
    torch.testing.assert_close(found, before, rtol=0, atol=0)
    # Where it is 0, the step is the usual one; and a saved state goes on to the bit.
    other = copy.deepcopy(model)
    second = make(other)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.found_inf = torch.zeros(())
    steps(model, optimizer, 2, seed=9)
    steps(other, second, 2, seed=9)
    assert equal(model.state_dict(), other.state_dict())
    assert not equal(before[0], model.state_dict())
    assert optimizer.step(lambda: model(torch.arange(7))).requires_grad


def test_matrices_that_muon_does_not_take(model, make_model):
    lstm: Any = list(torch.nn.LSTM(4, 5).named_parameters())
    MuonSparseAdam(lstm, muon=["weight_hh"])
    for given, named in (
        (None, ".*linears.*"),
        (["weight_hh", "weights"], "weights"),
        (["bias"], "bias"),
    ):
        with pytest.raises(
            ConfigurationError, match=rf"'{named}' .* There are: weight_ih_l0, weight_hh_l0\."
        ):
            MuonSparseAdam(lstm, muon=given)
    frozen: Any = [[["_contextualizer"], {"requires_grad": False}]]
    with pytest.raises(ConfigurationError, match="in the name of no trained parameter"):
        MuonSparseAdam(list(make_model().named_parameters()), frozen)
    with pytest.raises(ConfigurationError, match=r"sparse gradients.*\(20, 6\)"):
        steps(model, muon_of(model, muon=["vectors"]), 1)
