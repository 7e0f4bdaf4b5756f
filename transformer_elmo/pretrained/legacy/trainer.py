"""Trainers of AllenNLP 0.x configs: what each of their keys says now."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformer_elmo.pretrained.legacy.report import Report, is_true, refuse
from transformer_elmo.pretrained.legacy.sections import type_of

MODERN_TYPE = "gradient_descent"
UNKNOWN_KEY = "a trainer has no such key, and AllenNLP 2 would ignore it."

# What AllenNLP 2.10.1's trainer takes. It swallows keys that it doesn't know without a word.
TRAINER_KEYS = {
    *"type patience validation_metric num_epochs cuda_device grad_norm grad_clipping".split(),
    *"distributed world_size local_rank num_gradient_accumulation_steps use_amp no_grad".split(),
    *"optimizer learning_rate_scheduler momentum_scheduler moving_average checkpointer".split(),
    *"callbacks enable_default_callbacks run_confidence_checks run_sanity_checks".split(),
    *"grad_scaling ddp_accelerator".split(),
    # This package's own.
    "max_bad_steps",
}
# AllenNLP 0.x read numbers out of strings, which is what the environment has.
NUMBERS: dict[str, Any] = {
    **dict.fromkeys("patience num_epochs num_gradient_accumulation_steps cuda_device".split(), int),
    **dict.fromkeys("summary_interval histogram_interval log_batch_size_period".split(), int),
    **dict.fromkeys("grad_norm grad_clipping model_save_interval".split(), float),
}
TENSORBOARD_KEYS = {
    "summary_interval": "summary_interval",
    "histogram_interval": "distribution_interval",
    "log_batch_size_period": "batch_size_interval",
    "should_log_parameter_statistics": "should_log_parameter_statistics",
    "should_log_learning_rate": "should_log_learning_rate",
}
MODELS_TO_KEEP = "num_serialized_models_to_keep"
KEPT_FOREVER = "keep_serialized_model_every_num_seconds"

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


# Those that did nothing if they were null.
NULL_BY_DEFAULT = ("model_save_interval", KEPT_FOREVER)

TENSORBOARD, CHECKPOINTER = "callbacks.tensorboard", "checkpointer"


@dataclass
class Trainer:
    """
    A modern trainer, and what the old one held that belongs elsewhere now.

    `config`: its own keys. Not an object where the old one wasn't. `batch_size`: of the data
    loader, if there is one number for all batches. `shuffle`: belongs to the data loader.
    `cuda_devices`: belongs to the top-level key `distributed`. `parts`: what belongs to a callback
    and to the checkpointer.
    """

    config: Any
    batch_size: int | None = None
    shuffle: bool = True
    cuda_devices: list[Any] | None = None
    parts: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {TENSORBOARD: {}, CHECKPOINTER: {}}
    )


def modern_trainer(old: Any, batch_size: int | None, report: Report) -> Trainer:
    """
    `old`: the config of the trainer. `batch_size`: of the data loader, if there is one number for
    all batches.
    """
    if not isinstance(old, dict) or not _is_plain(old):
        return Trainer(old)
    if old.get("type") == "callback":
        old = _without_callbacks(old, report)
    trainer = Trainer({}, batch_size)
    _checkpointer(old.get(CHECKPOINTER), trainer, report.if_old)
    for key, value in old.items():
        path = f"trainer.{key}"
        if key in NUMBERS and isinstance(value, str):
            value = _number(key, value, report if key == "cuda_device" else report.if_old)
        if value is None and key in NULL_BY_DEFAULT:
            report.needless(path, value, "it is the default")
        elif key == "model_save_interval" and _several(old.get("cuda_device")):
            report.dropped(path, value, "training on several devices saves by epochs or batches")
        elif key in RULES:
            RULES[key](trainer, path, value, report)
        elif key in TRAINER_KEYS:
            trainer.config[key] = value
        else:
            report.if_old.refused(path, value, UNKNOWN_KEY)
    if trainer.parts[CHECKPOINTER] or isinstance(old.get(CHECKPOINTER), dict):
        trainer.config[CHECKPOINTER] = trainer.parts[CHECKPOINTER]
    if trainer.parts[TENSORBOARD]:
        callbacks = trainer.config.get("callbacks") or []
        callbacks = report.if_old.as_list(callbacks, "trainer.callbacks")
        tensorboard = {"type": "tensorboard", **trainer.parts[TENSORBOARD]}
        trainer.config["callbacks"] = [*callbacks, tensorboard]
    return trainer


def check_trainer_keys(trainer: Any, path: str = "trainer") -> None:
    """
    Finds the misspelled keys of a modern trainer, which AllenNLP 2 would ignore.

    `trainer`: its config. Only that of AllenNLP's own trainer is looked at. `path`: its dotted key.
    Raises `ConfigurationError` if there is a key that the trainer doesn't take; it names the one
    that is most like it.
    """
    if not isinstance(trainer, dict) or trainer.get("type", MODERN_TYPE) != MODERN_TYPE:
        return
    for key, value in trainer.items():
        if key not in TRAINER_KEYS:
            near = difflib.get_close_matches(key, sorted(TRAINER_KEYS), n=1)
            refuse(f"{path}.{key}", value, UNKNOWN_KEY + (f" Is it {near[0]}?" if near else ""))


def _is_plain(trainer: dict[str, Any]) -> bool:
    """Whether a trainer is AllenNLP's own."""
    return trainer.get("type", "default") in ("default", "callback", MODERN_TYPE)


# What becomes of a key: each rule takes the trainer, the key's path, its value, and the report.
Rule = Callable[[Trainer, str, Any, Report], None]


def _type(trainer: Trainer, path: str, value: Any, report: Report) -> None:
    if value == "default":
        report.needless(path, value, "it is the default")
    else:
        trainer.config["type"] = value


def _cuda_device(trainer: Trainer, path: str, value: Any, report: Report) -> None:
    if not isinstance(value, list):
        trainer.config["cuda_device"] = value
        return
    devices = [report.as_number(device, int, path) for device in value]
    if len(devices) == 1:
        trainer.config["cuda_device"] = devices[0]
        report.moved(path, value, path, devices[0])
    elif devices:
        trainer.cuda_devices = devices
        report.moved(path, value, "distributed.cuda_devices", devices)
    else:
        report.refused(path, value, "expected at least one device.")


def _shuffle(trainer: Trainer, path: str, value: Any, report: Report) -> None:
    trainer.shuffle = is_true(value)
    report.moved(path, value, "data_loader.shuffle", trainer.shuffle)


def _accumulation(trainer: Trainer, path: str, value: Any, report: Report) -> None:
    if not trainer.batch_size:
        reason = "batches have no common size, so that the number of steps is unknown"
        report.dropped(path, value, reason)
        return
    instances = report.as_number(value, int, path) or 0
    steps = max(1, -(-instances // trainer.batch_size))
    trainer.config["num_gradient_accumulation_steps"] = steps
    reason = f"batches of {trainer.batch_size}"
    report.moved(path, value, "trainer.num_gradient_accumulation_steps", steps, reason)


def _tensorboard_writer(trainer: Trainer, path: str, value: Any, report: Report) -> None:
    part = trainer.parts[TENSORBOARD]
    said = report.if_old.as_object(value or {}, path)
    part.update({TENSORBOARD_KEYS.get(key, key): value for key, value in said.items()})
    report.if_old.moved(path, value, f"trainer.{TENSORBOARD}", part)


def _models_to_keep(trainer: Trainer, path: str, value: Any, report: Report) -> None:
    # All of them: once -1, now null.
    count = -1 if value is None else report.as_number(value, int, path) or 0
    keep = None if count < 0 else count
    trainer.parts[CHECKPOINTER]["keep_most_recent_by_count"] = keep
    report.moved(path, value, f"trainer.{CHECKPOINTER}.keep_most_recent_by_count", keep)


def _moved_to(part: str, name: str) -> Rule:
    def rule(trainer: Trainer, path: str, value: Any, report: Report) -> None:
        trainer.parts[part][name] = value
        report.moved(path, value, f"trainer.{part}.{name}", value)

    return rule


def _kept_forever(trainer: Trainer, path: str, value: Any, report: Report) -> None:
    report.dropped(path, value, "checkpoints are kept by number or by age")


def _replaced_by(name: str) -> Rule:
    """For a key of the versions in between. Alone it makes no config old."""

    def rule(trainer: Trainer, path: str, value: Any, report: Report) -> None:
        report.if_old.dropped(path, value, f"{name} takes its place")

    return rule


RULES: dict[str, Rule] = {
    "type": _type,
    "cuda_device": _cuda_device,
    "shuffle": _shuffle,
    "gradient_accumulation_batch_size": _accumulation,
    MODELS_TO_KEEP: _models_to_keep,
    KEPT_FOREVER: _kept_forever,
    "model_save_interval": _moved_to(CHECKPOINTER, "save_every_num_seconds"),
    **{key: _moved_to(TENSORBOARD, name) for key, name in TENSORBOARD_KEYS.items()},
    "tensorboard_writer": _tensorboard_writer,
    "opt_level": _replaced_by("use_amp"),
    "batch_callbacks": _replaced_by("callbacks"),
    "epoch_callbacks": _replaced_by("callbacks"),
    "end_callbacks": _replaced_by("callbacks"),
    "trainer_callbacks": _replaced_by("callbacks"),
}


def _number(key: str, text: str, report: Report) -> Any:
    """What a string says; several devices are a list."""
    path = f"trainer.{key}"
    parts = text.split(",") if key == "cuda_device" else [text]
    numbers = [report.as_number(part, NUMBERS[key], path) for part in parts]
    value = numbers if len(numbers) > 1 else numbers[0]
    report.moved(path, text, path, value)
    return value


def _several(cuda_device: Any) -> bool:
    several = cuda_device.split(",") if isinstance(cuda_device, str) else cuda_device
    return isinstance(several, list) and len(several) > 1


def _checkpointer(old: Any, trainer: Trainer, report: Report) -> None:
    for key, value in old.items() if isinstance(old, dict) else ():
        if key in (MODELS_TO_KEEP, KEPT_FOREVER):
            RULES[key](trainer, f"trainer.{CHECKPOINTER}.{key}", value, report)
        else:
            trainer.parts[CHECKPOINTER][key] = value


def _without_callbacks(old: dict[str, Any], report: Report) -> dict[str, Any]:
    """The trainer whose parts were callbacks, as one with keys."""
    report.moved("trainer.type", "callback", "trainer.type", MODERN_TYPE)
    new = {key: value for key, value in old.items() if key not in ("type", "callbacks")}
    callbacks = report.as_list(old.get("callbacks") or [], "trainer.callbacks")
    for i, callback in enumerate(callbacks):
        path = f"trainer.callbacks.{i}"
        kind = type_of(callback)
        said = {} if isinstance(callback, str) else dict(report.as_object(callback, path))
        said.pop("type", None)
        if kind == "post-to-url":
            report.dropped(path, kind, "nothing tells an address of it")
        elif kind not in CALLBACK_KEYS:
            report.refused(f"{path}.type", kind, "AllenNLP 2 has no callback that does this.")
        elif not said:
            report.needless(path, kind, "it is always done")
        for key, value in said.items() if kind in CALLBACK_KEYS else ():
            at = f"{path}.{key}"
            if key not in CALLBACK_KEYS[kind]:
                report.refused(at, value, f"the callback {kind} has no such key.")
            elif kind == "validate":
                report.dropped(at, value, "validation_data_path and its loader say it")
            else:
                new[key] = value
                report.moved(at, value, f"trainer.{key}", value)
    return new
