"""Trainers of AllenNLP 0.x configs."""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from transformer_elmo.legacy.changes import Changes, is_true, not_understood, number

TENSORBOARD_KEYS = {
    "summary_interval": "summary_interval",
    "histogram_interval": "distribution_interval",
    "log_batch_size_period": "batch_size_interval",
    "should_log_parameter_statistics": "should_log_parameter_statistics",
    "should_log_learning_rate": "should_log_learning_rate",
}
CHECKPOINTER_KEYS = {
    "num_serialized_models_to_keep": "keep_most_recent_by_count",
    "model_save_interval": "save_every_num_seconds",
}
# Keys of the versions in between. Alone they make no config old.
VANISHED_KEYS = {
    "opt_level": "use_amp takes its place",
    "batch_callbacks": "callbacks takes its place",
    "epoch_callbacks": "callbacks takes its place",
    "end_callbacks": "callbacks takes its place",
    "trainer_callbacks": "callbacks takes its place",
}
FOREVER = "keep_serialized_model_every_num_seconds"

# AllenNLP 2's trainer swallows keys that it doesn't know without a word. These it never knew.
OLD_TRAINER_KEYS = {
    *TENSORBOARD_KEYS,
    *CHECKPOINTER_KEYS,
    FOREVER,
    "shuffle",
    "gradient_accumulation_batch_size",
}
TRAINER_KEYS = {
    "type",
    "patience",
    "validation_metric",
    "num_epochs",
    "cuda_device",
    "grad_norm",
    "grad_clipping",
    "distributed",
    "world_size",
    "local_rank",
    "num_gradient_accumulation_steps",
    "use_amp",
    "no_grad",
    "optimizer",
    "learning_rate_scheduler",
    "momentum_scheduler",
    "moving_average",
    "checkpointer",
    "callbacks",
    "enable_default_callbacks",
    "run_confidence_checks",
    "run_sanity_checks",
    "grad_scaling",
    "ddp_accelerator",
}
# AllenNLP 0.x read numbers out of strings, which is what the environment has.
NUMBERS = {
    "patience": int,
    "num_epochs": int,
    "num_gradient_accumulation_steps": int,
    "cuda_device": int,
    "grad_norm": float,
    "grad_clipping": float,
    "model_save_interval": float,
    "summary_interval": int,
    "histogram_interval": int,
    "log_batch_size_period": int,
}
OLD_CHECKPOINTER_KEYS = ("num_serialized_models_to_keep", FOREVER)
# The old trainer made of callbacks: what each one was given is a key of the trainer now.
CALLBACK_KEYS = {
    "track_metrics": ("patience", "validation_metric"),
    "update_learning_rate": ("learning_rate_scheduler",),
    "update_momentum": ("momentum_scheduler",),
    "update_moving_average": ("moving_average",),
    "gradient_norm_and_clip": ("grad_norm", "grad_clipping"),
    "log_to_tensorboard": tuple(TENSORBOARD_KEYS),
    "checkpoint": ("checkpointer", "model_save_interval"),
    "validate": ("validation_data", "validation_iterator"),
}


@dataclass
class Trainer:
    """
    A modern trainer, and what the old one held that belongs elsewhere now.

    # Parameters

    config : `Dict[str, Any]`
    shuffle : `bool`, optional (default = `True`)
        Belongs to the data loader.
    cuda_devices : `List[int]`, optional (default = `None`)
        Belongs to the top-level key `distributed`.
    """

    config: Dict[str, Any]
    shuffle: bool = True
    cuda_devices: Optional[List[int]] = None


def is_old_trainer(trainer: Any) -> bool:
    """Whether a trainer says something that only AllenNLP 0.x understood."""
    if not isinstance(trainer, dict) or not is_plain(trainer):
        return False
    return (
        trainer.get("type") in ("default", "callback")
        or bool(OLD_TRAINER_KEYS & set(trainer))
        or isinstance(trainer.get("cuda_device"), (list, str))
    )


def is_plain(trainer: Dict[str, Any]) -> bool:
    """Whether a trainer is AllenNLP's own."""
    return trainer.get("type", "default") in ("default", "gradient_descent", "callback")


def modern_trainer(trainer: Any, batch_size: Optional[int], changes: Changes) -> Trainer:
    """
    # Parameters

    trainer : `Any`
        The old config.
    batch_size : `int`, optional
        Of the data loader, if there is one number for all batches.
    changes : `Changes`
    """
    if not isinstance(trainer, dict) or not is_plain(trainer):
        return Trainer(trainer)
    if trainer.get("type") == "callback":
        trainer = _without_callbacks(trainer, changes)
    new: Dict[str, Any] = {}
    result = Trainer(new)
    tensorboard: Dict[str, Any] = {}
    checkpointer = _modern_checkpointer(trainer.get("checkpointer"), changes)
    for key, value in trainer.items():
        path = f"trainer.{key}"
        if key in NUMBERS and isinstance(value, str):
            value = _number(key, value, changes)
        if key == "type" and value == "default":
            changes.needless(path, value, "it is the default")
        elif key == "cuda_device" and isinstance(value, list):
            devices = [number(device, int, path) for device in value]
            if len(devices) == 1:
                new[key] = devices[0]
                changes.moved(path, value, path, devices[0])
            elif devices:
                result.cuda_devices = devices
                changes.moved(path, value, "distributed.cuda_devices", devices)
            else:
                not_understood(path, value, "expected at least one device.")
        elif key == "shuffle":
            result.shuffle = is_true(value)
            changes.moved(path, value, "data_loader.shuffle", result.shuffle)
        elif key in TENSORBOARD_KEYS:
            tensorboard[TENSORBOARD_KEYS[key]] = value
            changes.moved(
                path, value, f"trainer.callbacks.tensorboard.{TENSORBOARD_KEYS[key]}", value
            )
        elif key == "num_serialized_models_to_keep":
            keep = _count(value, path)
            checkpointer[CHECKPOINTER_KEYS[key]] = keep
            changes.moved(path, value, f"trainer.checkpointer.{CHECKPOINTER_KEYS[key]}", keep)
        elif key == "model_save_interval":
            if value is None:
                changes.needless(path, value, "it is the default")
            elif _several(trainer.get("cuda_device")):
                changes.dropped(
                    path, value, "training on several devices saves by epochs or batches"
                )
            else:
                checkpointer[CHECKPOINTER_KEYS[key]] = value
                changes.moved(path, value, f"trainer.checkpointer.{CHECKPOINTER_KEYS[key]}", value)
        elif key == FOREVER:
            if value is None:
                changes.needless(path, value, "it is the default")
            else:
                changes.dropped(path, value, "checkpoints are kept by number or by age")
        elif key == "gradient_accumulation_batch_size":
            _accumulation(value, batch_size, new, path, changes)
        elif key == "tensorboard_writer":
            tensorboard.update({TENSORBOARD_KEYS.get(k, k): v for k, v in (value or {}).items()})
            changes.moved(path, value, "trainer.callbacks.tensorboard", tensorboard)
        elif key in VANISHED_KEYS:
            changes.dropped(path, value, VANISHED_KEYS[key])
        elif key == "checkpointer":
            continue
        elif key in TRAINER_KEYS:
            new[key] = value
        else:
            not_understood(
                path, value, "a trainer has no such key, and AllenNLP 2 would ignore it."
            )
    if checkpointer:
        new["checkpointer"] = checkpointer
    elif "checkpointer" in trainer:
        new["checkpointer"] = trainer["checkpointer"]
    if tensorboard:
        new["callbacks"] = [*new.get("callbacks", []), {"type": "tensorboard", **tensorboard}]
    return result


def _number(key: str, text: str, changes: Changes) -> Any:
    """What a string says; several devices are a list."""
    path = f"trainer.{key}"
    parts = text.split(",") if key == "cuda_device" else [text]
    numbers = [number(part, NUMBERS[key], path) for part in parts]
    value = numbers if len(numbers) > 1 else numbers[0]
    changes.moved(path, text, path, value)
    return value


def _count(value: Any, path: str) -> Optional[int]:
    """How many models are kept; `None` for all of them."""
    count = -1 if value is None else number(value, int, path)
    return None if count < 0 else count


def _several(cuda_device: Any) -> bool:
    several = cuda_device.split(",") if isinstance(cuda_device, str) else cuda_device
    return isinstance(several, list) and len(several) > 1


def _accumulation(
    value: Any, batch_size: Optional[int], new: Dict[str, Any], path: str, changes: Changes
) -> None:
    if not batch_size:
        changes.dropped(
            path, value, "batches have no common size, so that the number of steps is unknown"
        )
        return
    steps = max(1, math.ceil(number(value, int, path) / batch_size))
    new["num_gradient_accumulation_steps"] = steps
    changes.moved(
        path, value, "trainer.num_gradient_accumulation_steps", steps, f"batches of {batch_size}"
    )


def _modern_checkpointer(checkpointer: Any, changes: Changes) -> Dict[str, Any]:
    if not isinstance(checkpointer, dict):
        return {}
    new = {}
    for key, value in checkpointer.items():
        path = f"trainer.checkpointer.{key}"
        if key == "num_serialized_models_to_keep":
            keep = new["keep_most_recent_by_count"] = _count(value, path)
            changes.moved(path, value, "trainer.checkpointer.keep_most_recent_by_count", keep)
        elif key == FOREVER:
            changes.dropped(path, value, "checkpoints are kept by number or by age")
        else:
            new[key] = value
    return new


def _without_callbacks(trainer: Dict[str, Any], changes: Changes) -> Dict[str, Any]:
    """The trainer whose parts were callbacks, as one with keys."""
    changes.moved("trainer.type", "callback", "trainer.type", "gradient_descent")
    new = {k: v for k, v in trainer.items() if k not in ("type", "callbacks")}
    for i, callback in enumerate(trainer.get("callbacks") or []):
        path = f"trainer.callbacks.{i}"
        callback = {"type": callback} if isinstance(callback, str) else dict(callback)
        kind = callback.pop("type", None)
        if kind == "post-to-url":
            changes.dropped(path, kind, "nothing tells an address of it")
            continue
        if kind not in CALLBACK_KEYS:
            not_understood(f"{path}.type", kind, "AllenNLP 2 has no callback that does this.")
        for key, value in callback.items():
            if key not in CALLBACK_KEYS[kind]:
                not_understood(f"{path}.{key}", value, f"the callback {kind} has no such key.")
            if kind == "validate":
                changes.dropped(
                    f"{path}.{key}", value, "validation_data_path and its loader say it"
                )
            else:
                new[key] = value
                changes.moved(f"{path}.{key}", value, f"trainer.{key}", value)
        if not callback:
            changes.needless(path, kind, "it is always done")
    return new
