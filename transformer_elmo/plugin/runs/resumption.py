"""
What a run needs to go on, after it was stopped at any point, as if it never had been.
"""

import logging
import random
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
import torch.distributed as dist
from allennlp.data.data_loaders.data_loader import TensorDict
from allennlp.training.callbacks.callback import TrainerCallback
from allennlp.training.checkpointer import Checkpointer
from allennlp.training.gradient_descent_trainer import GradientDescentTrainer
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.sparse_gradients import several_processes

logger = logging.getLogger(__name__)


@TrainerCallback.register("resume_data", exist_ok=True)
class ResumeDataCallback(TrainerCallback):
    """
    Keeps the place in the data and the state of the random number generators in every checkpoint,
    so that `allennlp train --recover` goes on with exactly the batches that the run has not seen,
    at once: AllenNLP's trainer asks for all the batches since the first epoch again, and with this
    callback it gets placeholders. On as many processes as before, the weights at the end are those
    of a run that was never stopped, on a CPU to the bit. On another number of processes, steps have
    the same sentences in the same order, and the same losses up to rounding, but for what is
    random: dropout and the words that a sampled softmax draws are each process's own.

    Needs the data loader "language_modeling". Without this callback `--recover` goes on with the
    same batches, but reads those before them once more, and dropout takes other random numbers.

    Registered as a `TrainerCallback` with name "resume_data".
    """

    def __init__(self, serialization_dir: str) -> None:
        super().__init__(serialization_dir)
        self._state: Dict[str, Any] = {}
        # With several processes, only the first writes checkpoints, so it collects what the others
        # have.
        self._random_states: Optional[List[Dict[str, Any]]] = None
        self._last_collected = 0
        # While it lasts, what there was before validation.
        self._before_validation: Optional[Tuple[Dict[str, Any], Dict[str, Any]]] = None

    @overrides
    def on_start(
        self, trainer: GradientDescentTrainer, is_primary: bool = True, **kwargs: Any
    ) -> None:
        super().on_start(trainer, is_primary=is_primary, **kwargs)
        loader: Any = trainer.data_loader
        if not hasattr(loader, "resume"):
            raise ConfigurationError(
                'The callback "resume_data" needs the data loader "language_modeling"; this one is '
                f"a {type(loader).__name__}, which can't be told where to go on."
            )
        if not self._state:
            if trainer._start_after_epochs_completed or (
                trainer._start_after_batches_in_epoch_completed
            ):
                logger.warning(
                    "The checkpoint was written without the callback resume_data, so the data "
                    "before it is read once more."
                )
            return
        validation_loader: Any = trainer._validation_data_loader
        if "validation" in self._state and hasattr(validation_loader, "resume"):
            validation_loader.resume(self._state["validation"], 0, 0)
        random_states = self._state["random"]
        rank = dist.get_rank() if several_processes() else 0
        num_batches = trainer._start_after_batches_in_epoch_completed
        loader.resume(
            self._state["train"],
            num_epochs=trainer._start_after_epochs_completed,
            num_batches=num_batches * trainer._num_gradient_accumulation_steps,
            on_resumed=lambda: _go_on_with(random_states, rank, trainer.cuda_device),
        )
        # The trainer counts the placeholders of this epoch, but finished epochs have none.
        trainer._total_batches_completed = self._state["total_batches"] - num_batches

    @overrides
    def on_batch(
        self,
        trainer: GradientDescentTrainer,
        batch_inputs: List[TensorDict],
        batch_outputs: List[Dict[str, Any]],
        batch_metrics: Dict[str, Any],
        epoch: int,
        batch_number: int,
        is_training: bool,
        is_primary: bool = True,
        batch_grad_norm: Optional[float] = None,
        **kwargs: Any,
    ) -> None:
        if not is_training or not several_processes() or trainer._checkpointer is None:
            return
        # The checkpointer's own rule. Every process follows it by itself, so they collect in step.
        interval = trainer._checkpointer._save_every_num_batches
        if interval is not None and batch_number - self._last_collected >= interval:
            self._last_collected = batch_number
            self.collect_random_states(trainer)

    @overrides
    def on_epoch(
        self,
        trainer: GradientDescentTrainer,
        metrics: Dict[str, Any],
        epoch: int,
        is_primary: bool = True,
        **kwargs: Any,
    ) -> None:
        self._last_collected = 0
        if several_processes():
            self.collect_random_states(trainer)

    def collect_random_states(self, trainer: GradientDescentTrainer) -> None:
        """
        Called by all processes of a distributed run before the first one writes a checkpoint.
        """
        states: List[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, self._random_state(trainer.cuda_device))
        self._random_states = states

    @contextmanager
    def validating(self, trainer: GradientDescentTrainer) -> Iterator[None]:
        """
        Within the block, the state is that of its beginning: a run that is stopped in the middle of
        validation begins it anew.
        """
        loader: Any = trainer._validation_data_loader
        place = loader.state_dict() if hasattr(loader, "resume") else {}
        self._before_validation = place, _get_random_state(trainer.cuda_device)
        try:
            yield
        finally:
            self._before_validation = None

    def _random_state(self, device: torch.device) -> Dict[str, Any]:
        if self._before_validation is not None:
            return self._before_validation[1]
        return _get_random_state(device)

    @overrides
    def state_dict(self) -> Dict[str, Any]:
        trainer: Any = self.trainer
        if trainer is None:
            return {}
        state = {
            "total_batches": trainer._total_batches_completed,
            "train": trainer.data_loader.state_dict(),
            "random": self._random_states or [self._random_state(trainer.cuda_device)],
        }
        if hasattr(trainer._validation_data_loader, "resume"):
            state["validation"] = (
                trainer._validation_data_loader.state_dict()
                if self._before_validation is None
                else self._before_validation[0]
            )
        return state

    @overrides
    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self._state = state_dict


def _get_random_state(device: torch.device) -> Dict[str, Any]:
    # AllenNLP reads checkpoints with torch.load, which by default takes nothing but tensors and
    # Python's own types.
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached_gaussian),
        ),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state(
        (name, keys.numpy().astype(np.uint32), position, has_gauss, cached_gaussian)
    )
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _go_on_with(states: List[Dict[str, Any]], rank: int, device: torch.device) -> None:
    _set_random_state(states[rank % len(states)], device)
    if rank >= len(states):
        # One more process than there were: its dropout isn't to be another one's.
        seed = int(torch.randint(2**31, (rank + 1,))[rank])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


@Checkpointer.register("crash_safe", exist_ok=True)
class CrashSafeCheckpointer(Checkpointer):
    """
    AllenNLP's checkpointer by another name. What made the difference is true of both by now: a
    checkpoint is written whole or not at all, has a checksum, and is passed over where it is
    damaged.

    Registered as a `Checkpointer` with name "crash_safe". The parameters are AllenNLP's.
    """
