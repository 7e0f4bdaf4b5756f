import copy
from collections import defaultdict
from typing import Any

import pytest
import torch
from allennlp.common import Params
from allennlp.training.optimizers import Optimizer

from tests.small_lm import random_sentences, tensors
from transformer_elmo import DenseSparseAdam, MuonSparseAdam
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.optimizers import (
    _by_squares,
    _iterated,
    orthogonalized,
    update_matrices,
)

TALL, WIDE, SQUARE = "hidden.weight", "result.weight", "square.weight"
MATRICES = [TALL, WIDE, SQUARE, "more.weight"]


class Words(torch.nn.Module):
    """Matrices of several shapes, sparse rows, vectors, and what never gets a gradient."""

    def __init__(self):
        super().__init__()
        self.vectors = torch.nn.Embedding(20, 6, sparse=True)
        self.square = torch.nn.Linear(6, 6)
        self.more = torch.nn.Linear(6, 6)
        self.hidden = torch.nn.Linear(6, 16)
        self.result = torch.nn.Linear(16, 6)
        self.idle = torch.nn.Linear(6, 6)
        self.left = torch.nn.Linear(6, 6)

    def forward(self, ids):
        rows = self.more(self.square(self.vectors(ids)))
        return self.left(self.result(self.hidden(rows).relu())).pow(3).mean()


CHOSEN = ["square", "more", "idle", "hidden", "result"]


def optimizer_of(model, **settings):
    settings = {"muon": CHOSEN, "lr": 0.01, **settings}
    return MuonSparseAdam(list(model.named_parameters()), **settings)


def steps(model, optimizer, number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        optimizer.zero_grad()
        model(torch.randint(20, (7,), generator=generator)).backward()
        optimizer.step()


def same_gradients(source, target):
    for one, other in zip(source.parameters(), target.parameters()):
        other.grad = None if one.grad is None else one.grad.clone()


def weights(model):
    return copy.deepcopy(model.state_dict())


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def newton_schulz(matrix):
    """One matrix, in double precision, rows by columns with no more rows than columns."""
    if matrix.size(0) > matrix.size(1):
        return newton_schulz(matrix.T).T
    result = matrix / matrix.pow(2).sum().sqrt()
    for _ in range(5):
        square = result @ result.T
        result = 3.4445 * result - 4.7750 * (square @ result) + 2.0315 * (square @ square @ result)
    return result


@pytest.mark.parametrize("settings", [{}, {"lr": 0.1, "momentum": 0.7}])
def test_the_formula(settings):
    torch.manual_seed(0)
    model = Words().double()
    optimizer = optimizer_of(model, **settings)
    rate, decay = settings.get("lr", 0.01), settings.get("momentum", 0.95)
    named = dict(model.named_parameters())
    expected = {name: named[name].detach().clone() for name in MATRICES}
    averages = {name: torch.zeros_like(expected[name]) for name in MATRICES}
    for seed in range(4):
        steps(model, optimizer, 1, seed)
        for name in MATRICES:
            gradient = named[name].grad
            averages[name] = decay * averages[name] + (1 - decay) * gradient
            update = newton_schulz(decay * averages[name] + (1 - decay) * gradient)
            root = 0.2 * max(update.shape) ** 0.5
            expected[name] = expected[name] - rate * root * update
    for name in MATRICES:
        assert torch.allclose(named[name], expected[name], atol=1e-10), name
    assert not optimizer.state[model.idle.weight]


def conditioned(shape, smallest, generator):
    """Matrices with singular values from 1 down to `smallest`."""
    number, rows, columns = shape
    least = min(rows, columns)
    left, right = (
        torch.linalg.qr(torch.randn(number, size, least, generator=generator).double())[0]
        for size in (rows, columns)
    )
    values = torch.logspace(0, torch.tensor(smallest).log10().item(), least).double()
    return left * values @ right.mT


@pytest.mark.parametrize("smallest", [0.5, 1e-3, 1e-10])
def test_products_of_squares_are_the_iteration(smallest):
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 16, 64), (3, 64, 16), (1, 1, 9), (2, 40, 60), (2, 60, 40), (1, 31, 500)):
        matrices = conditioned(shape, smallest, generator)
        expected = torch.stack([newton_schulz(matrix) for matrix in matrices])
        normed = matrices / matrices.flatten(1).norm(dim=1)[:, None, None]
        assert torch.allclose(_iterated(normed), expected, atol=1e-10)
        assert torch.allclose(_by_squares(normed), expected, atol=1e-10)
        # Rounding moves singular values by a thousandth; bfloat16, in which the iteration is at
        # home, by a tenth.
        error = torch.linalg.matrix_norm(orthogonalized(matrices.float()).double() - expected, 2)
        assert error.max() < 2e-3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has one from 2.9 on")
def test_the_same_as_pytorchs():
    torch.manual_seed(0)
    begun = [torch.randn(shape) for shape in ((48, 48), (48, 48), (96, 32), (32, 96))]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in begun] for _ in range(2))
    states: Any = defaultdict(dict)
    optimizer = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        with torch.no_grad():
            update_matrices({"params": ours, "lr": 0.01, "momentum": 0.95}, states)
        optimizer.step()
    for one, other, before in zip(ours, theirs, begun):
        # PyTorch's iteration is in bfloat16.
        assert (one - other).norm() < 0.03 * (other - before).norm()


def test_all_the_rest_is_dense_sparse_adams_to_the_bit():
    torch.manual_seed(0)
    ours = Words()
    theirs = copy.deepcopy(ours)
    optimizer = optimizer_of(ours)
    adam = DenseSparseAdam(list(theirs.named_parameters()), lr=0.01)
    for seed in range(4):
        steps(ours, optimizer, 1, seed)
        same_gradients(ours, theirs)
        adam.step()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]) == (name not in MATRICES), name


def test_singular_values_come_near_one():
    torch.manual_seed(0)
    for shape in ((3, 8, 8), (2, 8, 30), (2, 30, 8)):
        matrices = torch.randn(shape)
        found = torch.linalg.svdvals(orthogonalized(matrices))
        assert found.max() < 1.25 and found.min() > 0.3
    assert torch.equal(orthogonalized(torch.zeros(1, 4, 5)), torch.zeros(1, 4, 5))


def test_by_default_it_is_for_the_transformers_linear_layers(make_model):
    model = make_model()
    optimizer = Optimizer.from_params(
        Params({"type": "muon_sparse_adam", "lr": 0.5}),
        model_parameters=list(model.named_parameters()),
    )
    assert type(optimizer) is MuonSparseAdam
    batch = tensors(random_sentences(5), model.vocab)
    model.train()(**batch)["loss"].backward()
    optimizer.step()
    found = {
        name for name, p in model.named_parameters() if "momentum_buffer" in optimizer.state[p]
    }
    # In 2 directions and 2 layers each: query, key, value, output, and two of the feed-forward.
    assert len(found) == 2 * 2 * 6
    assert all("_transformer.layers." in name and name.endswith(".weight") for name in found)


def test_groups_and_schedulers_set_the_rate_of_both():
    model = Words()
    groups: Any = [[["square", "vectors"], {"lr": 0.0}], [["hidden"], {"momentum": 0.0}]]
    optimizer = optimizer_of(model, parameter_groups=groups)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.95, 0.0, 0.95]
    before = weights(model)
    steps(model, optimizer, 2)
    after = weights(model)
    for name, value in after.items():
        stays = name.startswith(("square", "vectors", "idle"))
        assert torch.equal(value, before[name]) == stays, name
    gradient = model.hidden.weight.grad
    assert gradient is not None
    assert torch.equal(optimizer.state[model.hidden.weight]["momentum_buffer"], gradient)


def test_a_step_without_effect_can_be_taken_back():
    torch.manual_seed(0)
    model = Words()
    optimizer = optimizer_of(model)
    steps(model, optimizer, 3)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.found_inf = torch.ones(())
    model(torch.arange(7)).backward()
    for parameter in (model.square.weight, model.hidden.weight):
        parameter.grad.fill_(torch.nan)
    model.result.weight.grad[0, 0] = torch.inf
    optimizer.step()
    optimizer.take_back_step()
    assert equal(before, weights(model))
    for number, kept in optimizer.state_dict()["state"].items():
        for key, value in kept.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[number][key])), key
    # Where it is 0, the step is the usual one.
    other = copy.deepcopy(model)
    second = optimizer_of(other)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.found_inf = torch.zeros(())
    steps(model, optimizer, 1, seed=9)
    steps(other, second, 1, seed=9)
    assert equal(weights(model), weights(other)) and not equal(before, weights(model))


def test_a_saved_state_goes_on_to_the_bit(tmp_path):
    torch.manual_seed(0)
    model = Words()
    optimizer = optimizer_of(model)
    steps(model, optimizer, 3)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state")
    steps(model, optimizer, 3, seed=1)
    again = Words()
    continued = optimizer_of(again)
    model_state, state = torch.load(tmp_path / "state")
    again.load_state_dict(model_state)
    continued.load_state_dict(state)
    steps(again, continued, 3, seed=1)
    assert equal(weights(model), weights(again))


def other_choice(model):
    return optimizer_of(model, muon=["hidden"])


def adam_of(model):
    return DenseSparseAdam(list(model.named_parameters()), lr=0.01)


@pytest.mark.parametrize(
    "first, second",
    [
        *((adam_of, optimizer_of), (optimizer_of, adam_of)),
        *((other_choice, optimizer_of), (optimizer_of, other_choice)),
    ],
)
def test_the_state_of_another_optimizer_is_refused(first, second):
    model = Words()
    begun = first(model)
    steps(model, begun, 1)
    state = begun.state_dict()
    continued = second(model)
    with pytest.raises(ConfigurationError, match=r"other settings: of square\.weight it has"):
        continued.load_state_dict(state)
    assert not continued.state
    # Before the first step there is nothing to lose.
    continued.load_state_dict(first(model).state_dict())
    steps(model, continued, 1)


def test_no_matrix_is_found():
    lstm = torch.nn.LSTM(4, 5)
    with pytest.raises(ConfigurationError, match=r"found none .* weight_ih_l0, weight_hh_l0\."):
        MuonSparseAdam(list(lstm.named_parameters()))
    MuonSparseAdam(list(lstm.named_parameters()), muon=["weight_hh"])
    for expressions, named in ((["weight_hh", "weights"], "weights"), (["bias"], "bias")):
        with pytest.raises(ConfigurationError, match=rf"optimizer\.muon: '{named}' is found in"):
            MuonSparseAdam(list(lstm.named_parameters()), muon=expressions)
    with pytest.raises(ConfigurationError, match="found none"):
        MuonSparseAdam(list(lstm.named_parameters()), muon=[])


def test_frozen_matrices_are_none(make_model):
    model = make_model()
    frozen: Any = [[["_contextualizer"], {"requires_grad": False}]]
    with pytest.raises(ConfigurationError, match="found none"):
        MuonSparseAdam(list(model.named_parameters()), frozen)
    part: Any = [[["layers\\.0"], {"requires_grad": False}]]
    optimizer = MuonSparseAdam(list(model.named_parameters()), part)
    assert len(optimizer._matrices) == 2 * 6


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_values_out_of_range(value):
    with pytest.raises(ValueError, match="momentum"):
        optimizer_of(Words(), momentum=value)
    with pytest.raises(ValueError, match="momentum"):
        optimizer_of(Words(), parameter_groups=[(["square"], {"momentum": value})])
    with pytest.raises(ConfigurationError, match=r"\.weight_decay: .* no weight decay"):
        optimizer_of(Words(), parameter_groups=[(["square"], {"weight_decay": value})])


def test_sparse_gradients_are_refused():
    model = Words()
    optimizer = optimizer_of(model, muon=["vectors"])
    with pytest.raises(ConfigurationError, match=r"sparse gradients.*\(20, 6\)"):
        steps(model, optimizer, 1)


def test_the_kernel_leaves_others_alone():
    empty = {"params": [torch.nn.Parameter(torch.ones(2, 2))], "lr": 1.0, "momentum": 0.9}
    states: Any = {}
    update_matrices(empty, states)
    assert not states
