"""Muon for the matrices of a transformer's linear layers, and Adam for everything else."""

import re
from typing import Any, Dict, List, Optional, Set, Tuple

import torch
from allennlp.training.optimizers import Optimizer, ParameterGroupsType
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.optimizers import update_matrices
from transformer_elmo.plugin.optimizer import DenseSparseAdam

# Of the attention, its query, key, value and output.
MATRICES = (r"\bself_attn\.linears\.\d+\.weight$", r"\bfeed_forward\.w_[12]\.weight$")


@Optimizer.register("muon_sparse_adam", exist_ok=True)
class MuonSparseAdam(DenseSparseAdam):
    """
    Muon (Jordan et al. 2024) for matrices, which makes all singular values of an update about
    equal, and :class:`DenseSparseAdam` for all other parameters. It is for large batches: there
    are fewer steps, and each goes farther.

    Muon's updates are scaled to the size of Adam's (Liu et al. 2025), so that one learning rate, a
    parameter group's or a scheduler's, is for both. There is no weight decay.

    Registered as an `Optimizer` with name "muon_sparse_adam".

    - `parameter_groups`: Groups may have a `momentum` of their own, too.
    - `betas`: Adam's.
    - `eps`: Adam's.
    - `momentum`: Muon's: the decay of the moving average of the gradient.
    - `muon`: Regular expressions. Muon takes the parameters of two dimensions in whose name one of
      them is found. The default is the weights of the attention's and the feed-forward's linear
      layers in a `bidirectional_language_model_transformer`. Not meant for embeddings or a softmax.

    Raises `ConfigurationError` if an expression finds no parameter of two dimensions.
    Raises `ValueError` if a value is out of range.
    """

    def __init__(
        self,
        model_parameters: List[Tuple[str, torch.nn.Parameter]],
        parameter_groups: Optional[ParameterGroupsType] = None,
        lr: float = 1e-3,
        betas: Tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        muon: Optional[List[str]] = None,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "momentum": momentum}
        self._begin(model_parameters, parameter_groups, settings)
        # Without those that a group has taken out of training.
        trained = {id(p) for group in self.param_groups for p in group["params"]}
        named = {n: p for n, p in model_parameters if p.dim() == 2 and id(p) in trained}
        found = {
            expression: {id(p) for name, p in named.items() if re.search(expression, name)}
            for expression in (MATRICES if muon is None else muon)
        }
        self._matrices: Set[int] = set().union(*found.values())
        missing = [expression for expression, matched in found.items() if not matched]
        if missing and (muon is not None or not self._matrices):
            raise ConfigurationError(
                f"optimizer.muon: {missing[0]!r} is found in the name of no trained parameter of "
                f"two dimensions. There are: {_listed(list(named))}. The default is for a "
                "bidirectional_language_model_transformer that is trained; elsewhere name matrices "
                "by regular expressions, or use dense_sparse_adam."
            )

    @overrides
    def _update(self, group: Dict[str, Any]) -> List[Dict[str, Any]]:
        matrices = [p for p in group["params"] if id(p) in self._matrices]
        others = [p for p in group["params"] if id(p) not in self._matrices]
        update_matrices({**group, "params": matrices}, self.state, self.found_inf)
        return super()._update({**group, "params": others})


def _listed(names: List[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest if names else "none"
