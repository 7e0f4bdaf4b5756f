"""`allennlp predict` to its end: UTF-8, spaCy's models, models that want to name their tokens."""

import json
import sys
from contextvars import ContextVar
from typing import Any, Callable, Dict, Optional, Type

import torch
from allennlp.commands import predict
from allennlp.common import util as common_util
from allennlp.common.util import JsonDict
from allennlp.data.tokenizers import sentence_splitter, spacy_tokenizer
from allennlp.models.archival import Archive
from allennlp.models.basic_classifier import BasicClassifier
from allennlp.nn import util as nn_util
from allennlp.predictors import Predictor

from transformer_elmo.files import json_text
from transformer_elmo.plugin.patches import wrap
from transformer_elmo.plugin.tokenizers import NoSpacyModelError
from transformer_elmo.pretrained.archive import base_of


def install() -> None:
    """Wraps the functions."""
    wrap(Predictor, "dump_line", _dump_line, "predictions are UTF-8, not \\u escapes")
    wrap(
        predict._PredictManager,
        "__init__",
        _open_files,
        "predictions are UTF-8 whatever the locale is",
    )
    wrap(
        predict._PredictManager,
        "_maybe_print_to_console_and_file",
        _print_readably,
        "the input beside a prediction is UTF-8, too",
    )
    wrap(
        Predictor,
        "from_archive",
        _from_archive,
        "a model that began as another archive's has a predictor, too",
    )
    for module in (common_util, spacy_tokenizer, sentence_splitter):
        wrap(
            module,
            "get_spacy_model",
            _get_spacy_model,
            "a spaCy model that can't be had is told in one message",
        )
    wrap(
        BasicClassifier,
        "forward",
        _classify,
        "a classifier whose words have characters and no ids",
    )
    wrap(
        nn_util,
        "get_token_ids_from_text_field_tensors",
        _token_ids,
        "a classifier whose words have characters and no ids",
    )


def _from_archive(
    stock: Callable[..., Predictor],
    cls: Type[Predictor],
    archive: Archive,
    predictor_name: Optional[str] = None,
    *args: Any,
    **kwargs: Any,
) -> Predictor:
    if not predictor_name and base_of(archive.config.as_dict(quiet=True)) is not None:
        # Its config doesn't say what it is.
        predictor_name = archive.model.default_predictor
    return stock(cls, archive, predictor_name, *args, **kwargs)


def _dump_line(stock: Callable[..., str], self: Predictor, outputs: JsonDict) -> str:
    return json_text(outputs) + "\n"


def _open_files(stock: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    stock(self, *args, **kwargs)
    for file in (self._output_file, sys.stdout, sys.stdin):
        # What stands in for a standard stream need not be one.
        if hasattr(file, "reconfigure"):
            file.reconfigure(encoding="utf-8")


def _print_readably(
    stock: Callable[..., None],
    self: Any,
    index: int,
    prediction: str,
    model_input: Optional[str] = None,
) -> None:
    if model_input is not None and not self._dataset_reader:
        model_input = json_text(json.loads(model_input))
    stock(self, index, prediction, model_input)


def _get_spacy_model(stock: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return stock(name, *args, **kwargs)
    # Its download ends the program where there is no such model.
    except (Exception, SystemExit) as error:
        raise NoSpacyModelError(name, error) from None


_classifying: ContextVar[bool] = ContextVar("classifying", default=False)


def _classify(stock: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    token = _classifying.set(True)
    try:
        return stock(self, *args, **kwargs)
    finally:
        _classifying.reset(token)


def _token_ids(
    stock: Callable[..., torch.Tensor],
    text_field_tensors: Dict[str, Dict[str, torch.Tensor]],
) -> torch.Tensor:
    try:
        return stock(text_field_tensors)
    except NotImplementedError:
        if not _classifying.get():
            raise
    # The classifier wants ids for nothing but to name its tokens, so it names none.
    tensor = next(t for tensors in text_field_tensors.values() for t in tensors.values())
    return torch.zeros(tensor.size(0), 0, dtype=torch.long, device=tensor.device)
