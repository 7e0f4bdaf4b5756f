"""Adam for a model most of whose parameters a step doesn't touch: the rows of the softmax."""

import math
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from allennlp.training.optimizers import Optimizer, ParameterGroupsType, make_parameter_groups
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.optimizers import update_group
from transformer_elmo.plugin.keys import unknown_keys

# What each number is less than; none is negative.
_LIMITS = {"lr": math.inf, "eps": math.inf, "betas": 1.0, "momentum": 1.0}


def _check(settings: Mapping[str, Any], known: List[str], path: str = "") -> None:
    if "weight_decay" in settings:
        raise ConfigurationError(
            f"{path}weight_decay: this optimizer has no weight decay. Leave it out."
        )
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise unknown_keys(unknown, known, path)
    for name, value in settings.items():
        expected, is_right = "true or false", isinstance(value, bool)
        if name in _LIMITS:
            limit = _LIMITS[name]
            expected = "two numbers" if name == "betas" else "a number"
            expected += ", not negative" if limit > 1 else ", at least 0 and less than 1"
            numbers = value if isinstance(value, (list, tuple)) else [value]
            is_right = len(numbers) == (2 if name == "betas" else 1) and all(
                isinstance(number, (int, float))
                and not isinstance(number, bool)
                and 0 <= number < limit
                for number in numbers
            )
        if not is_right:
            raise ValueError(f"{path}{name} must be {expected}: got {value!r:.80}.")


@Optimizer.register("dense_sparse_adam", exist_ok=True)
class DenseSparseAdam(Optimizer, torch.optim.Optimizer):
    """
    Adam (Kingma and Ba 2015) for dense and sparse gradients. Of a parameter with sparse gradients,
    a step reads and writes only the rows that have one: the others keep their values, and their
    moments don't decay.

    The same function as AllenNLP's optimizer of this name, with the same state, so that a run begun
    with one can go on with the other. Dense parameters are updated by PyTorch's fused kernel
    instead of operation by operation, and so are the rows of sparse ones.

    Registered as an `Optimizer` with name "dense_sparse_adam".

    - `betas`: Decay of the moving averages of the gradient and of its square.
    - `eps`: Added to the root of the second moment, before the correction of its bias.

    Raises `ConfigurationError` if a group has a key that isn't there, such as `weight_decay`.
    Raises `ValueError` if a value is out of range, one of a group, too.
    """

    def __init__(
        self,
        model_parameters: List[Tuple[str, torch.nn.Parameter]],
        parameter_groups: Optional[ParameterGroupsType] = None,
        lr: float = 1e-3,
        betas: Tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self._begin(model_parameters, parameter_groups, {"lr": lr, "betas": betas, "eps": eps})

    def _begin(
        self,
        model_parameters: List[Tuple[str, torch.nn.Parameter]],
        parameter_groups: Optional[ParameterGroupsType],
        defaults: Dict[str, Any],
    ) -> None:
        _check(defaults, list(defaults))
        for number, (_, changes) in enumerate(parameter_groups or ()):
            _check(changes, [*defaults, "requires_grad"], f"parameter_groups.{number}.1.")
        torch.optim.Optimizer.__init__(
            self, make_parameter_groups(model_parameters, parameter_groups), defaults
        )
        self.found_inf: Optional[torch.Tensor] = None
        """
        If given, a scalar on the parameters' device: the next step has no effect where it is 1, and
        :meth:`take_back_step` is to be called after it.
        """
        self._stepped: List[Dict[str, Any]] = []

    @overrides(check_signature=False)
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """`closure`: evaluates the model again and returns the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._stepped = []
        with torch.no_grad():
            for group in self.param_groups:
                self._stepped += self._update(group)
        return loss

    def _update(self, group: Dict[str, Any]) -> List[Dict[str, Any]]:
        """One step of a group; gives back the states that count steps."""
        return update_group(group, self.state, self.found_inf)

    def take_back_step(self) -> None:
        """Forgets the last step, which had no effect, in the count of steps."""
        for state in self._stepped:
            state["step"] -= 1
        self._stepped = []
