"""Trainers of AllenNLP 0.x configs: what each of their keys says now."""

import difflib
from typing import Any

from transformer_elmo.pretrained.legacy.report import (
    Report,
    as_list,
    as_number,
    as_object,
    is_true,
    refuse,
)

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
TENSORBOARD, CHECKPOINTER = "trainer.callbacks.tensorboard", "trainer.checkpointer"
TENSORBOARD_KEYS = {
    "summary_interval": "summary_interval",
    "histogram_interval": "distribution_interval",
    "log_batch_size_period": "batch_size_interval",
    "should_log_parameter_statistics": "should_log_parameter_statistics",
    "should_log_learning_rate": "should_log_learning_rate",
}
SAVE_INTERVAL = "model_save_interval"
MODELS_TO_KEEP = "num_serialized_models_to_keep"
KEPT_FOREVER = "keep_serialized_model_every_num_seconds"
ACCUMULATION = "gradient_accumulation_batch_size"

# Keys that belong to another part of the config now, and their names there.
MOVED = {
    "shuffle": ("data_loader", "shuffle"),
    MODELS_TO_KEEP: (CHECKPOINTER, "keep_most_recent_by_count"),
    SAVE_INTERVAL: (CHECKPOINTER, "save_every_num_seconds"),
    **{key: (TENSORBOARD, name) for key, name in TENSORBOARD_KEYS.items()},
}
DROPPED = {
    KEPT_FOREVER: "checkpoints are kept by number or by age",
    "opt_level": "use_amp takes its place",
    **dict.fromkeys(
        "batch_callbacks epoch_callbacks end_callbacks trainer_callbacks".split(),
        "callbacks takes its place",
    ),
}
# What says no more than what goes without saying.
DEFAULTS = {SAVE_INTERVAL: None, KEPT_FOREVER: None, "type": "default"}
OLD_KEYS = {*MOVED, KEPT_FOREVER, ACCUMULATION}

# Sections by their dotted keys.
Sections = dict[str, dict[str, Any]]


def is_old_trainer(trainer: Any) -> bool:
    """Whether only AllenNLP 0.x could have understood the config of a trainer."""
    return _is_plain(trainer) and (
        trainer.get("type") == "default"
        or isinstance(trainer.get("cuda_device"), (str, list))
        or not OLD_KEYS.isdisjoint(trainer)
    )


def _is_plain(trainer: Any) -> bool:
    """Whether a trainer is AllenNLP's own."""
    return isinstance(trainer, dict) and trainer.get("type", "default") in ("default", MODERN_TYPE)


def modern_trainer(old: Any, batch_size: int | None, report: Report) -> dict[str, Any]:
    """The sections `trainer`, `data_loader` and `distributed` that say what the old trainer did."""
    if not _is_plain(old):
        return {"trainer": old, "data_loader": {}, "distributed": {}}
    config: dict[str, Any] = {}
    sections: Sections = {"trainer": config, "data_loader": {}, "distributed": {}}
    checkpointer = sections[CHECKPOINTER] = {}
    tensorboard = sections[TENSORBOARD] = {}
    inner = old.get("checkpointer")
    for key, value in inner.items() if isinstance(inner, dict) else ():
        if key in (MODELS_TO_KEEP, KEPT_FOREVER):
            _take(key, value, f"{CHECKPOINTER}.{key}", sections, report)
        else:
            checkpointer[key] = value
    for key, value in old.items():
        path = f"trainer.{key}"
        if key in NUMBERS and isinstance(value, str):
            value = _numbers(key, value, report)
        if key in DEFAULTS and value == DEFAULTS[key]:
            report.needless(path, value, "it is the default")
        elif key == SAVE_INTERVAL and "," in str(old.get("cuda_device")):
            report.dropped(path, value, "training on several devices saves by epochs or batches")
        elif key == ACCUMULATION:
            _accumulate(value, batch_size, config, report)
        else:
            _take(key, value, path, sections, report)
    if checkpointer or isinstance(inner, dict):
        config["checkpointer"] = checkpointer
    if tensorboard:
        callbacks = as_list(config.get("callbacks") or [], "trainer.callbacks")
        config["callbacks"] = [*callbacks, {"type": "tensorboard", **tensorboard}]
    return sections


def _take(key: str, value: Any, path: str, sections: Sections, report: Report) -> None:
    if key in DROPPED:
        report.dropped(path, value, DROPPED[key])
    elif key in MOVED:
        (section, name), new = MOVED[key], value
        if key == "shuffle":
            new = is_true(value)
        elif key == MODELS_TO_KEEP:
            # All of them: once -1, now null.
            count = -1 if value is None else as_number(value, int, path)
            new = None if count < 0 else count
        sections[section][name] = new
        report.moved(path, value, f"{section}.{name}", new)
    elif key == "tensorboard_writer":
        said = as_object(value or {}, path)
        sections[TENSORBOARD].update({TENSORBOARD_KEYS.get(k, k): v for k, v in said.items()})
        report.moved(path, value, TENSORBOARD, sections[TENSORBOARD])
    elif key == "cuda_device" and isinstance(value, list):
        devices = [as_number(device, int, path) for device in value]
        if not devices:
            refuse(path, value, "expected at least one device.")
        several = len(devices) > 1
        section, name = ("distributed", "cuda_devices") if several else ("trainer", key)
        new = sections[section][name] = devices if several else devices[0]
        report.moved(path, value, f"{section}.{name}", new)
    elif key in TRAINER_KEYS:
        sections["trainer"][key] = value
    else:
        refuse(path, value, UNKNOWN_KEY)


def _accumulate(value: Any, batch_size: int | None, config: dict[str, Any], report: Report) -> None:
    path, name = f"trainer.{ACCUMULATION}", "num_gradient_accumulation_steps"
    if not batch_size:
        reason = "batches have no common size, so that the number of steps is unknown"
        report.dropped(path, value, reason)
        return
    config[name] = max(1, -(-as_number(value, int, path) // batch_size))
    report.moved(path, value, f"trainer.{name}", config[name], f"batches of {batch_size}")


def _numbers(key: str, text: str, report: Report) -> Any:
    """What a string says; several devices are a list."""
    path = f"trainer.{key}"
    parts = text.split(",") if key == "cuda_device" else [text]
    numbers = [as_number(part, NUMBERS[key], path) for part in parts]
    value = numbers if len(numbers) > 1 else numbers[0]
    report.moved(path, text, path, value)
    return value


def check_trainer_keys(trainer: Any, path: str = "trainer") -> None:
    """
    Raises `ConfigurationError` if AllenNLP's own modern trainer, `trainer`, has a key that it
    doesn't take and would ignore; it names the key that is most like it. Also if it is AllenNLP
    0.9's trainer made of callbacks, which isn't converted: archives of what it trained open.
    """
    if isinstance(trainer, dict) and trainer.get("type") == "callback":
        advice = "write its callbacks' keys into the trainer itself, which does what they did."
        refuse(f"{path}.type", "callback", advice)
    if not isinstance(trainer, dict) or trainer.get("type", MODERN_TYPE) != MODERN_TYPE:
        return
    for key, value in trainer.items():
        if key not in TRAINER_KEYS:
            near = difflib.get_close_matches(key, sorted(TRAINER_KEYS), n=1)
            refuse(f"{path}.{key}", value, UNKNOWN_KEY + (f" Is it {near[0]}?" if near else ""))
