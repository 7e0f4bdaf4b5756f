"""
Language models out of AllenNLP's archives, and out of the folders that its training leaves, without
AllenNLP: its config read as plain JSON, its weights mapped into memory.
"""

import json
import os
import pickle
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import torch

from transformer_elmo.archives import extracted_archive
from transformer_elmo.errors import ConfigurationError, first_line
from transformer_elmo.experiments import NotStandardError, model_config_of
from transformer_elmo.legacy import log_changes, modernize
from transformer_elmo.model_folder import Opened, check_vocabulary, model_of, reader_of
from transformer_elmo.text.corpus import fetch
from transformer_elmo.text.vocabulary import (
    NAMESPACE,
    NAMESPACES_WITHOUT_PADDING,
    WordList,
)

CONFIG, VOCABULARY, WEIGHTS = "config.json", "vocabulary", ("weights.th", "best.th")

_SOFTMAX = "_softmax_loss."


def open_archive(path: str, with_softmax: bool = True) -> Optional[Opened]:
    """
    # Parameters

    path : `str`
        A `model.tar.gz`, the folder of a training run, or a URL.
    with_softmax : `bool`, optional (default = `True`)

    # Returns

    `Opened`, optional
        `None` if there is nothing of that kind at the path.

    # Raises

    `NotStandardError`
        If the model has a part that only AllenNLP has.
    `ConfigurationError`
        If the archive is damaged, or holds another kind of model.
    """
    local = fetch(path) if "://" in path else Path(path)
    if not local.exists():
        return None
    with unpacked(local) as folder:
        return _open_run(folder, path, with_softmax)


def opener(path: str, **special: Any) -> Any:
    """For `transformer_elmo.elmo.openers`: archives as they are, without overrides."""
    if any(value is not None for value in special.values()):
        return None
    opened = open_archive(path)
    return None if opened is None else (opened.model, opened.reader)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder that an archive unpacks to, as long as the block lasts; a folder is itself."""
    if path.is_dir():
        yield path
        return
    with extracted_archive(path) as folder:
        yield Path(folder)


def _open_run(folder: Path, shown: str, with_softmax: bool) -> Opened:
    experiment = read_experiment(folder, shown)
    vocabulary = _vocabulary(folder, shown)
    weights = read_weights(weights_path(folder, shown), with_softmax)
    config = model_config_of(experiment, _softmax_rows(weights))
    check_vocabulary(config, vocabulary, shown)
    model = model_of(config, weights, shown)
    model.card = _card(experiment, folder)
    return Opened(model, reader_of(config, vocabulary), config, model.card)


def read_experiment(folder: Path, shown: str) -> Dict[str, Any]:
    """
    The config of an archive that is unpacked, as AllenNLP 2 would have it. Parameters and errors
    are those of `read_json`.
    """
    modern, changes = modernize(read_json(folder, shown))
    log_changes(changes, shown)
    return modern


def read_json(folder: Path, shown: str) -> Dict[str, Any]:
    """
    The config of an archive that is unpacked. Nothing in it is evaluated.

    # Parameters

    folder : `Path`
    shown : `str`
        What messages call the archive.

    # Raises

    `ConfigurationError`
        If there is none, or it isn't plain JSON.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError:
        raise ConfigurationError(
            f"{shown} has no {CONFIG}, so it is not a model archive. An archive has {CONFIG}, "
            f"{WEIGHTS[0]} and a folder {VOCABULARY}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"The {CONFIG} of {shown} can't be read: {first_line(error)}. In an archive it is "
            "plain JSON."
        ) from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"The {CONFIG} of {shown} is not a config: it holds no object.")
    return config


def weights_path(folder: Path, shown: str) -> Path:
    """
    The weights of an archive that is unpacked.

    # Raises

    `ConfigurationError`
        If there are none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ConfigurationError(
        f"{shown} has no weights (no {' or '.join(WEIGHTS)}), so it is not a trained model."
    )


def read_weights(
    path: Path, with_softmax: bool = True, shown: Optional[str] = None
) -> Dict[str, torch.Tensor]:
    """
    # Parameters

    path : `Path`
        A file that torch wrote. No pickle in it is run.
    with_softmax : `bool`, optional (default = `True`)
    shown : `str`, optional (default = `path`)
        What messages call it.

    # Returns

    `Dict[str, torch.Tensor]`
        On the CPU, mapped from the file where it allows that.

    # Raises

    `ConfigurationError`
        If it holds anything but tensors, or is damaged.
    """
    shown = shown or str(path)
    try:
        state = _loaded(path)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"{shown} holds something other than tensors, or is damaged, and is not loaded because "
            f"that could run a program hidden in it: {first_line(error)}"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ConfigurationError(
            f"{shown} is not a file of weights, or is damaged: {first_line(error)}"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise ConfigurationError(
            f"{shown} holds a {type(state).__name__} where names of tensors and tensors were "
            "expected."
        )
    return {n: t for n, t in state.items() if with_softmax or not n.startswith(_SOFTMAX)}


def _loaded(path: Path) -> Any:
    options: Dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        return torch.load(path, mmap=True, **options)
    except RuntimeError as error:
        # Files from before 2020 are no zip archives, and can't be mapped.
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, **options)


def _vocabulary(folder: Path, shown: str) -> WordList:
    directory = folder / VOCABULARY
    if not directory.is_dir():
        raise ConfigurationError(
            f"{shown} has no folder {VOCABULARY}, so it is not a model archive."
        )
    unpadded = directory / NAMESPACES_WITHOUT_PADDING
    if unpadded.is_file() and NAMESPACE in unpadded.read_text(encoding="utf-8").split():
        raise NotStandardError(f"{shown}: its vocabulary has no padding.")
    name = f"{NAMESPACE}.txt"
    return WordList.read(directory / name, f"{VOCABULARY}/{name} of {shown}")


def _softmax_rows(weights: Dict[str, torch.Tensor]) -> Optional[int]:
    """A row for each word, and one that nobody uses; `None` without a softmax."""
    for name, tensor in weights.items():
        if re.fullmatch(r"_softmax_loss\.softmax_b(\.weight)?", name):
            return tensor.size(0)
    return None


def _card(experiment: Dict[str, Any], folder: Path) -> Dict[str, Any]:
    """What is known of a trained model, for those who meet it later."""
    card: Dict[str, Any] = {}
    corpus = experiment.get("train_data_path")
    if isinstance(corpus, str):
        card["corpus"] = os.path.basename(corpus.rstrip("/*")) or corpus
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return card
    for name in ("best_validation_perplexity", "best_validation_loss"):
        if isinstance(metrics, dict) and isinstance(metrics.get(name), (int, float)):
            card[name.replace("best_", "")] = metrics[name]
    return card
