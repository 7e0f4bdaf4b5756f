"""
The folder of a training run: one run at a time works in it, and it holds what one config gave.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List

from allennlp.common import Params
from allennlp.common.meta import META_NAME
from allennlp.models.archival import CONFIG_NAME

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import errors_of_disk, json_text, remove_left_behind
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

_ACCUMULATION = "trainer.num_gradient_accumulation_steps"

# Of a config that differs in more, not all is named.
MOST_NAMED = 20


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
    if any(ord(character) < 32 for character in str(folder)):
        raise ConfigurationError(
            f"The name of the output folder has a control character: {str(folder)!r}. Choose "
            "another one."
        )
    with ExitStack() as stack:
        with errors_of_disk(folder, "Choose another folder with -s."):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / LOCK, "a+", encoding="utf-8"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigurationError(
                f"Another run works in {folder} ({file.read().strip() or 'just begun'}). Wait for "
                "its end, or choose another folder with -s."
            ) from None
        except OSError as error:
            # Not every network's file system has locks.
            logger.warning("%s can't be locked (%s): start no second run in it.", folder, error)
        _wait_for_workers(folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """
    Within the block, this process of a distributed run works in a folder, and no other run begins
    there.
    """
    with open(folder / LOCK_OF_WORKERS, "a", encoding="utf-8") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def _wait_for_workers(folder: Path) -> None:
    """Raises `ConfigurationError` if processes of an earlier run don't end."""
    path = folder / LOCK_OF_WORKERS
    if not path.exists():
        return
    end = time.monotonic() + SECONDS_TO_WAIT
    with open(path, "a", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ConfigurationError(
                        f"Processes of an earlier run are still at work in {folder}: end them."
                    ) from None
            except OSError:
                return
            time.sleep(0.1)


def prepare(params: Params, folder: Path, recover: bool, force: bool) -> None:
    """
    AllenNLP's `create_serialization_dir`, for a folder that is :func:`locked`.

    `params`: the config. `recover`: whether a run of this config is to go on. `force`: whether what
    is there gives way. Raises `ConfigurationError` if the folder and the arguments don't go
    together.
    """
    if recover and force:
        raise ConfigurationError(
            "--recover goes on with what is in the folder and --force removes it: give one of them."
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove_left_behind(folder)
    entries = _entries(folder)
    if force:
        for name in entries:
            _remove(folder / name)
        entries = []
    if not entries or only_begun(params, folder):
        return
    differences = _differences(params, folder)
    if not recover:
        raise ConfigurationError(
            f"{folder} already exists and is not empty. "
            + _what_it_holds(folder, differences)
            + " Choose another folder with -s, or --force to remove all that is in it."
        )
    if differences:
        raise ConfigurationError(
            f"The config isn't the one that {folder} was begun with: {_named(differences)}. "
            "Restore it, or begin another run in another folder."
        )
    logger.info("Recovering from prior training at %s.", folder)


def only_begun(params: Params, folder: Path) -> bool:
    """
    Whether a folder holds nothing but a start of a language model's run that came to no checkpoint:
    it gives way to any config.
    """
    entries = _entries(folder)
    return (
        CONFIG_NAME in entries
        and all(map(_OF_START.fullmatch, entries))
        and trains_language_model(params.as_dict(quiet=True))
    )


def _entries(folder: Path) -> List[str]:
    return sorted(
        name
        for name in os.listdir(folder)
        if name not in (LOCK, LOCK_OF_WORKERS) and not _OF_NODE.fullmatch(name)
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


def _what_it_holds(folder: Path, differences: List[str]) -> str:
    if not (folder / CONFIG_NAME).exists():
        return "It doesn't look like a run."
    if differences:
        return f"It holds a run of another config: {_named(differences)}."
    return "It holds a run of this config: go on with it by --recover."


def _differences(params: Params, folder: Path) -> List[str]:
    """What the config in the folder says that the one given doesn't, and the other way round."""
    path = folder / CONFIG_NAME
    if not path.exists():
        if has_checkpoints(folder):
            logger.warning("%s has no %s: the config given takes its place.", folder, CONFIG_NAME)
            return []
        raise ConfigurationError(
            f"{folder} is not empty and has no {CONFIG_NAME}, so it is no run's folder. Choose "
            "another one with -s."
        )
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        # Version 0.2.0 named none, and ours as AllenNLP's.
        name_parts(begun)
        before = Params(own_names(begun)).as_flat_dict()
    except (ValueError, OSError, TypeError, AttributeError):
        logger.warning("%s can't be read: the config given takes its place.", path)
        return []
    given = json.loads(json.dumps(params.as_dict(quiet=True)))
    name_parts(given)
    now = Params(own_names(given)).as_flat_dict()
    different = [
        key
        for key in sorted({*before, *now})
        if key not in before or key not in now or before[key] != now[key]
    ]
    if all(map(_is_of_processes, different)) and (
        # A checkpoint says what a step is.
        has_checkpoints(folder) or _batches_a_step(before) == _batches_a_step(now)
    ):
        return []
    return [f"{key} is {_shown(now, key)}, and was {_shown(before, key)}" for key in different]


def _is_of_processes(key: str) -> bool:
    """Whether a key says how many processes share a step, and on which devices."""
    return key.startswith("distributed.") or key in (
        "distributed",
        "trainer.cuda_device",
        _ACCUMULATION,
    )


def _batches_a_step(config: Dict[str, Any]) -> Any:
    devices = config.get("distributed.cuda_devices")
    processes = len(devices) if isinstance(devices, list) else 1
    nodes, accumulation = config.get("distributed.num_nodes", 1), config.get(_ACCUMULATION, 1)
    return processes * nodes * accumulation


def _shown(config: Dict[str, Any], key: str) -> str:
    return json_text(config[key]) if key in config else "missing"


def _named(differences: List[str]) -> str:
    more = len(differences) - MOST_NAMED
    return "; ".join(differences[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
