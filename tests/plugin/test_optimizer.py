import copy
from typing import Any

import pytest
import torch
from allennlp.common import Params
from allennlp.training.optimizers import DenseSparseAdam as AllenNLPDenseSparseAdam
from allennlp.training.optimizers import Optimizer

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.sparse_gradients import clip_norm
from transformer_elmo.plugin.optimizer import DenseSparseAdam

SETTINGS = [{}, {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-3}, {"betas": (0.0, 0.99)}]


class Words(torch.nn.Module):
    """Dense and sparse parameters, and one that never gets a gradient."""

    def __init__(self):
        super().__init__()
        self.vectors = torch.nn.Embedding(20, 5, sparse=True)
        self.biases = torch.nn.Embedding(20, 1, sparse=True)
        self.linear = torch.nn.Linear(5, 3)
        self.idle = torch.nn.Parameter(torch.ones(4))
        self.scalar = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, ids):
        vectors = self.vectors(ids) * self.scalar + self.biases(ids)
        return self.linear(vectors).pow(3).sum()


def steps(model, optimizer, number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        optimizer.zero_grad()
        # Repeated ids, so that the sparse gradients have repeated rows.
        model(torch.randint(20, (7,), generator=generator)).backward()
        optimizer.step()


def same(ours, theirs):
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.allclose(p, q, atol=1e-6, rtol=1e-5), name


@pytest.mark.parametrize("settings", SETTINGS)
def test_same_numbers_as_allennlps(settings):
    torch.manual_seed(0)
    ours = Words()
    theirs = copy.deepcopy(ours)
    our_adam = DenseSparseAdam(list(ours.named_parameters()), **settings)
    their_adam = AllenNLPDenseSparseAdam(list(theirs.named_parameters()), **settings)
    for round_number in range(4):
        steps(ours, our_adam, 5, round_number)
        steps(theirs, their_adam, 5, round_number)
        same(ours, theirs)
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert set(our_adam.state[p]) == set(their_adam.state[q])
        for key, value in our_adam.state[p].items():
            assert torch.allclose(
                torch.as_tensor(value).float(),
                torch.as_tensor(their_adam.state[q][key]).float(),
                atol=1e-6,
                rtol=1e-5,
            )


@pytest.mark.parametrize("direction", ["ours to theirs", "theirs to ours"])
def test_state_carries_over(direction):
    torch.manual_seed(0)
    model = Words()
    other = copy.deepcopy(model)
    first: Any = DenseSparseAdam
    second: Any = AllenNLPDenseSparseAdam
    if direction == "theirs to ours":
        first, second = second, first
    begun = first(list(model.named_parameters()))
    steps(model, begun, 5)
    continued = second(list(other.named_parameters()))
    other.load_state_dict(model.state_dict())
    continued.load_state_dict(copy.deepcopy(begun.state_dict()))
    steps(model, begun, 5, seed=1)
    steps(other, continued, 5, seed=1)
    same(model, other)


@pytest.mark.parametrize("option, value", [("amsgrad", True), ("weight_decay", 0.1)])
def test_state_of_an_adam_that_does_more(option, value):
    model = Words()
    theirs = torch.optim.Adam(model.parameters(), **{option: value})
    ours: Any = DenseSparseAdam(list(model.named_parameters()))
    with pytest.raises(ConfigurationError, match=f"an optimizer with {option}"):
        ours.load_state_dict(theirs.state_dict())


def test_untouched_rows_stay_and_their_moments_dont_decay():
    model = Words()
    optimizer = DenseSparseAdam(list(model.named_parameters()), lr=0.1)
    every = torch.arange(20)
    model(every).backward()
    optimizer.step()
    before = copy.deepcopy([model.vectors.weight, *optimizer.state[model.vectors.weight].values()])
    optimizer.zero_grad()
    model(torch.tensor([2, 5, 2])).backward()
    optimizer.step()
    untouched = [row for row in range(20) if row not in (2, 5)]
    after = [model.vectors.weight, *optimizer.state[model.vectors.weight].values()]
    for old, new in zip(before, after):
        if isinstance(old, torch.Tensor):
            assert torch.equal(old[untouched], new[untouched])
            assert not torch.equal(old[[2, 5]], new[[2, 5]])


def test_parameter_groups():
    torch.manual_seed(0)
    ours = Words()
    theirs = copy.deepcopy(ours)
    groups: Any = [[["vectors", "biases"], {"lr": 0.05}], [["linear"], {"betas": [0.7, 0.8]}]]
    our_adam = DenseSparseAdam(list(ours.named_parameters()), copy.deepcopy(groups))
    their_adam = AllenNLPDenseSparseAdam(list(theirs.named_parameters()), copy.deepcopy(groups))
    steps(ours, our_adam, 4)
    steps(theirs, their_adam, 4)
    same(ours, theirs)


def test_closure():
    model = Words()
    optimizer = DenseSparseAdam(list(model.named_parameters()))
    before = model.linear.weight.clone()

    def closure():
        loss = model(torch.arange(3))
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad
    assert not torch.equal(before, model.linear.weight)
    assert DenseSparseAdam(list(model.named_parameters())).step() is None


def test_registered():
    model = Words()
    optimizer = Optimizer.from_params(
        Params({"type": "dense_sparse_adam", "lr": 0.5}),
        model_parameters=list(model.named_parameters()),
    )
    assert type(optimizer) is DenseSparseAdam
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    "settings",
    [
        *({"lr": -1.0}, {"eps": -1.0}, {"betas": (0.9, 1.0)}, {"lr": float("nan")}, {"lr": True}),
        *({"lr": "high"}, {"betas": [2, 3]}, {"betas": [0.9]}, {"betas": 0.9}),
    ],
)
def test_values_out_of_range(settings):
    """In a group, too."""
    (name,) = settings
    with pytest.raises(ValueError, match=f"^{name} must be"):
        DenseSparseAdam(list(Words().named_parameters()), **settings)
    groups: Any = [[["linear"], {}], [["vectors"], settings]]
    with pytest.raises(ValueError, match=rf"^parameter_groups\.1\.1\.{name} must be"):
        DenseSparseAdam(list(Words().named_parameters()), groups)


@pytest.mark.parametrize(
    "key, message",
    [
        ("weight_decay", "no weight decay"),
        ("momentum", "no such key. Expected"),
        ("beta", "no such key. Is it betas?"),
        ("amsgrad", "no such key"),
    ],
)
def test_keys_of_groups_that_nothing_would_look_at(key, message):
    groups: Any = [[["linear"], {key: 0.1}]]
    with pytest.raises(ConfigurationError, match=rf"^parameter_groups\.0\.1\.{key}: .*{message}"):
        DenseSparseAdam(list(Words().named_parameters()), groups)


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_the_norm_of_sparse_gradients_is_that_of_dense_ones(limit):
    parameters = {}
    for sparse in (True, False):
        torch.manual_seed(1)
        layers = [torch.nn.Embedding(5, 3, sparse=sparse), torch.nn.Linear(3, 2)]
        torch.nn.Sequential(*layers)(torch.tensor([1, 3, 1])).pow(2).sum().backward()
        parameters[sparse] = [p for layer in layers for p in layer.parameters()]
    ours = clip_norm(parameters[True], limit)
    assert torch.isclose(ours, torch.nn.utils.clip_grad_norm_(parameters[False], limit))
    for of_sparse, of_dense in zip(parameters[True], parameters[False]):
        assert of_dense.grad is not None
        assert torch.allclose(of_sparse.grad.to_dense(), of_dense.grad)
