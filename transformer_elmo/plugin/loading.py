"""
Language models out of archives, for `TransformerElmo` and for token embedders; and from what the
archive of a model on top carries of them (see `transformer_elmo.pretrained.nested_models`).
"""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

from allennlp.common import Params
from allennlp.common.checks import ConfigurationError as AllenNLPError
from allennlp.common.params import parse_overrides, with_overrides
from allennlp.common.util import is_global_primary
from allennlp.data import DatasetReader, Vocabulary
from allennlp.models import Model, archival
from allennlp.models.archival import Archive, load_archive

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import folder_written_whole, json_text
from transformer_elmo.inference.elmo import EXPECTED
from transformer_elmo.nn.softmax import softmaxes
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.sentences import DatasetSentenceReader, EncodingModel, adapted
from transformer_elmo.pretrained import hub
from transformer_elmo.pretrained import nested_models as carried_models
from transformer_elmo.pretrained.archive import (
    archived_config,
    last_checkpoint,
    own_names,
    with_its_model,
)
from transformer_elmo.pretrained.nested_models import Embedder, folder_of
from transformer_elmo.pretrained.unpacking import archive_of
from transformer_elmo.text.corpus import variables_with

ALL_LAYERS = {"model.contextualizer.return_all_layers": True}


def load_language_model(
    archive_file: Union[str, "os.PathLike[str]"],
    purpose: str,
    overrides: Union[str, Dict[str, Any], None] = None,
    weights_file: Optional[str] = None,
) -> Tuple[Archive, Optional[Exception]]:
    """
    Opens a language model such that it returns all its layers if it can.

    `archive_file`: as `TransformerElmo.open` takes it. `purpose`: what needs the language model,
    for messages: "a token embedder". `overrides`: further changes to the archive's config.
    `weights_file`: other weights than those in the archive. Returns the archive, and why its model
    can return the top layer only, if that is so. Raises `ConfigurationError` if there is no
    archive, or it holds another kind of model.
    """
    archive_file = os.fspath(archive_file)
    if not archive_file:
        raise no_archive(archive_file)
    if weights_file is not None and "://" not in weights_file and not os.path.exists(weights_file):
        raise ConfigurationError(f"There is no weights file {weights_file}.")
    overrides = _parsed(overrides) if isinstance(overrides, str) else dict(overrides or {})
    # AllenNLP's default is None, whatever its annotation says.
    options: Dict[str, Any] = {"weights_file": weights_file}
    refusal: Optional[Exception] = None
    path = hub.local(archive_file)
    try:
        archive = load_archive(path, overrides={**overrides, **ALL_LAYERS}, **options)
    except FileNotFoundError:
        raise no_archive(archive_file) from None
    except (AllenNLPError, ValueError, TypeError) as error:
        # Either it opens as it is, and then whoever needs the layers says what is wrong with
        # it, or its own error is the one to see.
        archive = load_archive(path, overrides=overrides, **options)
        refusal = error
    if not isinstance(archive.model, LanguageModel):
        raise ConfigurationError(
            f"{archive_file} holds a {type(archive.model).__name__}, but {purpose} needs a "
            "language model: an archive whose model type is language_model or "
            "bidirectional_language_model."
        )
    return archive, refusal


def opened(
    path: str,
    softmax: bool,
    overrides: Union[str, Dict[str, Any], None],
    weights_file: Optional[str],
) -> Tuple[EncodingModel, DatasetSentenceReader]:
    """A language model and its reader, out of whatever AllenNLP opens."""
    with nullcontext() if softmax else softmaxes("left out"):
        archive, _ = load_language_model(path, "TransformerElmo", overrides, weights_file)
    found = adapted(archive.model, archive.validation_dataset_reader, None)
    assert found is not None
    return found


def no_archive(path: str) -> ConfigurationError:
    """What to say where nothing is at the path of a language model."""
    return ConfigurationError(
        f"There is no archive {path!r}.{variables_with(path)} {EXPECTED} The current directory is "
        f"{os.getcwd()}."
    )


def _parsed(overrides: str) -> Dict[str, Any]:
    try:
        return parse_overrides(overrides)
    except (RuntimeError, ValueError) as error:
        # Jsonnet's errors go on with an empty line.
        raise ConfigurationError(
            f"The overrides are not JSON ({str(error).strip()}): {overrides:.80}"
        ) from None


class InnerModel(NamedTuple):
    """A language model without a softmax, which returns all its layers, and its reader."""

    model: LanguageModel
    reader: DatasetReader


def inner_model(
    archive_file: str, run: Optional[str], precision: Optional[str] = None
) -> InnerModel:
    """
    `archive_file`: as the config of the model on top has it. `run`: the folder of that model: of
    its training, or where its archive was unpacked to. A training run is given what its archive
    will have to carry. Raises `ConfigurationError` if there is no language model of the kind that
    words can be embedded with.
    """
    folder = None if run is None else Path(run)
    if folder is not None and _has_weights(folder, archive_file):
        # The weights are among those of the model on top, and are loaded with them.
        return _without_weights(folder, archive_file, precision)
    with softmaxes("left out"):
        archive, refusal = load_language_model(archive_file, "a token embedder", _of(precision))
    if refusal is not None:
        raise ConfigurationError(
            f"The language model in {archive_file} has a contextualizer that does not take "
            "return_all_layers, so its layers cannot be mixed. Use one with a "
            "bidirectional_language_model_transformer."
        ) from refusal
    assert isinstance(archive.model, LanguageModel)
    if folder is not None and folder.is_dir() and is_global_primary():
        # AllenNLP's own loading leaves it as it was.
        config = with_its_model(archive.config.as_dict(quiet=True), archive_file)
        _carry(archive.model.vocab, config, folder_of(folder, archive_file), precision)
    return InnerModel(archive.model, archive.dataset_reader)


def _has_weights(folder: Path, archive_file: str) -> bool:
    """Whether the weights of the model on top are there, and nothing else has to be asked."""
    if archive_of(folder) is not None:
        return folder_of(folder, archive_file).is_dir() or not _exists(archive_file)
    trained = (folder / archival._DEFAULT_WEIGHTS).is_file() or last_checkpoint(folder) is not None
    return trained and not _exists(archive_file)


def _exists(archive_file: str) -> bool:
    return "://" in archive_file or Path(archive_file).exists()


def _carry(
    vocab: Vocabulary, config: Dict[str, Any], target: Path, precision: Optional[str]
) -> None:
    if target.is_dir():
        return
    # An override of a token embedder is its own affair.
    given = config["model"].items()
    model = {key: value for key, value in given if precision is None or key != "precision"}
    sections = carried_models.sections_of({**config, "model": model})
    with folder_written_whole(target) as folder:
        text = json_text(sections, indent=2)
        (folder / carried_models.CONFIG).write_text(text, encoding="utf-8")
        vocab.save_to_files(str(folder / carried_models.VOCABULARY))
        (folder / carried_models.VOCABULARY / ".lock").unlink(missing_ok=True)


def _without_weights(folder: Path, archive_file: str, precision: Optional[str]) -> InnerModel:
    shown = archive_of(folder) or str(folder)
    carried = folder_of(folder, archive_file)
    if not carried.is_dir():
        raise _embedder(folder, archive_file, shown).not_there(shown)
    config = carried_models.carried_config(carried, shown)
    section = config.get("vocabulary") or {}
    vocab = Vocabulary.from_files(
        str(carried / carried_models.VOCABULARY),
        section.get("padding_token"),
        section.get("oov_token"),
    )
    params = Params(with_overrides(own_names(config), {**ALL_LAYERS, **_of(precision)}))
    with softmaxes("left out"):
        model = Model.from_params(vocab=vocab, params=params["model"])
    reader = DatasetReader.from_params(params["dataset_reader"])
    assert isinstance(model, LanguageModel)
    return InnerModel(model, reader)


def _embedder(folder: Path, archive_file: str, shown: str) -> Embedder:
    """The one in the model on top that asks."""
    found = carried_models.embedders_in(archived_config(folder, shown))
    named = [embedder for embedder in found if embedder.archive_file == archive_file]
    path = "model.text_field_embedder.token_embedders.elmo"
    return (named or found or [Embedder(path, {"archive_file": archive_file})])[0]


def _of(precision: Optional[str]) -> Dict[str, Any]:
    return {} if precision is None else {"model.precision": precision}
