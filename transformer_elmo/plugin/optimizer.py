"""Adam for a model most of whose parameters a step doesn't touch: the rows of the softmax."""

import math
from itertools import chain
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple

import torch
from allennlp.training.optimizers import Optimizer, ParameterGroupsType, make_parameter_groups
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.optimizers import update_group
from transformer_elmo.plugin.keys import unknown_keys

_RANGES: Dict[str, Tuple[str, Callable[[Any], bool]]] = {
    "lr": ("a number, not negative", lambda value: _is_from_0_to(math.inf, value)),
    "eps": ("a number, not negative", lambda value: _is_from_0_to(math.inf, value)),
    "betas": (
        "two numbers, at least 0 and less than 1",
        lambda pair: len(pair) == 2 and all(_is_from_0_to(1.0, beta) for beta in pair),
    ),
    "momentum": ("a number, at least 0 and less than 1", lambda value: _is_from_0_to(1.0, value)),
    "requires_grad": ("true or false", lambda value: isinstance(value, bool)),
}


def _is_from_0_to(limit: float, value: Any) -> bool:
    return not isinstance(value, bool) and 0.0 <= value < limit


def _check(settings: Mapping[str, Any], known: List[str], path: str = "") -> None:
    if "weight_decay" in settings:
        raise ConfigurationError(
            f"{path}weight_decay: this optimizer has no weight decay. Leave it out."
        )
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise unknown_keys(unknown, known, path)
    for name, value in settings.items():
        expected, is_right = _RANGES[name]
        try:
            right = is_right(value)
        except TypeError:
            right = False
        if not right:
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
        self._names = {id(parameter): name for name, parameter in model_parameters}

    @overrides(check_signature=False)
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """
        - `closure`: Evaluates the model again and returns the loss.

        Returns What `closure` returns..
        """
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

    def _kept(self, parameter: torch.Tensor) -> Set[str]:
        """What the state of a parameter has."""
        return {"step", "exp_avg", "exp_avg_sq"}

    @overrides(check_signature=False)
    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """
        Raises `ConfigurationError` if it is that of an optimizer which keeps something else of a
        parameter.
        """
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for key in ("weight_decay", "amsgrad"):
            if any(group.get(key) for group in state_dict["param_groups"]):
                raise ConfigurationError(
                    f"The optimizer's saved state is that of an optimizer with {key}, which "
                    f"{type(self).__name__} hasn't. Go on with the optimizer that the run began "
                    "with, or begin another run in a folder of its own."
                )
        # What isn't as many is for PyTorch to refuse.
        for number, parameter in zip(numbers, parameters):
            name = self._names.get(id(parameter), "a parameter")
            saved, kept = set(state_dict["state"].get(number, ())), self._kept(parameter)
            if saved and not kept <= saved:
                raise ConfigurationError(
                    "The optimizer's saved state is that of another optimizer, or of other "
                    f"settings: of {name} it has "
                    f"{', '.join(sorted(saved))}, and {type(self).__name__} keeps "
                    f"{', '.join(sorted(kept))}. Go on with the optimizer that the run began with, "
                    "or begin another run in a folder of its own."
                )
        super().load_state_dict(state_dict)

    def take_back_step(self) -> None:
        """Forgets the last step, which had no effect, in the count of steps."""
        for state in self._stepped:
            state["step"] -= 1
        self._stepped = []
