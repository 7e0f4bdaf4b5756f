"""
The folder of a training run: one run at a time works in it, and it holds what one config gave.
"""

import fcntl
import json
import logging
import os
import re
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List

from allennlp.common import Params
from allennlp.common.meta import META_NAME
from allennlp.models.archival import CONFIG_NAME

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import (
    errors_of_disk,
    json_text,
    read_json,
    remove,
    remove_left_behind,
)
from transformer_elmo.plugin.training.checkpointer import has_checkpoints
from transformer_elmo.pretrained.archive import (
    VOCABULARY,
    WHOLE_SECTION,
    adapted_from,
    own_names,
    trains_language_model,
    with_own_sections,
)

logger = logging.getLogger(__name__)

LOCK = ".lock"
# Of the processes of a distributed run, which live on for a step where the first one is killed.
LOCK_OF_WORKERS = ".lock_workers"
SECONDS_TO_WAIT = 60.0

# Of the machines of a run, all but the first have a folder of their own within the run's: it may be
# the same one on all of them or not.
_OF_NODE = re.compile(r"node\d+")

# What a start leaves that ends before its first checkpoint.
_OF_START = re.compile(
    rf"{re.escape(CONFIG_NAME)}|{re.escape(META_NAME)}|{VOCABULARY}|{re.escape(WHOLE_SECTION)}"
    r"|log|out(_worker\d+)?\.log"
)

TRAINER = "language_modeling"

# Beside the section distributed: how many processes share a step, and on which devices.
_OF_PROCESSES = ("trainer.cuda_device", "trainer.num_gradient_accumulation_steps")

# Of a config that differs in more, not all is named.
MOST_NAMED = 20

_MISSING: Any = object()


def of_node(folder: Path, node_rank: int) -> Path:
    """Where a machine of a run with several of them writes."""
    return folder / f"node{node_rank}" if node_rank else folder


@contextmanager
def locked(folder: Path, recover: bool = False) -> Iterator[None]:
    """
    Within the block, the folder is this process's. The lock goes when the process does, however it
    ends. The folder is made if it isn't there.

    `recover`: whether it must be a run's. Raises `ConfigurationError` if another run works in it,
    it can't be written to, or there is nothing to recover.
    """
    # A run that is killed at once leaves nothing but its lock.
    if recover and not (folder.is_dir() and os.listdir(folder)):
        raise ConfigurationError(
            f"There is nothing to recover in {folder}. Leave out --recover to begin a run."
        )
    with errors_of_disk(folder, "Choose another folder with -s."):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    with open(folder / LOCK, "r+", encoding="utf-8") as file:
        _lock(file, fcntl.LOCK_EX)
        if (folder / LOCK_OF_WORKERS).exists():
            with open(folder / LOCK_OF_WORKERS, "r+", encoding="utf-8") as of_workers:
                _lock(of_workers, fcntl.LOCK_EX, SECONDS_TO_WAIT)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Within it, this process of a distributed run works in a folder, and no other run begins."""
    with open(folder / LOCK_OF_WORKERS, "a+", encoding="utf-8") as file:
        _lock(file, fcntl.LOCK_SH)
        yield


def _lock(file: IO[str], kind: int, seconds: float = 0.0) -> None:
    """Raises `ConfigurationError` if others have it for longer than `seconds`."""
    end = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                file.seek(0)
                raise ConfigurationError(
                    f"Another run works in {Path(file.name).parent} "
                    f"({file.read() or 'its last processes'}). Wait for its end, or choose another "
                    "folder with -s."
                ) from None
        except OSError as error:
            # Not every network's file system has locks.
            return logger.warning("%s can't be locked (%s): start no second run.", file.name, error)
        time.sleep(0.1)


def prepare(params: Params, folder: Path, recover: bool, force: bool) -> bool:
    """
    AllenNLP's `create_serialization_dir`, for a folder that is :func:`locked`.

    `params`: the config. `recover`: whether a run of this config is to go on. `force`: whether what
    is there gives way. Returns whether a run goes on, from a checkpoint. Raises
    `ConfigurationError` if the folder and the arguments don't go together.
    """
    if recover and force:
        raise ConfigurationError(
            "--recover goes on with what is in the folder and --force removes it: give one of them."
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove_left_behind(folder)
    entries = [
        name
        for name in os.listdir(folder)
        if name not in (LOCK, LOCK_OF_WORKERS) and not _OF_NODE.fullmatch(name)
    ]
    if force:
        for name in entries:
            remove(folder / name)
        return False
    # A start that came to no checkpoint gives way to any config, and there is nothing of it to go
    # on with, not even a vocabulary.
    if not entries or (CONFIG_NAME in entries and all(map(_OF_START.fullmatch, entries))):
        return False
    differences = _differences(params, folder)
    if recover and not differences:
        logger.info("Recovering from prior training at %s.", folder)
        return has_checkpoints(folder)
    more = ["..."] if len(differences) > MOST_NAMED else []
    said = "; ".join([*differences[:MOST_NAMED], *more])
    if recover:
        raise ConfigurationError(
            f"The config isn't the one that {folder} was begun with: {said}. "
            "Restore it, or begin another run in another folder."
        )
    it_holds = f"another config: {said}" if said else "this config: go on with it by --recover"
    raise ConfigurationError(
        f"{folder} already exists and is not empty. It holds a run of {it_holds}. Choose another "
        "folder with -s, or --force to remove all that is in it."
    )


def is_ours(params: Params) -> bool:
    """Whether a config is a language model's, or names the trainer of language models."""
    config = params.as_dict(quiet=True)
    trainer = config.get("trainer")
    named = isinstance(trainer, dict) and trainer.get("type") == TRAINER
    return named or trains_language_model(config)


def name_parts(config: Dict[str, Any]) -> None:
    """Puts the name of this package's trainer where a language model's config has AllenNLP's."""
    trainer = config.get("trainer")
    if isinstance(trainer, dict) and trainer.get("type") in (None, "gradient_descent"):
        trainer["type"] = TRAINER


def with_what_it_holds(params: Params, folder: Path) -> Params:
    """
    The config that a run goes on with: where an earlier process of it adapted a language model, the
    vocabulary and the model's section are those that this left. The archive that it began with may
    be gone, and the checkpoint has all weights. Another config is given back as it is.
    """
    config = params.as_dict(quiet=True)
    if not (folder / VOCABULARY).is_dir() or (
        adapted_from(config) and not (folder / WHOLE_SECTION).exists()
    ):
        return params
    own = with_own_sections(config, folder)
    if own == config:
        return params
    if own.get("vocabulary") != config.get("vocabulary"):
        own["vocabulary"] = {**own["vocabulary"], "directory": str(folder / VOCABULARY)}
    return Params(own)


def _differences(params: Params, folder: Path) -> List[str]:
    """What the config in the folder says that the one given doesn't, and the other way round."""
    path = folder / CONFIG_NAME
    if not path.exists() and not has_checkpoints(folder):
        raise ConfigurationError(
            f"{folder} is not empty and has no {CONFIG_NAME}, so it is no run's folder. Choose "
            "another one with -s, or --force to remove all that is in it."
        )
    try:
        before = _flat(read_json(path))
    except ConfigurationError as error:
        logger.warning("%s The config given takes its place.", error)
        return []
    now = _flat(params.as_dict(quiet=True))
    changed = {key: (now.get(key, _MISSING), before.get(key, _MISSING)) for key in {*before, *now}}
    changed = {key: (new, old) for key, (new, old) in sorted(changed.items()) if new != old}
    # Of how many processes share a step, the checkpoint says what it must be.
    if all(key.startswith("distributed") or key in _OF_PROCESSES for key in changed):
        return []
    return [f"{k} is {_shown(new)}, and was {_shown(old)}" for k, (new, old) in changed.items()]


def _flat(config: Dict[str, Any]) -> Dict[str, Any]:
    """A config by its dotted keys. Version 0.2.0 named no trainer, and ours as AllenNLP's."""
    config = json.loads(json.dumps(config))
    name_parts(config)
    return Params(own_names(config)).as_flat_dict()


def _shown(value: Any) -> str:
    return "missing" if value is _MISSING else json_text(value)
