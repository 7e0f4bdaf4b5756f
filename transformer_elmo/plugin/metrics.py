"""Perplexity as AllenNLP's trainer asks for it: a metric."""

from typing import Optional, Union

import torch
import torch.distributed as dist
from allennlp.training.metrics import Metric
from overrides import overrides

from transformer_elmo.inference.evaluation import perplexity
from transformer_elmo.nn.kernels.sparse_gradients import several_processes


class TokenPerplexity(Metric):
    """
    `exp(total negative log-likelihood / total number of predicted tokens)`.

    AllenNLP's `Perplexity` averages the losses of batches, whatever their sizes, and so changes
    with the batch size and the order of the data. This one adds up numerators and denominators.
    Under distributed training the processes' totals are added when the metric is read with
    `reset=True`, which all of them do at the end of an epoch; in between, each sees its own.
    """

    supports_distributed = True

    def __init__(self) -> None:
        # Totals stay on the device of the losses, so that adding to them never waits for it.
        self.total: Optional[torch.Tensor] = None
        """Both sums, shape `(2,)`; another tensor each time that something is added."""

    @overrides(check_signature=False)
    def __call__(
        self, negative_log_likelihood: torch.Tensor, num_tokens: Union[torch.Tensor, int]
    ) -> None:
        """
        `negative_log_likelihood`: a scalar: the sum over tokens, in nats. `num_tokens`: how many
        tokens it is the sum of.
        """
        total = negative_log_likelihood.detach().double().reshape(())
        if isinstance(num_tokens, int):
            count = torch.full_like(total, num_tokens)
        else:
            count = num_tokens.to(total).reshape(())
        added = torch.stack([total, count])
        self.total = added if self.total is None else self.total.to(added.device) + added

    def loss(self, reset: bool = False) -> Optional[float]:
        """The mean loss of a token, in nats; `None` if there was none."""
        total = self.total
        if reset:
            self.reset()
            if several_processes():
                # A process without data takes part all the same, or the others would wait forever.
                device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
                total = torch.zeros(2, dtype=torch.float64) if total is None else total
                total = total.to(device)
                dist.all_reduce(total)
        if total is None:
            return None
        negative_log_likelihood, num_tokens = total.tolist()
        return negative_log_likelihood / num_tokens if num_tokens else None

    @overrides
    def get_metric(self, reset: bool = False) -> float:
        """The perplexity; 0 if there was no token, as AllenNLP's metric has it."""
        loss = self.loss(reset)
        return 0.0 if loss is None else perplexity(-loss, 1)

    @overrides
    def reset(self) -> None:
        self.total = None
