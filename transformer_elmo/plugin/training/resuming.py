"""
What a run needs to go on, after it was stopped at any point, as if it never had been.
"""

import json
import logging
import os
import random
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
import torch
import torch.distributed as dist
from allennlp.common import util as common_util
from allennlp.data.data_loaders.data_loader import TensorDict
from allennlp.training.callbacks.callback import TrainerCallback
from allennlp.training.gradient_descent_trainer import GradientDescentTrainer
from allennlp.training.learning_rate_schedulers import ReduceOnPlateauLearningRateScheduler
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.evaluation import tell_of_unknown_words
from transformer_elmo.nn.kernels.sparse_gradients import several_processes
from transformer_elmo.plugin.dataset_reader import reader_attribute
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.training.stopping import RunStopped, command_to_go_on, stopper
from transformer_elmo.plugin.vocabulary import word_list

logger = logging.getLogger(__name__)


@TrainerCallback.register("resume_data", exist_ok=True)
class ResumeDataCallback(TrainerCallback):
    """
    Keeps in every checkpoint what a run needs to go on as if it had not been stopped: the place in
    the data, random numbers, what a step is, the metrics so far. It also ends the run at the end of
    a step, for a signal or too many bad steps.

    With the data loader "language_modeling", `allennlp train --recover` goes on with exactly the
    batches that the run has not seen, at once: AllenNLP's trainer asks for all the batches since
    the first epoch again, and with this callback it gets placeholders. The weights at the end are
    those of a run that was never stopped, on a CPU to the bit. On another number of processes,
    steps have the same sentences in the same order, and the same losses up to rounding, but for
    what is random: dropout and the words that a sampled softmax draws are each process's own.

    The trainer "language_modeling" has it without being told. Named in a config, it also makes sure
    that the data loader can do this.

    Registered as a `TrainerCallback` with name "resume_data".
    """

    def __init__(self, serialization_dir: str) -> None:
        super().__init__(serialization_dir)
        self.is_named = True
        """Whether the config asks for it."""
        self.metrics: Dict[str, Any] = {}
        """Those of the last epoch that was finished, by this process or an earlier one."""
        self._state: Dict[str, Any] = {}
        self._step: Dict[str, Any] = {}
        # With several processes, only the first writes checkpoints, so it collects what the others
        # have.
        self._random_states: Optional[List[Dict[str, Any]]] = None
        self._last_collected = 0
        # While it lasts, what there was before validation.
        self._before_validation: Optional[Dict[str, Any]] = None

    @overrides
    def on_start(
        self, trainer: GradientDescentTrainer, is_primary: bool = True, **kwargs: Any
    ) -> None:
        super().on_start(trainer, is_primary=is_primary, **kwargs)
        loader: Any = trainer.data_loader
        if self.is_named and not hasattr(loader, "resume"):
            raise ConfigurationError(
                'The callback "resume_data" needs the data loader "language_modeling"; this one is '
                f"a {type(loader).__name__}, which can't be told where to go on."
            )
        if isinstance(trainer.model, LanguageModel):
            _check_settings(trainer)
            if not self._state:
                _check_words(trainer)
        self._step = _step_of_run(trainer, self._state.get("step"))
        if self._state:
            self._go_on(trainer)
        elif trainer._start_after_epochs_completed or (
            trainer._start_after_batches_in_epoch_completed
        ):
            logger.warning(
                "The checkpoint doesn't say where in the data it was written, so the data before "
                "it is read once more."
            )
        _restore_best_weights(trainer)

    def _go_on(self, trainer: Any) -> None:
        state, tracker, loader = self._state, trainer._metric_tracker, trainer.data_loader
        if hasattr(trainer, "bad_steps"):
            trainer.bad_steps.in_a_row = state.get("bad_steps", 0)
        self.metrics = state.get("metrics", {})
        # It counts validations, and a run's metrics count epochs.
        tracker.best_epoch = self.metrics.get("best_epoch", tracker.best_epoch)
        if "validates" in state:
            # Who decides that counts epochs from here, as those of a run that begins.
            trainer._should_validate_this_epoch = state["validates"]
        if tracker.should_stop_early():
            # The trainer asks only at the end of an epoch, and would train one more.
            trainer._num_epochs = trainer._start_after_epochs_completed
        if not hasattr(loader, "resume"):
            return
        if "train" not in state:
            # Version 0.2.0 without this callback in its config.
            loader.check_same_data(state["data"])
            return
        if "validation" in state and hasattr(trainer._validation_data_loader, "resume"):
            trainer._validation_data_loader.resume(state["validation"], 0, 0)
        rank = dist.get_rank() if several_processes() else 0
        num_batches = trainer._start_after_batches_in_epoch_completed
        loader.resume(
            state["train"],
            num_epochs=trainer._start_after_epochs_completed,
            num_batches=num_batches * trainer._num_gradient_accumulation_steps,
            on_resumed=lambda: _go_on_with(state["random"], rank, trainer.cuda_device),
        )
        # The trainer counts the placeholders of this epoch, but finished epochs have none.
        trainer._total_batches_completed = state["total_batches"] - num_batches

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
            self._end_step(trainer, batch_number)
        number = stopper.agreed()
        if number is not None and is_training:
            self.stop(trainer, number)
        elif number is not None:
            # The trainer stops, once the weights are no longer their moving averages.
            raise RunStopped(number)

    def _end_step(self, trainer: Any, batch_number: int) -> None:
        # AllenNLP's own trainer may have this callback, too.
        bad_steps, checkpointer = getattr(trainer, "bad_steps", None), trainer._checkpointer
        if trainer._total_batches_completed == 1:
            _tell_of_unknown_words(trainer.model)
        if bad_steps is not None and bad_steps.settle(trainer):
            # With --recover the run goes on after these batches.
            number, bad_steps.in_a_row = bad_steps.in_a_row, 0
            self._save(trainer)
            raise ConfigurationError(
                f"The run has ended: {number} steps in a row had a loss or a gradient that isn't "
                "finite (trainer.max_bad_steps). The weights are those before them, and the "
                "checkpoint has them. The sentences are in bad_steps*.jsonl beside it. A lower "
                "learning rate, more warm-up steps or trainer.grad_norm may help; or begin again "
                "from an older checkpoint."
            )
        # The checkpointer's own rule. Every process follows it by itself, so they collect in step.
        interval = None if checkpointer is None else checkpointer._save_every_num_batches
        if interval is not None and batch_number - self._last_collected >= interval:
            self._last_collected = batch_number
            self._collect(trainer)

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
        self._collect(trainer)
        if not self.serialization_dir:
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

        Raises `RunStopped`.
        """
        steps, epoch = trainer._batches_in_epoch_completed, trainer._epochs_completed
        self._save(trainer)
        said = f"Go on with: {command_to_go_on(trainer._serialization_dir)}"
        if trainer._checkpointer is None:
            said = "No checkpoint was written: the config has no checkpointer"
        if trainer._primary:
            name = signal.Signals(number).name
            logger.warning("Stopped by %s after %s steps of epoch %s. %s", name, steps, epoch, said)
        raise RunStopped(number)

    def _save(self, trainer: Any) -> None:
        self._collect(trainer)
        if trainer._checkpointer is not None:
            trainer._checkpointer.save_checkpoint(trainer)
        if several_processes():
            dist.barrier()

    def _collect(self, trainer: Any) -> None:
        """Called by all processes of a distributed run before the first writes a checkpoint."""
        if several_processes():
            states: List[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(states, self._moving(trainer)["random"])
            self._random_states = states

    @contextmanager
    def validating(self, trainer: Any) -> Iterator[None]:
        """Within it, the state is that of its beginning: a run that stops there begins anew."""
        self._before_validation = self._moving(trainer)
        try:
            yield
        finally:
            self._before_validation = None

    def _moving(self, trainer: Any) -> Dict[str, Any]:
        """What validation moves on."""
        if self._before_validation is not None:
            return self._before_validation
        moving = {"random": _get_random_state(trainer.cuda_device)}
        if hasattr(trainer._validation_data_loader, "resume"):
            moving["validation"] = trainer._validation_data_loader.state_dict()
        return moving

    @overrides
    def state_dict(self) -> Dict[str, Any]:
        trainer: Any = self.trainer
        if trainer is None:
            return {}
        moving = self._moving(trainer)
        state = {
            "bad_steps": trainer.bad_steps.in_a_row if hasattr(trainer, "bad_steps") else 0,
            "metrics": self.metrics,
            "validates": trainer._should_validate_this_epoch,
            "step": self._step,
            "total_batches": trainer._total_batches_completed,
            **moving,
            "random": self._random_states or [moving["random"]],
        }
        if hasattr(trainer.data_loader, "resume"):
            state["train"] = trainer.data_loader.state_dict()
        return state

    @overrides
    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        # Of a run that version 0.2.0 began, the state is in two parts.
        self._state.update(state_dict)


def is_state(state: Any) -> bool:
    """Whether a callback's state in a checkpoint is of this one, or a part of it."""
    return isinstance(state, dict) and bool({"bad_steps", "total_batches"} & state.keys())


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


def _tell_of_unknown_words(model: Any) -> None:
    targets, unknown = getattr(model, "first_targets", None), word_list(model.vocab).unknown
    if targets is not None and unknown is not None:
        tell_of_unknown_words(int((targets == unknown - 1).sum()), targets.numel())


def _step_of_run(trainer: Any, begun: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """
    What a step of this run is, whatever number of processes it goes on with: a batch for each of
    `processes`, `accumulation` times; an epoch may be `batches_per_epoch` such rounds.

    Raises `ConfigurationError` if these processes can't divide it.
    """
    loader = trainer.data_loader
    processes = dist.get_world_size() if several_processes() else 1
    accumulation = trainer._num_gradient_accumulation_steps
    if begun is None:
        # A checkpoint of an earlier version says nothing, and its run goes on as it is now.
        return {
            "processes": processes,
            "accumulation": accumulation,
            "batches_per_epoch": getattr(loader, "batches_per_epoch", None),
        }
    if (processes, accumulation) == (begun["processes"], begun["accumulation"]):
        return begun
    num_batches = begun["processes"] * begun["accumulation"]
    if processes * accumulation != num_batches:
        numbers = ", ".join(str(n) for n in range(1, num_batches + 1) if num_batches % n == 0)
        raise ConfigurationError(
            f"A step of this run is {num_batches} batches ({begun['processes']} processes x "
            f"{begun['accumulation']}), and {processes} processes x {accumulation} were asked for. "
            f"Go on with a number of processes that divides it, {numbers}, and set "
            f"trainer.num_gradient_accumulation_steps to {num_batches} divided by that."
        )
    if not hasattr(loader, "resume"):
        raise ConfigurationError(
            f"The run was begun with {begun['processes']} processes, and there are {processes} "
            "now. Only the data loader language_modeling divides batches among others."
        )
    loader.deal_as(begun["processes"])
    logger.warning(
        "Steps stay those that the run was begun with, %d batches: %d processes x %d.",
        *(num_batches, processes, accumulation),
    )
    return begun


def _restore_best_weights(trainer: Any) -> None:
    # At the end of an epoch AllenNLP writes the checkpoint first, then best.th, and only then notes
    # where that is. A run that goes on from such a checkpoint would give back its last weights
    # instead of its best ones.
    if (
        trainer._start_after_batches_in_epoch_completed
        or not trainer._start_after_epochs_completed
        or trainer._serialization_dir is None
        or (trainer._ddp_wrapped_model is not None and trainer._ddp_wrapped_model.is_sharded)
    ):
        return
    path, average = Path(trainer._serialization_dir) / "best.th", trainer._moving_average
    if trainer._metric_tracker.is_best_so_far() and trainer._primary:
        # Of this checkpoint, whose weights the model has.
        if average is not None:
            average.assign_average_value()
        try:
            trainer._save_model_state(str(path))
        finally:
            if average is not None:
                average.restore()
    if several_processes():
        dist.barrier()
    if path.exists():
        trainer._best_model_filename = str(path)


def _get_random_state(device: torch.device) -> Dict[str, Any]:
    # AllenNLP reads checkpoints with torch.load, which by default takes nothing but tensors and
    # Python's own types.
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _go_on_with(states: List[Dict[str, Any]], rank: int, device: torch.device) -> None:
    _set_random_state(states[rank % len(states)], device)
    if rank >= len(states):
        # One more process than there were: its dropout isn't to be another one's.
        seed = int(torch.randint(2**31, (rank + 1,))[rank])
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(seed)
