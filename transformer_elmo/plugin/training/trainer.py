"""
AllenNLP's trainer for what a run of weeks meets: signals, numbers that are none, damaged
checkpoints, sparse gradients, memory that runs out.
"""

import inspect
from contextlib import ExitStack
from functools import partial
from itertools import filterfalse
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import torch
from allennlp.common import Lazy
from allennlp.training.gradient_descent_trainer import GradientDescentTrainer
from allennlp.training.metric_tracker import MetricTracker
from allennlp.training.trainer import Trainer
from overrides import overrides

from transformer_elmo.errors import first_line
from transformer_elmo.files import written_whole
from transformer_elmo.memory import BatchSplitter, is_out_of_memory
from transformer_elmo.nn.kernels.sparse_gradients import clip_norm, several_processes
from transformer_elmo.plugin.large_batches import failure, validated
from transformer_elmo.plugin.training.bad_steps import MAX_BAD_STEPS, BadSteps
from transformer_elmo.plugin.training.checkpointer import (
    ADVICE,
    CrashSafeCheckpointer,
    check_numbers,
    dump,
)
from transformer_elmo.plugin.training.folder import shared
from transformer_elmo.plugin.training.resuming import (
    ResumeDataCallback,
    is_state,
)
from transformer_elmo.plugin.training.stopping import (
    RunStopped,
    lost_processes_are_named,
    stopper,
)


@Trainer.register("language_modeling", exist_ok=True, constructor="from_partial_objects")
class LanguageModelTrainer(GradientDescentTrainer):
    """
    AllenNLP's `gradient_descent` with the same keys, and:

    - SIGTERM and Ctrl-C end a run after its step, with a checkpoint.
    - Checkpoints are written whole, with checksums, and damaged ones are passed over. With
      `--recover` a run goes on with exactly the batches that it has not seen, where the data loader
      is "language_modeling".
    - A loss or a gradient that isn't finite changes no weights; after `max_bad_steps` such steps in
      a row the run ends. The sentences are in `bad_steps.jsonl`.
    - `grad_norm` knows sparse gradients, on several processes too.

    A language model's config that names no trainer, or `gradient_descent`, gets this one. Other
    models may name it.

    Registered as a `Trainer` with name "language_modeling".

    # Parameters

    max_bad_steps : `int`, optional (default = `10`)
    """

    _serialization_dir: Optional[str]

    def __init__(self, *args: Any, max_bad_steps: int = MAX_BAD_STEPS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metric_tracker.__class__ = _MetricTracker
        self.bad_steps = BadSteps(max_bad_steps)
        # Counts the batches that validation has split, and warns of them.
        self._splitter = BatchSplitter()
        self._latest: Any = None
        self.is_training = False
        named = [c for c in self._callbacks if isinstance(c, ResumeDataCallback)]
        self._resuming = named[0] if named else ResumeDataCallback(self._serialization_dir or "")
        self._resuming.is_named = bool(named)
        # After all others, for it may end the run.
        self._callbacks = [c for c in self._callbacks if c not in named] + [self._resuming]

    @overrides
    def train(self) -> Dict[str, Any]:
        # Each process of a distributed run takes its own signals.
        with ExitStack() as stack:
            if several_processes():
                stack.enter_context(lost_processes_are_named())
                stack.enter_context(stopper.listening())
                if self._serialization_dir is not None:
                    stack.enter_context(shared(Path(self._serialization_dir)))
            stack.enter_context(stopper.steps())
            self.is_training = True
            problem: Optional[str] = None
            try:
                metrics = super().train()
            except Exception as error:
                # Of a MemoryError nobody knows whether it was a batch's.
                if not is_out_of_memory(error) or isinstance(error, MemoryError):
                    raise
                problem = first_line(error)
            finally:
                self.is_training = False
            if problem is not None:
                raise failure(self, self._latest, problem)
            if stopper.received is not None:
                # It came after the last step, whose checkpoint is written.
                raise RunStopped(stopper.received)
        # Where an earlier process has finished all epochs, this one has none to tell of.
        return {**self._resuming.metrics, **metrics}

    @overrides
    def batch_outputs(self, batch: Any, for_training: bool) -> Dict[str, torch.Tensor]:
        # Others call this, too: the search for a learning rate wants to see a NaN.
        if not self.is_training:
            return super().batch_outputs(batch, for_training)
        self._latest = batch
        if not for_training:
            whole = partial(super().batch_outputs, for_training=False)
            return validated(self._splitter, whole, batch, self)
        output = super().batch_outputs(batch, for_training)
        self.bad_steps.guard(batch, output)
        return output

    @overrides
    def rescale_gradients(self) -> Optional[float]:
        sparse = any(p.grad is not None and p.grad.is_sparse for p in self.model.parameters())
        if sparse and not isinstance(self._grad_norm, bool) and self._scaler is None:
            # Each process has the same gradients by now.
            parameters = [p for p in self._pytorch_model.parameters() if p.grad is not None]
            norm: Optional[float] = clip_norm(parameters, self._grad_norm).item()
        else:
            norm = super().rescale_gradients()
        self.bad_steps.norm = norm
        return norm

    @overrides
    def clip_gradient(self) -> None:
        # First of all, for clipping makes a number of an infinity.
        if not self.is_training or self.bad_steps.check(self):
            super().clip_gradient()

    @overrides
    def _train_epoch(self, epoch: int) -> Dict[str, float]:
        # For a report: it stands in the epoch's metrics as `training_learning_rate`.
        metrics = super()._train_epoch(epoch)
        return {**metrics, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    @overrides
    def _validation_loss(self, epoch: int) -> Tuple[float, Optional[float], int]:
        with self._resuming.validating(self):
            try:
                return super()._validation_loss(epoch)
            except RunStopped as stopped:
                # By now the weights are no longer their moving averages.
                self._resuming.stop(self, stopped.number)
                raise

    @overrides
    def _save_model_state(self, path: str) -> None:
        wrapped = self._ddp_wrapped_model
        state = (self.model if wrapped is None else wrapped).state_dict()
        check_numbers(state, path)
        with written_whole(Path(path), advice=ADVICE) as file:
            dump(state, file)

    @overrides
    def _maybe_restore_checkpoint(self) -> None:
        state = None if self._checkpointer is None else self._checkpointer.load_checkpoint()
        if state is None:
            return
        model_state, training = state
        (self._ddp_wrapped_model or self._pytorch_model).load_state_dict(model_state)
        self._metric_tracker.load_state_dict(training["metric_tracker"])
        self.optimizer.load_state_dict(training["optimizer"])
        # By what they are, for version 0.2.0 had other callbacks.
        for state_dict in filter(is_state, training["callbacks"]):
            self._resuming.load_state_dict(state_dict)
        others = [c for c in self._callbacks if c is not self._resuming]
        for callback, state_dict in zip(others, filterfalse(is_state, training["callbacks"])):
            callback.load_state_dict(state_dict)
        for scheduler, name in (
            (self._learning_rate_scheduler, "learning_rate_scheduler"),
            (self._momentum_scheduler, "momentum_scheduler"),
        ):
            if scheduler is not None:
                scheduler.load_state_dict(training[name])
        average = self._moving_average
        if average is not None:
            # AllenNLP's puts the checkpoint's copies in place of the model's parameters: the
            # average would stand still, and validation see the model without it.
            for name, _ in average._parameters:
                for kept in ("shadows", "backups"):
                    getattr(average, f"_{kept}")[name].copy_(training["moving_average"][kept][name])
        self._start_after_epochs_completed = training["epochs_completed"]
        self._start_after_batches_in_epoch_completed = training["batches_in_epoch_completed"]
        self._best_model_filename = training["best_model_filename"]


class _MetricTracker(MetricTracker):
    """No epoch is the best by a NaN."""

    @overrides
    def add_metrics(self, metrics: Dict[str, float]) -> None:
        score = self.combined_score(metrics)
        if score == score:
            super().add_metrics(metrics)
            return
        self._epochs_with_no_improvement += 1
        self._is_best_so_far = False
        self._epoch_number += 1


def _constructor() -> Any:
    """AllenNLP's `from_partial_objects` with this package's checkpointer and its own key."""
    stock: Any = GradientDescentTrainer.from_partial_objects

    def from_partial_objects(cls: Any, **given: Any) -> LanguageModelTrainer:
        given.setdefault("checkpointer", Lazy(CrashSafeCheckpointer))
        return stock.__func__(cls, **given)

    parameters = dict(inspect.signature(stock.__func__).parameters)
    kind, checkpointer = parameters.pop("kwargs").KEYWORD_ONLY, parameters["checkpointer"]
    parameters["checkpointer"] = checkpointer.replace(
        annotation=Optional[Lazy[CrashSafeCheckpointer]]
    )
    own = inspect.Parameter("max_bad_steps", kind, default=MAX_BAD_STEPS, annotation=int)
    signature = inspect.Signature([*parameters.values(), own])
    from_partial_objects.__signature__ = signature  # type: ignore[attr-defined]
    return classmethod(from_partial_objects)


setattr(LanguageModelTrainer, "from_partial_objects", _constructor())  # noqa: B010
