"""Language models out of archives, set up for what is wanted of them."""

import os
from contextlib import nullcontext
from typing import Any, Dict, Optional, Tuple, Union

from allennlp.common.checks import ConfigurationError as AllenNLPError
from allennlp.common.params import parse_overrides
from allennlp.models.archival import Archive, load_archive

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.elmo import EXPECTED
from transformer_elmo.nn.softmax import softmaxes
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.sentences import DatasetSentenceReader, EncodingModel, adapted
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

    `archive_file`: a `model.tar.gz`, a folder that a training run has left, or a URL. `purpose`:
    what needs the language model, for messages: "a token embedder". `overrides`: further changes to
    the archive's config. `weights_file`: other weights than those in the archive. Returns the
    archive, and why its model can return the top layer only, if that is so. Raises
    `ConfigurationError` if there is no archive, or it holds another kind of model.
    """
    archive_file = os.fspath(archive_file)
    if not archive_file:
        raise ConfigurationError(
            f"The path of the language model's archive is empty.{variables_with(archive_file)} "
            f"{EXPECTED}"
        )
    if weights_file is not None and "://" not in weights_file and not os.path.exists(weights_file):
        raise ConfigurationError(f"There is no weights file {weights_file}.")
    if isinstance(overrides, str):
        overrides = parse_overrides(overrides)
    overrides = dict(overrides or {})
    # AllenNLP's default is None, whatever its annotation says.
    options: Dict[str, Any] = {"weights_file": weights_file}
    refusal: Optional[Exception] = None
    try:
        archive = load_archive(archive_file, overrides={**overrides, **ALL_LAYERS}, **options)
    except FileNotFoundError:
        raise ConfigurationError(
            f"There is no archive {archive_file}.{variables_with(archive_file)} {EXPECTED} The "
            f"current directory is {os.getcwd()}."
        ) from None
    except (AllenNLPError, ValueError, TypeError) as error:
        # Either it opens as it is, and then whoever needs the layers says what is wrong with
        # it, or its own error is the one to see.
        archive = load_archive(archive_file, overrides=overrides, **options)
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
    if isinstance(overrides, str):
        overrides = _parsed(overrides)
    with nullcontext() if softmax else softmaxes("left out"):
        archive, _ = load_language_model(path, "TransformerElmo", overrides, weights_file)
    found = adapted(archive.model, archive.validation_dataset_reader, None)
    assert found is not None
    return found


def _parsed(overrides: str) -> Dict[str, Any]:
    try:
        return parse_overrides(overrides)
    except (RuntimeError, ValueError) as error:
        # Jsonnet's errors go on with an empty line.
        raise ConfigurationError(
            f"The overrides are not JSON ({str(error).strip()}): {overrides:.80}"
        ) from None
