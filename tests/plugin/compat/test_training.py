import pytest
import torch
from allennlp.common import Params
from allennlp.training.learning_rate_schedulers import LearningRateScheduler

from transformer_elmo.nn.kernels.sparse_gradients import clip_norm


class TestTraining:
    @pytest.mark.parametrize("limit", [0.1, 1e6])
    def test_the_norm_of_sparse_gradients_is_that_of_dense_ones(self, limit):
        parameters = {}
        for sparse in (True, False):
            torch.manual_seed(1)
            layers = [torch.nn.Embedding(5, 3, sparse=sparse), torch.nn.Linear(3, 2)]
            torch.nn.Sequential(*layers)(torch.tensor([1, 3, 1])).pow(2).sum().backward()
            parameters[sparse] = [p for layer in layers for p in layer.parameters()]
        norms = [
            clip(parameters[sparse], limit)
            for sparse, clip in ((True, clip_norm), (False, torch.nn.utils.clip_grad_norm_))
        ]
        assert torch.isclose(norms[0], norms[1])
        for of_sparse, of_dense in zip(parameters[True], parameters[False]):
            assert of_dense.grad is not None
            assert torch.allclose(of_sparse.grad.to_dense(), of_dense.grad)

    def test_the_scheduler_that_waits_for_a_plateau(self):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        options = {"type": "reduce_on_plateau", "factor": 0.5, "patience": 0, "mode": "max"}
        scheduler = LearningRateScheduler.from_params(Params(options), optimizer=optimizer)
        for metric in (1.0, 0.5, 2.0, 1.0):
            scheduler.step(metric)
        assert optimizer.param_groups[0]["lr"] == 0.25
