"""
A schedule that falls to zero, and AllenNLP's scheduler for plateaus on a torch that has changed
since.
"""

import inspect
from typing import Any, Dict, List, Optional

from allennlp.training.learning_rate_schedulers import (
    LearningRateScheduler,
    ReduceOnPlateauLearningRateScheduler,
)
from overrides import overrides
from torch.optim.lr_scheduler import ReduceLROnPlateau

from transformer_elmo.errors import ConfigurationError


@LearningRateScheduler.register("warmup_stable_decay", exist_ok=True)
class WarmupStableDecay(LearningRateScheduler):
    """
    The optimizer's learning rates with a linear rise to them, a plateau, and a linear fall to zero
    at the end of training.

    Registered as a `LearningRateScheduler` with name "warmup_stable_decay".

    - `optimizer`: Not an entry in a config.
    - `warmup`: Steps of the rise; below 1, a share of all steps.
    - `decay`: Steps of the fall; below 1, a share of all steps.
    - `num_steps`: All steps of the training. Needed where the data loader doesn't know how many
      batches an epoch has.
    - `num_epochs`, `num_steps_per_epoch`: Not entries in a config: the trainer gives them.

    Raises `ConfigurationError` if a value isn't possible, or the number of steps isn't known.
    """

    def __init__(
        self,
        optimizer: Any,
        warmup: float = 0.1,
        decay: float = 0.6,
        num_steps: Optional[int] = None,
        num_epochs: Optional[int] = None,
        num_steps_per_epoch: Optional[int] = None,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(optimizer, last_epoch)
        self._shares = {"warmup": warmup, "decay": decay}
        self._num_epochs = num_epochs
        self.num_steps_per_epoch = num_steps_per_epoch if num_steps is None else None
        if num_steps is None and (num_epochs is None or num_steps_per_epoch is None):
            raise ConfigurationError(
                "warmup_stable_decay has to know the end of training, and the data loader doesn't "
                "know how many batches an epoch has. Set num_steps here, the steps of all epochs, "
                "or batches_per_epoch in the data loader."
            )
        self._set_lengths(num_steps)
        self._set_rates()

    def _set_lengths(self, num_steps: Optional[int]) -> None:
        if num_steps is None:
            assert self._num_epochs is not None and self.num_steps_per_epoch is not None
            num_steps = self._num_epochs * self.num_steps_per_epoch
        for name, value in self._shares.items():
            if value < 0 or (value >= 1 and value != int(value)):
                raise ConfigurationError(
                    f"{name} must be a number of steps, or a share of them below 1: got {value}."
                )
        self.num_steps = num_steps
        self.num_warmup, self.num_decay = (
            int(value) if value >= 1 else round(value * num_steps)
            for value in self._shares.values()
        )
        if self.num_warmup + self.num_decay > num_steps:
            raise ConfigurationError(
                f"The learning rate rises for {self.num_warmup} steps and falls for "
                f"{self.num_decay}, but there are {num_steps} in all: lower warmup or decay."
            )

    @overrides
    def get_values(self) -> List[float]:
        # The trainer calls it after a step, for the next one.
        step = max(self.last_epoch, 0) + 1
        rise = step / self.num_warmup if self.num_warmup else 1.0
        left = max(0, self.num_steps - step + 1)
        fall = left / self.num_decay if self.num_decay else 1.0
        return [value * min(1.0, rise, fall) for value in self.base_values]

    @overrides
    def step(self, metric: Optional[float] = None) -> None:
        # The end of an epoch is none of a step.
        pass

    @overrides
    def step_batch(self, batch_num_total: Optional[int] = None) -> None:
        self.last_epoch = batch_num_total or max(self.last_epoch, 0) + 1
        self._set_rates()

    def _set_rates(self) -> None:
        for group, value in zip(self.optimizer.param_groups, self.get_values()):
            group["lr"] = value

    @overrides
    def state_dict(self) -> Dict[str, Any]:
        # An epoch's steps, which the trainer counts otherwise when the run goes on with another
        # number of processes. Not all steps: it may have more epochs than before.
        return {"last_epoch": self.last_epoch, "num_steps_per_epoch": self.num_steps_per_epoch}

    @overrides
    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.last_epoch = state_dict["last_epoch"]
        saved = state_dict.get("num_steps_per_epoch")
        if saved is not None and self.num_steps_per_epoch is not None:
            self.num_steps_per_epoch = saved
            self._set_lengths(None)
        self._set_rates()


@LearningRateScheduler.register("reduce_on_plateau", exist_ok=True)
class ReduceOnPlateau(ReduceOnPlateauLearningRateScheduler):
    """
    AllenNLP's scheduler of this name, which passes torch a `verbose` that it has no more.

    Registered as a `LearningRateScheduler` with name "reduce_on_plateau". Its parameters are those
    of AllenNLP's; `verbose` does nothing.
    """

    def __init__(self, optimizer: Any, **options: Any) -> None:
        options.pop("verbose", None)
        scheduler: Any = ReduceLROnPlateau(optimizer, **options)
        # AllenNLP's own constructor makes torch's object; its parent's only keeps it.
        super(ReduceOnPlateauLearningRateScheduler, self).__init__(scheduler)

    # As configs see it.
    __init__.__signature__ = inspect.signature(  # type: ignore[attr-defined]
        ReduceOnPlateauLearningRateScheduler.__init__
    )
