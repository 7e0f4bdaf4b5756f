"""
Language models out of AllenNLP's archives, and out of the folders that its training leaves, without
AllenNLP: its config read as plain JSON, its weights mapped into memory.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from transformer_elmo.errors import ConfigurationError, becoming_a_model
from transformer_elmo.files import read_json
from transformer_elmo.pretrained import hub
from transformer_elmo.pretrained.allennlp_config import (
    NotStandardError,
    experiment_of,
    model_config_of,
)
from transformer_elmo.pretrained.config import ModelConfig
from transformer_elmo.pretrained.folder import VOCABULARY as WORDS
from transformer_elmo.pretrained.folder import WEIGHTS as MODEL_WEIGHTS
from transformer_elmo.pretrained.folder import (
    Opened,
    check_vocabulary,
    is_model_folder,
    model_of,
    open_folder,
    read_config,
    reader_of,
)
from transformer_elmo.pretrained.legacy import log_changes, modernize
from transformer_elmo.pretrained.legacy.overrides import merged
from transformer_elmo.pretrained.legacy.own_names import with_own_names, with_stock_names
from transformer_elmo.pretrained.nested_models import (
    EMBEDDERS,
    carried_config,
    embedders_in,
    folder_of,
    inner_weights,
    is_language_model,
)
from transformer_elmo.pretrained.unpacking import extracted_archive, unpack
from transformer_elmo.pretrained.weights import Weights, read_weights, shapes_of
from transformer_elmo.text.corpus import fetch
from transformer_elmo.text.vocabulary import NAMESPACE, NAMESPACES_WITHOUT_PADDING, WordList

logger = logging.getLogger(__name__)

CONFIG, VOCABULARY, WEIGHTS = "config.json", "vocabulary", ("weights.th", "best.th")
ARCHIVE = "model.tar.gz"
# The model's part of a checkpoint: epochs that were finished, batches after them, and the process
# where each has a part of the model.
CHECKPOINT = re.compile(r"model_state_e(\d+)_b(\d+)(_w\d+)?\.th")

# The `type` of a model, and of a vocabulary, that began as another one, and where the folder of the
# training run has the model's whole section.
ADAPTED, WHOLE_SECTION = "from_pretrained_lm", "adapted_model.json"


def open_archive(path: str, with_softmax: bool = True) -> Opened | None:
    """
    `path`: a model folder, a `model.tar.gz`, the folder of a training run, a URL, or a repository
    of the Hub. Returns `None` if there is nothing at the path. Raises `NotStandardError` if the
    model has a part that only AllenNLP has. Raises `ConfigurationError` if the archive is damaged,
    or holds another kind of model.
    """
    local = located(path)
    if not local.exists():
        return None
    with becoming_a_model(path), unpacked(local) as folder:
        if is_model_folder(folder):
            return open_folder(folder, with_softmax)
        return _open_run(folder, path, with_softmax)


def located(path: str) -> Path:
    """Where something is that may be an address or a name of the Hub: it is fetched then."""
    path = hub.local(path)
    return fetch(path) if "://" in path else in_place_of_archive(Path(path))


def in_place_of_archive(path: Path) -> Path:
    """The folder of a run where its archive is asked for and training hasn't come so far."""
    if path.name == ARCHIVE and not path.exists() and (path.parent / CONFIG).is_file():
        logger.warning("%s isn't there: taking what the run in %s has so far.", path, path.parent)
        return path.parent
    return path


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder that an archive unpacks to, as long as the block lasts; a folder is itself."""
    if path.is_dir():
        yield path
        return
    with extracted_archive(path) as folder:
        yield Path(folder)


def _open_run(folder: Path, shown: str, with_softmax: bool) -> Opened:
    experiment = resolved_config(folder, shown)
    if not is_language_model(experiment):
        return _open_inner(folder, experiment, shown)
    weights = _weights_in(folder, shown, with_softmax)
    config = model_config_of(experiment, shapes_of(weights))
    vocabulary = _resolved_words(folder, shown)
    return _put_together(config, weights, vocabulary, shown, _card(experiment, folder))


def _put_together(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    vocabulary: WordList,
    shown: str,
    card: dict[str, Any],
) -> Opened:
    check_vocabulary(config, vocabulary, shown)
    model = model_of(config, weights, shown)
    model.card = card
    return Opened(model, reader_of(config, vocabulary))


def base_of(experiment: Mapping[str, Any]) -> str | None:
    """The archive that training began with, where a config names it in place of its model."""
    return _named(experiment, "from_archive")


def adapted_from(experiment: Mapping[str, Any]) -> str | None:
    """The archive that a config names for an adaptation to other text; `None` if it has none."""
    return _named(experiment, ADAPTED)


def _named(experiment: Mapping[str, Any], kind: str) -> str | None:
    model = experiment.get("model")
    if isinstance(model, dict) and model.get("type") == kind:
        return str(model.get("archive_file"))
    return None


def check_base_exists(path: str, needed_by: str) -> None:
    """A `ConfigurationError` if there is nothing at the path, where training is to have begun."""
    if "://" not in path and not in_place_of_archive(Path(path)).exists():
        raise ConfigurationError(
            f"{needed_by} names {path}, which its training began with and which isn't there any "
            "more. Put it back, or say where it is now: -o "
            '\'{"model.archive_file": "..."}\'.'
        )


@contextmanager
def small_parts(path: str, needed_by: str) -> Iterator[Path]:
    """
    A folder with all of an archive but its weights, as long as the block lasts: as AllenNLP has it,
    from a model folder as well. `needed_by`: the archive that needs it, for messages. Raises
    `ConfigurationError` if there is nothing of that kind at the path.
    """
    local = located(path)
    check_base_exists(str(local), needed_by)
    if local.is_dir() and not is_model_folder(local):
        yield local
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if local.is_dir():
            experiment = experiment_of(read_config(local)[0])
            (folder / CONFIG).write_text(json.dumps(experiment), encoding="utf-8")
            (folder / VOCABULARY).mkdir()
            WordList.read(local / WORDS).write(folder / VOCABULARY)
        else:
            unpack(local, folder, left_out=WEIGHTS)
        yield folder


def resolved_config(folder: Path, shown: str, seen: frozenset[str] = frozenset()) -> dict[str, Any]:
    """
    The config of an archive that is unpacked, with the section of its model where it names the
    archive that training began with. `seen`: the archives that have led here. Raises
    `ConfigurationError` if there is no config, or that archive isn't there.
    """
    return with_its_model(read_experiment(folder, shown), shown, seen)


def with_its_model(
    experiment: dict[str, Any], shown: str, seen: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """As `resolved_config`, for a config that is read already."""
    if adapted_from(experiment) is not None:
        with small_parts(shown, shown) as folder:
            return with_own_sections(experiment, folder, shown)
    base = base_of(experiment)
    if base is None:
        return experiment
    if base in seen:
        raise ConfigurationError(f"{shown} names an archive that names itself: {base}.")
    with small_parts(base, shown) as below:
        before = resolved_config(below, base, seen | {base})
    return {**experiment, "model": before.get("model")}


def trains_language_model(experiment: Mapping[str, Any]) -> bool:
    """Whether a config's model is a language model, also one that began as another."""
    return adapted_from(experiment) is not None or is_language_model(_with_base(experiment))


def contains_language_model(experiment: Mapping[str, Any]) -> bool:
    """Whether a config's model is a language model or has one in it, at any depth."""
    whole = _with_base(experiment)
    ours = adapted_from(experiment) is not None or is_language_model(whole)
    return ours or bool(embedders_in(whole))


def own_names(experiment: dict[str, Any]) -> dict[str, Any]:
    """
    A modern config with this package's variants in place of AllenNLP's parts (`OWN_NAMES`), if it
    contains a language model. Other configs are given back as they are.
    """
    return with_own_names(experiment) if contains_language_model(experiment) else experiment


def stock_names(experiment: dict[str, Any]) -> dict[str, Any]:
    """The same the other way round, for archives that AllenNLP opens without this package."""
    return with_stock_names(experiment)[0]


def _with_base(experiment: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config with the model of the archive that it names; as it is if that can't be read."""
    base = base_of(experiment)
    try:
        return with_its_model(dict(experiment), base) if base else experiment
    except ConfigurationError:
        # Whoever opens the archive says what is wrong with it.
        return experiment


def with_own_sections(
    experiment: dict[str, Any], folder: Path, shown: str | None = None
) -> dict[str, Any]:
    """
    The config of a run that adapted a model, without the archive that this was: with the model's
    whole section, which the run's folder keeps, and without what made the vocabulary. Other configs
    are given back as they are. Raises `ConfigurationError` if the run lacks that section.
    """
    experiment = dict(experiment)
    vocabulary = experiment.get("vocabulary")
    if isinstance(vocabulary, dict) and vocabulary.get("type") == ADAPTED:
        names = {k: v for k, v in vocabulary.items() if k in ("padding_token", "oov_token")}
        experiment["vocabulary"] = {"type": "from_files", "directory": VOCABULARY, **names}
    base = adapted_from(experiment)
    if base is None:
        return experiment
    if not (folder / WHOLE_SECTION).exists():
        raise ConfigurationError(
            f"{shown or folder} was trained from {base} and has no {WHOLE_SECTION}, which says "
            "what model that is. Training writes it when it begins; if the run never got that far, "
            "start it again."
        )
    section = read_json(folder / WHOLE_SECTION, f"{WHOLE_SECTION} of {shown or folder}")
    own = ("type", "archive_file", "data_path")
    changes = {k: v for k, v in experiment["model"].items() if k not in own}
    experiment["model"] = merged(section, changes)
    return experiment


def _resolved_words(folder: Path, shown: str) -> WordList:
    """The words that the model of an archive knows."""
    words = _vocabulary(folder, shown)
    base = base_of(read_experiment(folder, shown))
    if base is None:
        return words
    with small_parts(base, shown) as below:
        before = _resolved_words(below, base)
    # AllenNLP puts the run's words behind those that were there.
    return WordList([*before.words, *(w for w in words.words if w not in before.ids)])


def _open_inner(folder: Path, experiment: dict[str, Any], shown: str) -> Opened:
    """The language model in an archive of a model on top of one, without a softmax."""
    embedders = embedders_in(experiment)
    if not embedders:
        model = experiment.get("model")
        kind = model.get("type") if isinstance(model, dict) else model
        raise ConfigurationError(
            f"{shown} holds a model of type {kind!r}, which is no language model and has none in "
            "it. Expected one whose type is language_model or bidirectional_language_model, or a "
            f"model with a token embedder of type {EMBEDDERS[0]}."
        )
    embedder = embedders[0]
    logger.info("%s: taking the language model in %s.", shown, embedder.path)
    weights = inner_weights(_weights_in(folder, shown), embedder.path)
    if not weights:
        raise ConfigurationError(f"The weights in {shown} have none of a language model's.")
    source = f"the language model in {shown}"
    carried = folder_of(folder, embedder.archive_file)
    if carried.is_dir():
        inner, _ = modernize(carried_config(carried, shown))
        config = model_config_of(inner, shapes_of(weights))
        return _put_together(config, weights, _vocabulary(carried, shown), source, {})
    opened = open_archive(embedder.archive_file, with_softmax=False)
    if opened is None:
        raise embedder.not_there(shown)
    model, words = opened.model, opened.reader.vocabulary
    return _put_together(model.config, weights, words, source, model.card)


def read_experiment(folder: Path, shown: str) -> dict[str, Any]:
    """As `archived_config`, as AllenNLP 2 would have it."""
    modern, changes = modernize(archived_config(folder, shown))
    log_changes(changes, shown)
    return with_own_sections(with_stock_names(modern)[0], folder, shown)


def archived_config(folder: Path, shown: str) -> dict[str, Any]:
    """
    The config of an archive that is unpacked. Nothing in it is evaluated. Raises
    `ConfigurationError` if there is none, or it can't be read.
    """
    if not os.path.lexists(folder / CONFIG):
        raise ConfigurationError(
            f"{shown} has no {CONFIG}, so it is no model. A model folder has {CONFIG}, "
            f"{MODEL_WEIGHTS} and {WORDS}; an archive, and the folder of a training run, {CONFIG}, "
            f"{WEIGHTS[0]} or {WEIGHTS[1]} and a folder {VOCABULARY}."
        )
    return read_json(folder / CONFIG, f"The {CONFIG} of {shown}")


def weights_path(folder: Path, shown: str) -> Path:
    """
    The weights of an archive that is unpacked, or of a run: the best ones, or, before there are
    any, those of the last checkpoint. Raises `ConfigurationError` if there are none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    last = last_checkpoint(folder)
    if last is not None:
        logger.warning("%s has no %s yet: taking the checkpoint %s.", shown, WEIGHTS[1], last.name)
        return last
    raise ConfigurationError(
        f"{shown} has no weights (no {' or '.join(WEIGHTS)}, and no checkpoint), so it is not a "
        "trained model. If they are elsewhere, name them with --weights-file."
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The model's part of a run's last checkpoint, if there is one that has all of the model."""
    found = [match for match in map(CHECKPOINT.fullmatch, os.listdir(folder)) if match]
    whole = [(int(match[1]), int(match[2]), match[0]) for match in found if match[3] is None]
    return folder / max(whole)[2] if whole else None


def _weights_in(folder: Path, shown: str, with_softmax: bool = True) -> Weights:
    path = weights_path(folder, shown)
    return read_weights(path, with_softmax, f"{path.name} of {shown}")


def _vocabulary(folder: Path, shown: str) -> WordList:
    directory = folder / VOCABULARY
    if not directory.is_dir():
        raise ConfigurationError(
            f"{shown} has no folder {VOCABULARY}, so it is not a model archive."
        )
    unpadded = directory / NAMESPACES_WITHOUT_PADDING
    shown_unpadded = f"{VOCABULARY}/{NAMESPACES_WITHOUT_PADDING} of {shown}"
    if unpadded.is_file() and NAMESPACE in WordList.read(unpadded, shown_unpadded).words:
        raise NotStandardError(f"{shown}: its vocabulary has no padding.")
    name = f"{NAMESPACE}.txt"
    return WordList.read(directory / name, f"{VOCABULARY}/{name} of {shown}")


def _card(experiment: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is known of a trained model, for those who meet it later."""
    card: dict[str, Any] = {}
    corpus = experiment.get("train_data_path")
    if isinstance(corpus, str):
        card["corpus"] = os.path.basename(corpus.rstrip("/*")) or corpus
    with suppress(ConfigurationError):
        metrics = read_json(folder / "metrics.json")
        for name in ("best_validation_perplexity", "best_validation_loss"):
            if isinstance(metrics.get(name), (int, float)):
                card[name.replace("best_", "")] = metrics[name]
    return card
