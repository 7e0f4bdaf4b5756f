"""Configs and overrides of AllenNLP 0.x, and overrides that nothing would look at."""

import importlib
import json
import os
import re
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Type, Union

import torch
from allennlp.commands import evaluate
from allennlp.common import FromParams
from allennlp.common.params import Params
from allennlp.models import archival
from allennlp.models.archival import Archive
from allennlp.predictors import Predictor

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.patches import wrap
from transformer_elmo.plugin.predictor import modern_name
from transformer_elmo.pretrained import folder as model_folder
from transformer_elmo.pretrained.allennlp_config import experiment_of
from transformer_elmo.pretrained.archive import (
    archived_config,
    base_of,
    contains_language_model,
    own_names,
    trains_language_model,
)
from transformer_elmo.pretrained.jsonnet import evaluated_file, evaluated_overrides
from transformer_elmo.pretrained.legacy import (
    apply_overrides,
    archived_files,
    check_evaluation_overrides,
    check_trainer_keys,
    find_key,
    is_experiment,
    is_old,
    log_changes,
    shared_with_validation,
)
from transformer_elmo.pretrained.legacy.own_names import OWN_NAMES
from transformer_elmo.pretrained.legacy.sections import ITERATORS
from transformer_elmo.pretrained.unpacking import archive_of
from transformer_elmo.text.corpus import fetch

# Whether what is opened is going to be evaluated.
_evaluating: ContextVar[bool] = ContextVar("evaluating", default=False)


# What a config may name by its module.
_BUILT = (
    FromParams,
    torch.nn.Module,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
)
_DOTTED_TYPE = re.compile(r'"type": "([^"\\]+)\.([^".\\]+)"')


def install() -> None:
    """Wraps the functions."""
    wrap(
        Params,
        "from_file",
        _from_file,
        "configs and overrides of AllenNLP 0.x; overrides that nothing looks at; variables "
        "not set; model folders; archived configs are read, and not evaluated",
    )
    wrap(
        evaluate,
        "evaluate_from_archive",
        _evaluate_from_archive,
        "overrides that evaluation doesn't look at are errors",
    )
    wrap(
        Predictor,
        "from_archive",
        _from_archive,
        "models that began as another archive's have a predictor; taggers with a language model "
        "have ours",
    )


def _from_file(
    stock: Callable[..., Params],
    cls: type,
    params_file: Union[str, os.PathLike],
    params_overrides: Union[str, Dict[str, Any]] = "",
    ext_vars: Optional[Dict[str, Any]] = None,
) -> Params:
    folder = Path(params_file).parent
    source = archive_of(folder)
    config = _config(params_file, source, ext_vars)
    overrides = evaluated_overrides(params_overrides, ext_vars)
    if source is not None:
        check_class_names(config, source)
    for key, path in archived_files(folder).items():
        place = find_key(config, key)
        if place:
            place[0][place[1]] = str(path)
    if not is_experiment(config) or not (
        contains_language_model(config)
        or is_old(config)
        # An override may say where it is now.
        or base_of(config) is not None
        or any(key.partition(".")[0] in ITERATORS for key in overrides)
    ):
        return stock(cls, params_file, params_overrides, ext_vars)
    opened = source is not None or _is_opened(Path(params_file))
    if opened:
        overrides = shared_with_validation(config, overrides)
    modern, changes = apply_overrides(config, overrides)
    log_changes(changes, source or str(params_file))
    # An old config may name the model otherwise.
    if not contains_language_model(modern):
        return cls(modern)
    if not opened:
        # Of what is trained already it doesn't matter any more.
        check_trainer_keys(modern.get("trainer"))
    elif _evaluating.get():
        check_evaluation_overrides(overrides)
    if opened and trains_language_model(modern):
        modern["evaluation"] = {"type": "language_modeling", **(modern.get("evaluation") or {})}
    return cls(with_token_names(own_names(modern)))


def with_token_names(config: Dict[str, Any]) -> Dict[str, Any]:
    """
    AllenNLP's classifier names the tokens of its output by their ids. Where words have none, they
    get some, which are embedded as nothing.
    """
    model, reader = config["model"], config.get("dataset_reader")
    embedder = model.get("text_field_embedder") if isinstance(model, dict) else None
    if not isinstance(embedder, dict) or model.get("type") != "basic_classifier":
        return config
    indexers = reader.get("token_indexers") if isinstance(reader, dict) else None
    embedders = embedder.get("token_embedders")
    if isinstance(indexers, dict) and isinstance(embedders, dict) and "tokens" not in indexers:
        indexers["tokens"], embedders["tokens"] = {"type": "single_id"}, {"type": "empty"}
    return config


def _config(
    params_file: Union[str, os.PathLike], source: Optional[str], ext_vars: Optional[Dict[str, Any]]
) -> Any:
    folder = Path(params_file).parent
    if _is_config(Path(params_file)) and model_folder.is_model_folder(folder):
        return experiment_of(model_folder.read_config(folder)[0])
    if source is not None:
        # Somebody else may have written it: it is read and nothing in it is evaluated.
        return archived_config(folder, source)
    is_url = "://" in os.fspath(params_file)
    return evaluated_file(fetch(str(params_file)) if is_url else params_file, ext_vars)


def _is_config(path: Path) -> bool:
    return path.name == archival.CONFIG_NAME


def _is_opened(path: Path) -> bool:
    """A folder that training left behind, or a model folder, is opened in place of an archive."""
    folder = path.parent
    return _is_config(path) and (
        (folder / archival._DEFAULT_WEIGHTS).exists() or model_folder.is_model_folder(folder)
    )


def _evaluate_from_archive(
    stock: Callable[..., Dict[str, Any]], *args: Any, **kwargs: Any
) -> Dict[str, Any]:
    token = _evaluating.set(True)
    try:
        return stock(*args, **kwargs)
    finally:
        _evaluating.reset(token)


def _from_archive(
    stock: Callable[..., Predictor],
    cls: Type[Predictor],
    archive: Archive,
    predictor_name: Optional[str] = None,
    *args: Any,
    **kwargs: Any,
) -> Predictor:
    predictor_name = modern_name(predictor_name)
    if contains_language_model(archive.config.as_dict(quiet=True)):
        # A config that names another archive doesn't say what it is.
        predictor_name = predictor_name or archive.model.default_predictor
        predictor_name = OWN_NAMES["predictor"].get(str(predictor_name), predictor_name)
    return stock(cls, archive, predictor_name, *args, **kwargs)


def check_class_names(config: Any, source: str) -> None:
    """
    AllenNLP calls whatever a config's `type` names by a dotted path. In an archive, which somebody
    else may have written, that must be a class made to be built from a config.

    Raises `ConfigurationError` if it names anything else.
    """
    for module_name, class_name in _DOTTED_TYPE.findall(json.dumps(config, ensure_ascii=False)):
        try:
            found = getattr(importlib.import_module(module_name), class_name, None)
        except ImportError:
            # AllenNLP says which module is missing.
            continue
        if found is not None and not (isinstance(found, type) and issubclass(found, _BUILT)):
            raise ConfigurationError(
                f"The config of {source} has \"type\": '{module_name}.{class_name}', which is no "
                "class for models or data. Don't trust this file."
            )
