"""
What every training run of AllenNLP's trainer does besides training: it takes note of signals and of
numbers that are none, and looks whether what it goes on with is what it began with.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch.distributed as dist
from allennlp.common import util as common_util
from allennlp.data import TensorDict
from allennlp.training.callbacks.callback import TrainerCallback
from allennlp.training.gradient_descent_trainer import GradientDescentTrainer
from allennlp.training.learning_rate_schedulers import ReduceOnPlateauLearningRateScheduler
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.sparse_gradients import several_processes
from transformer_elmo.plugin.dataset_reader import reader_attribute
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.large_batches import LargeBatches
from transformer_elmo.plugin.runs.bad_steps import BadSteps, too_many
from transformer_elmo.plugin.runs.resumption import ResumeDataCallback
from transformer_elmo.plugin.runs.stopping import stop, stopper
from transformer_elmo.plugin.vocabulary import word_list
from transformer_elmo.text.steps import Step

logger = logging.getLogger(__name__)


class ValidationStoppedError(Exception):
    """
    Leaves a validation that a signal ends.

    # Parameters

    number : `int`
        The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class RunGuard(TrainerCallback):
    """
    The last of a trainer's callbacks, which nobody has to name.

    # Parameters

    serialization_dir : `str`
    bad_steps : `BadSteps`
    large_batches : `LargeBatches`
    """

    def __init__(
        self, serialization_dir: str, bad_steps: BadSteps, large_batches: LargeBatches
    ) -> None:
        super().__init__(serialization_dir)
        self.bad_steps = bad_steps
        self.large_batches = large_batches
        self.is_training = False
        """Whether the trainer's own loop runs."""
        self.metrics: Dict[str, Any] = {}
        """Those of the last epoch that was finished, by this process or an earlier one."""
        self._state: Dict[str, Any] = {}
        self._step: Optional[Step] = None

    @overrides
    def on_start(
        self, trainer: GradientDescentTrainer, is_primary: bool = True, **kwargs: Any
    ) -> None:
        super().on_start(trainer, is_primary=is_primary, **kwargs)
        if isinstance(trainer.model, LanguageModel):
            _check_settings(trainer)
            if not self._state:
                _check_words(trainer)
        if self._state:
            self.bad_steps.in_a_row = self._state["bad_steps"]
            self.metrics = self._state.get("metrics", {})
            tracker = trainer._metric_tracker
            # It counts validations, and a run's metrics count epochs.
            tracker.best_epoch = self.metrics.get("best_epoch", tracker.best_epoch)
            if "validates" in self._state:
                # Who decides that counts epochs from here, as those of a run that begins.
                trainer._should_validate_this_epoch = self._state["validates"]
            if tracker.should_stop_early():
                # The trainer asks only at the end of an epoch, and would train one more.
                trainer._num_epochs = trainer._start_after_epochs_completed
            loader: Any = trainer.data_loader
            if "data" in self._state and hasattr(loader, "check_same_data"):
                loader.check_same_data(self._state["data"])
        self._step = _share_steps(trainer, self._state.get("step"))
        _restore_best_weights(trainer)

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
        if is_training:
            self.large_batches.end_step()
        too_many_bad_steps = is_training and self.bad_steps.settle(trainer)
        if too_many_bad_steps:
            # With --recover the run goes on after these batches.
            number, self.bad_steps.in_a_row = self.bad_steps.in_a_row, 0
            self._collect(trainer)
            if trainer._checkpointer is not None:
                trainer._checkpointer.save_checkpoint(trainer)
                if several_processes():
                    dist.barrier()
            raise too_many(number)
        number_of_signal = stopper.agreed()
        if number_of_signal is None:
            return
        if not is_training:
            raise ValidationStoppedError(number_of_signal)
        self.stop(trainer, number_of_signal)

    @overrides
    def on_epoch(
        self,
        trainer: GradientDescentTrainer,
        metrics: Dict[str, Any],
        epoch: int,
        is_primary: bool = True,
        **kwargs: Any,
    ) -> None:
        if self.serialization_dir is None:
            return
        # Metrics of an earlier epoch stay until there are new ones, also over a stop.
        if self.metrics.keys() - metrics.keys():
            metrics.update({**self.metrics, **metrics})
            if is_primary:
                path = os.path.join(self.serialization_dir, f"metrics_epoch_{epoch}.json")
                common_util.dump_metrics(path, metrics)
        # As plain numbers, whatever a model gives: a checkpoint has no others.
        self.metrics = json.loads(json.dumps(metrics))

    def stop(self, trainer: Any, number: int) -> None:
        """
        Called by all processes at the end of the same step: saves the state and ends the process.

        # Raises

        `RunStopped`
        """
        self._collect(trainer)
        stop(trainer, number)

    def _collect(self, trainer: Any) -> None:
        if several_processes():
            for callback in trainer._callbacks:
                if isinstance(callback, ResumeDataCallback):
                    callback.collect_random_states(trainer)

    @overrides
    def state_dict(self) -> Dict[str, Any]:
        trainer: Any = self.trainer
        if trainer is None:
            return {}
        state: Dict[str, Any] = {
            "bad_steps": self.bad_steps.in_a_row,
            "metrics": self.metrics,
            "validates": trainer._should_validate_this_epoch,
        }
        if self._step is not None:
            state["step"] = self._step.to_json()
        if hasattr(trainer.data_loader, "check_same_data"):
            state["data"] = trainer.data_loader.state_dict()
        return state

    @overrides
    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self._state = state_dict


def _check_settings(trainer: Any) -> None:
    """What AllenNLP would find out after the first epoch."""
    if trainer._validation_data_loader is None:
        if isinstance(trainer._learning_rate_scheduler, ReduceOnPlateauLearningRateScheduler):
            raise ConfigurationError(
                'trainer.learning_rate_scheduler: "reduce_on_plateau" looks at a metric of '
                'validation data: set "validation_data_path", or take another scheduler.'
            )
        return
    known = ["loss", *trainer.model.get_metrics()]
    for _, name in trainer._metric_tracker.tracked_metrics:
        if name not in known:
            raise ConfigurationError(
                f"trainer.validation_metric: there is no metric {name!r}. Expected some of "
                f"{', '.join(known)}, with - (less is better) or + before it."
            )


def _check_words(trainer: Any) -> None:
    """Words that the tokenizer splits are never found, and unknown ones cost next to nothing."""
    tokenizer = reader_attribute(getattr(trainer.data_loader, "reader", None), "tokenizer")
    for number, word in enumerate(word_list(trainer.model.vocab).words, start=1):
        if (" " in word or "\t" in word) and tokenizer is not None:
            tokens = [token.text for token in tokenizer.tokenize(word)]
            if tokens != [word]:
                raise ConfigurationError(
                    f"The vocabulary's entry {number}, {word!r:.80}, is none that a word of the "
                    f"text can equal: the tokenizer makes {tokens!r:.80} of it. Expected one word "
                    "a line and nothing else, such as counts."
                )


def _share_steps(trainer: Any, begun: Optional[Dict[str, Any]]) -> Step:
    """
    # Returns

    `Step`
        What a step of this run is, whatever number of processes it goes on with.

    # Raises

    `ConfigurationError`
        If these processes can't share it.
    """
    loader = trainer.data_loader
    step = now = Step(
        dist.get_world_size() if several_processes() else 1,
        trainer._num_gradient_accumulation_steps,
        getattr(loader, "batches_per_epoch", None),
    )
    if begun is not None:
        # A checkpoint of an earlier version says nothing, and its run goes on as it is now.
        step = Step(**begun)
    if (now.processes, now.accumulation) == (step.processes, step.accumulation):
        return step
    as_begun = f"{step.processes} processes x {step.accumulation} batches a step"
    if not hasattr(loader, "share_steps"):
        if now.num_batches() == step.num_batches():
            return step
        raise ConfigurationError(
            f"The run was begun with {as_begun}, and there are {now.processes} processes x "
            f"{now.accumulation} batches now. Only the data loader language_modeling divides a "
            "step anew: go on with as many."
        )
    if now.num_batches() < step.num_batches():
        raise ConfigurationError(
            f"The run was begun with {as_begun}, and {now.processes} processes x "
            f"{now.accumulation} batches are fewer than that. Set "
            "trainer.num_gradient_accumulation_steps to "
            f"{-(-step.num_batches() // now.processes)}."
        )
    logger.warning(
        "Steps stay those that the run was begun with, %s: they are divided among %d processes x "
        "%d batches.",
        *(as_begun, now.processes, now.accumulation),
    )
    loader.share_steps(step, now.accumulation)
    return step


def _restore_best_weights(trainer: Any) -> None:
    # At the end of an epoch AllenNLP writes the checkpoint first, then best.th, and only then notes
    # where that is. A run that goes on from such a checkpoint would give back its last weights
    # instead of its best ones.
    tracker = trainer._metric_tracker
    if (
        trainer._start_after_batches_in_epoch_completed
        or not trainer._start_after_epochs_completed
        or trainer._serialization_dir is None
        or (trainer._ddp_wrapped_model is not None and trainer._ddp_wrapped_model.is_sharded)
    ):
        return
    path = Path(trainer._serialization_dir) / "best.th"
    if tracker.is_best_so_far() and trainer._primary:
        # Of this checkpoint, whose weights the model has.
        if trainer._moving_average is not None:
            trainer._moving_average.assign_average_value()
        try:
            trainer._save_model_state(str(path))
        finally:
            if trainer._moving_average is not None:
                trainer._moving_average.restore()
    if several_processes():
        dist.barrier()
    if path.exists():
        trainer._best_model_filename = str(path)
