"""Configs and overrides of AllenNLP 0.x, and overrides that nothing would look at."""

import argparse
import atexit
import importlib
import inspect
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Union

import torch
from allennlp.commands import evaluate, predict
from allennlp.common import FromParams, file_utils
from allennlp.common.params import Params
from allennlp.models import archival

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import check_can_write
from transformer_elmo.plugin.patches import note, wrap
from transformer_elmo.pretrained import folder as model_folder
from transformer_elmo.pretrained.allennlp_config import experiment_of
from transformer_elmo.pretrained.archive import archived_config
from transformer_elmo.pretrained.jsonnet import evaluated_file, evaluated_overrides
from transformer_elmo.pretrained.legacy import (
    apply_overrides,
    archived_files,
    check_evaluation_overrides,
    check_trainer_keys,
    find_key,
    is_experiment,
    log_changes,
    shared_with_validation,
)
from transformer_elmo.pretrained.unpacking import archive_of
from transformer_elmo.text.corpus import fetch


def install() -> None:
    """Wraps the functions."""
    wrap(
        Params,
        "from_file",
        _from_file,
        "configs and overrides of AllenNLP 0.x; overrides that nothing looks at; variables "
        "not set; model folders",
    )
    wrap(
        evaluate,
        "evaluate_from_archive",
        _evaluate_from_archive,
        "overrides that evaluation doesn't look at are errors; files that can't be written",
    )
    wrap(predict, "_get_predictor", _get_predictor, "an output file that can't be written")
    if not _can_be_made(Path(file_utils.CACHE_DIRECTORY)):
        file_utils.CACHE_DIRECTORY = tempfile.mkdtemp(prefix="allennlp-cache-")
        atexit.register(shutil.rmtree, file_utils.CACHE_DIRECTORY, ignore_errors=True)
        note(
            "allennlp.common.file_utils.CACHE_DIRECTORY",
            "local files can be read where no home can be written: AllenNLP makes it first",
        )


def _can_be_made(folder: Path) -> bool:
    above = next(path for path in (folder, *folder.parents) if path.exists())
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


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
    if not is_experiment(config):
        return stock(cls, params_file, params_overrides, ext_vars)
    opened = source is not None or _is_opened(Path(params_file))
    if opened:
        overrides = shared_with_validation(config, overrides)
    modern, changes = apply_overrides(config, overrides)
    if not opened:
        # Of what is trained already it doesn't matter any more.
        check_trainer_keys(modern.get("trainer"))
    log_changes(changes, source or str(params_file))
    return cls(modern)


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
    given = inspect.signature(stock).bind(*args, **kwargs).arguments
    check_evaluation_overrides(evaluated_overrides(given.get("cmd_overrides") or ""))
    named = given.get("auto_names", "NONE") == "NONE"
    for name in ("metrics_output_file", "predictions_output_file") if named else ():
        # Of several inputs each has a file of its own, and commas between them.
        for file in str(given.get(name) or "").split(","):
            if file:
                check_can_write(Path(file))
    return stock(*args, **kwargs)


def _get_predictor(stock: Callable[..., Any], args: argparse.Namespace) -> Any:
    if args.output_file:
        check_can_write(Path(args.output_file))
    return stock(args)


def check_class_names(config: Any, source: str) -> None:
    """
    AllenNLP calls whatever a config's `type` names by a dotted path. In an archive, which somebody
    else may have written, that must be a class made to be built from a config.

    Raises `ConfigurationError` if it names anything else.
    """
    allowed = (
        FromParams,
        torch.nn.Module,
        torch.optim.Optimizer,
        torch.optim.lr_scheduler.LRScheduler,
    )
    for path in _dotted_types(config):
        module_name, _, class_name = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module_name), class_name, None)
        except ImportError:
            # AllenNLP says which module is missing.
            continue
        if found is not None and not (isinstance(found, type) and issubclass(found, allowed)):
            raise ConfigurationError(
                f'The config of {source} has "type": {path!r}, which is no class for models or '
                "data. Don't trust this file."
            )


def _dotted_types(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("type"), str) and "." in config["type"]:
            yield config["type"]
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from _dotted_types(value)
