"""
AllenNLP's trainer on what a run meets: signals, numbers that are none, damaged checkpoints, a
second run, sparse gradients, a process that dies.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Union

import torch
from allennlp.commands import train
from allennlp.common import Params, Registrable
from allennlp.training import gradient_descent_trainer
from allennlp.training import util as training_util
from allennlp.training.checkpointer import Checkpointer
from allennlp.training.gradient_descent_trainer import GradientDescentTrainer
from allennlp.training.metric_tracker import MetricTracker
from allennlp.training.moving_average import MovingAverage
from allennlp.training.trainer import TrainerCheckpoint

from transformer_elmo.archived_models import trains_language_model
from transformer_elmo.errors import first_line
from transformer_elmo.files import written_whole
from transformer_elmo.nn.kernels.sparse_gradients import clip_norm, several_processes
from transformer_elmo.out_of_memory import is_out_of_memory
from transformer_elmo.plugin.compat.shown_errors import message_of
from transformer_elmo.plugin.compat.wrong_values import check_config
from transformer_elmo.plugin.data_loader import WeightedBatch
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.large_batches import LargeBatches, failure
from transformer_elmo.plugin.patches import note, wrap
from transformer_elmo.plugin.runs import checkpoints, launched_run, run_folder
from transformer_elmo.plugin.runs.bad_steps import MAX_BAD_STEPS, BadSteps
from transformer_elmo.plugin.runs.processes import spawn
from transformer_elmo.plugin.runs.resumption import ResumeDataCallback
from transformer_elmo.plugin.runs.run_guard import RunGuard, ValidationStoppedError
from transformer_elmo.plugin.runs.stopping import RunStopped, stopper
from transformer_elmo.plugin.vocabulary import recovered_vocabulary


def install() -> None:
    """Wraps the functions."""
    wrap(
        gradient_descent_trainer,
        "clip_grad_norm_",
        _clip_grad_norm,
        "grad_norm with sparse gradients",
    )
    of_trainer: _Wrappers = [
        ("__init__", _init, "max_bad_steps; signals and checks at each step"),
        ("train", _train, "signals wait for the end of a step; memory that runs out"),
        ("batch_outputs", _batch_outputs, "batches too large for the memory; losses not finite"),
        ("rescale_gradients", _rescale_gradients, "a norm that is known isn't computed again"),
        ("clip_gradient", _clip_gradient, "gradients that aren't finite change no weights"),
        ("_validation_loss", _validation_loss, "a signal ends validation"),
        ("_save_model_state", _save_model_state, "best.th is written whole, and without NaN"),
    ]
    for name, wrapper, reason in of_trainer:
        wrap(GradientDescentTrainer, name, wrapper, reason)
    wrap(
        MovingAverage,
        "load_state_dict",
        _load_average,
        "an average goes on with the model's own parameters after --recover",
    )
    wrap(MetricTracker, "add_metrics", _add_metrics, "no epoch is the best by a NaN")
    of_checkpointer: _Wrappers = [
        ("_find_all_checkpoints", _find_all_checkpoints, "names with glob characters"),
        ("_remove_checkpoint", _remove_checkpoint, "names with glob characters; checksums"),
        ("save_checkpoint", _save_checkpoint, "checkpoints are written whole, with checksums"),
        ("load_checkpoint", _load_checkpoint, "damaged checkpoints are passed over"),
    ]
    for name, wrapper, reason in of_checkpointer:
        wrap(Checkpointer, name, wrapper, reason)
    if getattr(Checkpointer._is_primary, "fget", None) is not _is_primary:
        setattr(Checkpointer, "_is_primary", property(_is_primary))  # noqa: B010
        note("allennlp.training.checkpointer.Checkpointer._is_primary", "a node's own checkpoints")
    wrap(
        train,
        "train_model",
        _train_model,
        "one run at a time in a folder; signals; torchrun and srun",
    )
    wrap(
        training_util,
        "create_serialization_dir",
        _create_serialization_dir,
        "a folder of another config: the keys that differ are named",
    )
    if "from_params" not in vars(train.TrainModel):
        # It inherits its own from here.
        setattr(train.TrainModel, "from_params", classmethod(_train_model_of))  # noqa: B010
        note(
            "allennlp.commands.train.TrainModel.from_params",
            "--recover of an adaptation needs neither the archive that it began with nor its text",
        )
    if not isinstance(vars(train)["mp"], SimpleNamespace):
        setattr(train, "mp", SimpleNamespace(spawn=_spawn))  # noqa: B010
        note(
            "allennlp.commands.train.mp.spawn",
            "a process that dies or is stopped is named; processes that torchrun or srun started",
        )


_Wrappers = List[Tuple[str, Callable[..., Any], str]]


def _clip_grad_norm(
    stock: Callable[..., torch.Tensor], parameters: List[torch.Tensor], max_norm: float
) -> torch.Tensor:
    parameters = list(parameters)
    if not any(p.grad is not None and p.grad.is_sparse for p in parameters):
        return stock(parameters, max_norm)
    return clip_norm(parameters, max_norm)


def _init(stock: Callable[..., None], trainer: Any, *args: Any, **kwargs: Any) -> None:
    bad_steps = BadSteps(kwargs.pop("max_bad_steps", MAX_BAD_STEPS))
    stock(trainer, *args, **kwargs)
    trainer._run_guard = RunGuard(trainer._serialization_dir, bad_steps, LargeBatches())
    trainer._callbacks.append(trainer._run_guard)


def _train(stock: Callable[..., Dict[str, Any]], trainer: Any) -> Dict[str, Any]:
    # Each process of a distributed run takes its own signals.
    with ExitStack() as stack:
        if several_processes():
            stack.enter_context(stopper.listening())
            if trainer._serialization_dir is not None:
                stack.enter_context(run_folder.shared(Path(trainer._serialization_dir)))
        stack.enter_context(stopper.steps())
        trainer._run_guard.is_training = True
        problem: Optional[str] = None
        try:
            metrics = stock(trainer)
        except Exception as error:
            # Of a MemoryError nobody knows whether it was a batch's.
            if not is_out_of_memory(error) or isinstance(error, MemoryError):
                raise
            problem = first_line(error)
        finally:
            trainer._run_guard.is_training = False
        if problem is not None:
            raise failure(trainer, trainer._run_guard.large_batches.latest, problem)
        if stopper.received is not None:
            # It came after the last step, whose checkpoint is written.
            raise RunStopped(stopper.received)
    # Where an earlier process has finished all epochs, this one has none to tell of.
    return {**trainer._run_guard.metrics, **metrics}


def _batch_outputs(
    stock: Callable[..., Dict[str, Any]], trainer: Any, batch: Any, for_training: bool
) -> Dict[str, Any]:
    guard = trainer._run_guard
    # Others call this, too: the search for a learning rate wants to see a NaN.
    if not guard.is_training:
        return stock(trainer, batch, for_training)
    weight = 1.0
    if (
        for_training
        and isinstance(batch, WeightedBatch)
        and isinstance(trainer.model, LanguageModel)
    ):
        weight = batch.weight

    def forward(part: Any) -> Dict[str, Any]:
        output = stock(trainer, part, for_training)
        if weight != 1.0:
            # The penalty of a regularizer is the same for all.
            penalty = output.get("reg_loss", 0.0)
            output["loss"] = (output["loss"] - penalty) * weight + penalty
        return output

    output = guard.large_batches.output(forward, trainer, batch, for_training)
    if for_training:
        guard.bad_steps.guard(batch, output)
    return output


def _rescale_gradients(stock: Callable[..., Optional[float]], trainer: Any) -> Optional[float]:
    norm = stock(trainer)
    trainer._run_guard.bad_steps.note_norm(norm)
    return norm


def _clip_gradient(stock: Callable[..., None], trainer: Any) -> None:
    # First of all, for clipping makes a number of an infinity.
    guard = trainer._run_guard
    if not guard.is_training or guard.bad_steps.check(trainer):
        stock(trainer)


def _validation_loss(
    stock: Callable[..., Tuple[float, Optional[float], int]], trainer: Any, epoch: int
) -> Tuple[float, Optional[float], int]:
    with ExitStack() as stack:
        for callback in trainer._callbacks:
            if isinstance(callback, ResumeDataCallback):
                stack.enter_context(callback.validating(trainer))
        try:
            return stock(trainer, epoch)
        except ValidationStoppedError as stopped:
            # By now the weights are no longer their moving averages.
            return trainer._run_guard.stop(trainer, stopped.number)


def _save_model_state(stock: Callable[..., None], trainer: Any, path: str) -> None:
    wrapped = trainer._ddp_wrapped_model
    state = (trainer.model if wrapped is None else wrapped).state_dict()
    checkpoints.check_numbers(state, path)
    with written_whole(Path(path), advice=checkpoints.ADVICE) as file:
        checkpoints.dump(state, file)


def _load_average(
    stock: Callable[..., None], average: MovingAverage, state_dict: Dict[str, Any]
) -> None:
    # AllenNLP's puts the checkpoint's copies in place of the model's parameters: the average would
    # stand still, and validation see the model without it.
    for name, _ in average._parameters:
        average._shadows[name].copy_(state_dict["shadows"][name])
        average._backups[name].copy_(state_dict["backups"][name])


def _add_metrics(stock: Callable[..., None], tracker: Any, metrics: Dict[str, float]) -> None:
    score = tracker.combined_score(metrics)
    if score == score:
        stock(tracker, metrics)
        return
    tracker._epochs_with_no_improvement += 1
    tracker._is_best_so_far = False
    tracker._epoch_number += 1


def _find_all_checkpoints(stock: Callable[..., Any], checkpointer: Any) -> Set[Tuple[int, int]]:
    return checkpoints.find(checkpointer)


def _remove_checkpoint(
    stock: Callable[..., None],
    checkpointer: Any,
    epochs_completed: int,
    batches_in_epoch_completed: int,
) -> None:
    checkpoints.remove(checkpointer, (epochs_completed, batches_in_epoch_completed))


def _is_primary(checkpointer: Any) -> bool:
    return checkpoints.is_first_of_node(checkpointer)


def _save_checkpoint(stock: Callable[..., None], checkpointer: Any, trainer: Any) -> None:
    state = trainer.get_checkpoint_state()
    if state is not None:
        checkpoints.save(checkpointer, state)
    # It finds the files, and removes old checkpoints.
    stock(checkpointer, trainer)


def _load_checkpoint(
    stock: Callable[..., Optional[TrainerCheckpoint]], checkpointer: Any
) -> Optional[TrainerCheckpoint]:
    return checkpoints.load(checkpointer)


def _train_model(
    stock: Callable[..., Any],
    params: Params,
    serialization_dir: Union[str, os.PathLike],
    recover: bool = False,
    force: bool = False,
    node_rank: int = 0,
    *args: Any,
    **kwargs: Any,
) -> Any:
    check_config(params.as_dict(quiet=True))

    def on_node(params: Params, node_rank: int) -> Any:
        folder = run_folder.of_node(Path(serialization_dir), node_rank)
        with run_folder.locked(folder, recover):
            # Without a checkpoint there is nothing to go on with, not even a vocabulary.
            goes_on = recover and (force or not run_folder.only_begun(params, folder))
            return stock(params, str(folder), goes_on, force, node_rank, *args, **kwargs)

    with stopper.listening():
        launch = launched_run.launch_of_run(params)
        if launch is None:
            return on_node(params, node_rank)
        return launched_run.train(
            launch,
            on_node,
            train._train_worker,
            params,
            str(serialization_dir),
            node_rank,
            message_of,
        )


def _spawn(function: Callable[..., None], args: Sequence[Any], nprocs: int) -> None:
    if launched_run.current is None:
        spawn(function, args, nprocs)
    else:
        launched_run.current.work(function, args)


def _train_model_of(cls: Any, params: Params, *args: Any, **kwargs: Any) -> Any:
    folder = kwargs.get("serialization_dir")
    # AllenNLP's calls this once more, for the class that the config means.
    if "vocabulary" not in kwargs and folder and checkpoints.has_checkpoints(Path(folder)):
        params = run_folder.with_what_it_holds(params, Path(folder))
        if trains_language_model(params.as_dict(quiet=True)):
            kwargs["vocabulary"] = recovered_vocabulary(params.pop("vocabulary", {}))
    return Registrable.from_params.__func__(cls, params, *args, **kwargs)  # type: ignore


def _create_serialization_dir(
    stock: Callable[..., None],
    params: Params,
    serialization_dir: Union[str, os.PathLike],
    recover: bool,
    force: bool,
) -> None:
    run_folder.prepare(params, Path(serialization_dir), recover, force)
