"""
The one place where AllenNLP's functions are wrapped.

Each wrapper lets through what AllenNLP understands, unchanged, and steps in where AllenNLP would
fail with its insides showing, ignore what it was told, or run what a file brings along:

- `Params.from_file`: configs and overrides of AllenNLP 0.x; overrides that nothing looks at;
variables not set.
- `evaluate_from_archive`: overrides that evaluation doesn't look at.
- `prepare_global_logging`: bad input in training, which it would log with all calls.
- `archival.extracted_archive`, `archival.get_weights_path`: damaged and hostile archives.
- `archival._load_model`, `int_to_device`: a GPU that isn't there.
- `nn.util.read_state_dict`, and for torch below 2.6 `Checkpointer.load_checkpoint` and
  `PretrainedModelInitializer`: no pickle is run.
- `Vocabulary.from_files`, `Vocabulary.set_from_file`: word lists that can't be used.
- `spacy_tokenizer.get_spacy_model`: models of spaCy that can't be had.
- `ReduceOnPlateauLearningRateScheduler`: a torch that is newer than it.
- `gradient_descent_trainer.clip_grad_norm_`: sparse gradients.
- `Predictor.from_archive`: the names that predictors had in AllenNLP 0.x.
"""

import functools
import importlib
import inspect
import json
import logging
import os
import pickle
import re
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

import spacy
import torch
from allennlp.commands import evaluate
from allennlp.common import FromParams
from allennlp.common import logging as common_logging
from allennlp.common import util as common_util
from allennlp.common.checks import ConfigurationError
from allennlp.common.file_utils import cached_path
from allennlp.common.params import Params, with_overrides
from allennlp.common.util import LOADED_SPACY_MODELS
from allennlp.data.tokenizers import spacy_tokenizer
from allennlp.data.vocabulary import DEFAULT_OOV_TOKEN, NAMESPACE_PADDING_FILE, Vocabulary
from allennlp.models import Model, archival
from allennlp.nn import initializers
from allennlp.nn import util as nn_util
from allennlp.predictors import Predictor
from allennlp.training import gradient_descent_trainer
from allennlp.training.checkpointer import Checkpointer
from allennlp.training.learning_rate_schedulers import ReduceOnPlateauLearningRateScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from transformer_elmo.archive import archive_of, extracted_archive
from transformer_elmo.commands import errors
from transformer_elmo.data.corpus import variables_with
from transformer_elmo.legacy import (
    apply_overrides,
    check_evaluation_overrides,
    goes_over,
    is_experiment,
    log_changes,
    old_signs,
    shared_with_validation,
)
from transformer_elmo.legacy.archived_files import archived_files, place_of
from transformer_elmo.legacy.config import ITERATORS, TOP_LEVEL_KEYS
from transformer_elmo.legacy.config_files import (
    archived_config,
    evaluated_file,
    evaluated_overrides,
)
from transformer_elmo.legacy.predictors import modern_predictor
from transformer_elmo.legacy.weights import modern_weights

logger = logging.getLogger(__name__)

_WRAPPED = "_transformer_elmo_wraps"


def install() -> None:
    """Wraps the functions listed above. A second call changes nothing."""
    _wrap_class_method(Params, "from_file", _from_file)
    _wrap(evaluate, "evaluate_from_archive", _evaluate_from_archive)
    _wrap(common_logging, "prepare_global_logging", _prepare_global_logging)
    _wrap_class_method(Vocabulary, "from_files", _vocabulary_from_files)
    _wrap(Vocabulary, "set_from_file", _set_from_file)
    _wrap(archival, "extracted_archive", _extracted_archive)
    _wrap(archival, "get_weights_path", _get_weights_path)
    _wrap(archival, "_load_model", _load_model)
    _wrap(common_util, "int_to_device", _int_to_device)
    _wrap(nn_util, "read_state_dict", _read_state_dict)
    _wrap(spacy_tokenizer, "get_spacy_model", _get_spacy_model)
    _wrap_class_method(Predictor, "from_archive", _from_archive)
    _wrap(gradient_descent_trainer, "clip_grad_norm_", _clip_grad_norm)
    if "verbose" not in inspect.signature(ReduceLROnPlateau).parameters:
        _wrap(ReduceOnPlateauLearningRateScheduler, "__init__", _reduce_on_plateau)
    if torch.__version__ < torch.torch_version.TorchVersion("2.6"):
        # From then on this is torch's own default.
        _wrap(Checkpointer, "load_checkpoint", _with_weights_only)
        _wrap(initializers.PretrainedModelInitializer, "__init__", _with_weights_only)


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Puts `wrapper`, called with the wrapped function first, where `owner` has that function."""
    stock = getattr(owner, name)
    if hasattr(stock, _WRAPPED):
        return
    wrapped = functools.wraps(stock)(lambda *args, **kwargs: wrapper(stock, *args, **kwargs))
    setattr(wrapped, _WRAPPED, stock)
    setattr(owner, name, wrapped)


def _wrap_class_method(owner: type, name: str, wrapper: Callable[..., Any]) -> None:
    stock = owner.__dict__[name].__func__
    if hasattr(stock, _WRAPPED):
        return
    wrapped = functools.wraps(stock)(lambda *args, **kwargs: wrapper(stock, *args, **kwargs))
    setattr(wrapped, _WRAPPED, stock)
    setattr(owner, name, classmethod(wrapped))


# Configs


def _from_file(
    stock: Callable[..., Params],
    cls: type,
    params_file: Union[str, os.PathLike],
    params_overrides: Union[str, Dict[str, Any]] = "",
    ext_vars: Optional[Dict[str, Any]] = None,
) -> Params:
    source = archive_of(Path(params_file).parent)
    if source is not None and not os.path.exists(params_file):
        raise ConfigurationError(
            f"{source} has no {Path(params_file).name}, so it is not a model archive. An archive "
            "has config.json, weights.th and a folder vocabulary."
        )
    file = cached_path(params_file)
    config = (
        evaluated_file(file, ext_vars)
        if source is None
        else archived_config(file, source, ext_vars)
    )
    overrides = evaluated_overrides(params_overrides, ext_vars)
    if source is not None:
        _check_class_names(config, source)
    opened = source is not None or _is_model_folder(Path(params_file))
    shared = shared_with_validation(config, overrides) if opened else overrides

    files = archived_files(Path(file).parent)
    for key, path in files.items():
        place = place_of(config, key)
        if place:
            place[0][place[1]] = str(path)
    ours = files or shared != overrides or _needs_us(config, overrides)
    if not (is_experiment(config) and ours):
        return stock(cls, params_file, params_overrides, ext_vars)
    modern, changes = apply_overrides(config, shared)
    log_changes(changes, source or str(params_file))
    return cls(modern)


def _is_model_folder(params_file: Path) -> bool:
    """A folder that training left behind can be opened in place of the archive in it."""
    folder, name = params_file.parent, params_file.name
    return name == archival.CONFIG_NAME and (folder / archival._DEFAULT_WEIGHTS).exists()


def _needs_us(config: Dict[str, Any], overrides: Dict[str, Any]) -> bool:
    for key in overrides:
        top = key.split(".")[0]
        if top in ITERATORS or not (top in TOP_LEVEL_KEYS or top in config):
            return True
        if goes_over(key, config.get(key), overrides[key]):
            return True
    if old_signs(config):
        return True
    try:
        return bool(overrides) and bool(old_signs(with_overrides(config, overrides)))
    except ValueError:
        # AllenNLP refuses them too, and says why.
        return False


def _evaluate_from_archive(
    stock: Callable[..., Dict[str, Any]], *args: Any, **kwargs: Any
) -> Dict[str, Any]:
    given = inspect.signature(stock).bind(*args, **kwargs).arguments
    check_evaluation_overrides(evaluated_overrides(given.get("cmd_overrides") or ""))
    return stock(*args, **kwargs)


def _prepare_global_logging(stock: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    stock(*args, **kwargs)
    errors.install()


def _check_class_names(config: Any, source: str) -> None:
    """
    AllenNLP calls whatever a config's `type` names by a dotted path. In an archive, which somebody
    else may have written, that must be a class made to be built from a config.
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


# Archives


def _extracted_archive(
    stock: Callable[..., Any], resolved_archive_file: Union[str, os.PathLike], cleanup: bool = True
) -> Any:
    return extracted_archive(resolved_archive_file, cleanup)


def _get_weights_path(stock: Callable[..., str], serialization_dir: Union[str, os.PathLike]) -> str:
    path = stock(serialization_dir)
    if not os.path.exists(path):
        raise ConfigurationError(
            f"{archive_of(serialization_dir) or serialization_dir} has no weights (no weights.th "
            "or "
            "best.th), so it is not a trained model. If they are elsewhere, name them with "
            "--weights-file."
        )
    return path


def _load_model(
    stock: Callable[..., Model],
    config: Params,
    weights_path: str,
    serialization_dir: Union[str, os.PathLike],
    cuda_device: int,
) -> Model:
    if isinstance(cuda_device, int) and cuda_device >= torch.cuda.device_count():
        raise ConfigurationError(_no_gpu(cuda_device))
    return stock(config, weights_path, serialization_dir, cuda_device)


def _int_to_device(
    stock: Callable[..., torch.device], device: Union[int, torch.device]
) -> torch.device:
    try:
        found = stock(device)
    except RuntimeError:
        # A torch that was built without CUDA.
        if not isinstance(device, int):
            raise
        raise ConfigurationError(_no_gpu(device)) from None
    number = found.index or 0
    if found.type == "cuda" and number >= torch.cuda.device_count():
        raise ConfigurationError(_no_gpu(number))
    return found


def _no_gpu(number: int) -> str:
    return (
        f"GPU {number} was asked for, but torch finds {torch.cuda.device_count() or 'none'} here. "
        "For the CPU, say -1: with --cuda-device or, in a config, trainer.cuda_device or "
        "distributed.cuda_devices."
    )


def _read_state_dict(
    stock: Callable[..., Dict[str, torch.Tensor]],
    path: Union[str, os.PathLike],
    strip_prefix: Optional[str] = None,
    ignore: Optional[List[str]] = None,
    strict: bool = True,
    cuda_device: int = -1,
) -> Dict[str, torch.Tensor]:
    shown = archive_of(Path(path).parent)
    shown = f"{path}" if shown is None else f"{Path(path).name} in {shown}"
    try:
        state = torch.load(
            path, map_location=nn_util.device_mapping(cuda_device), weights_only=True
        )
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"{shown} holds something other than tensors, or is damaged, and is not loaded because "
            "that "
            f"could run a program hidden in it: {_first_line(error)}"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "CUDA" in str(error):
            raise
        raise ConfigurationError(
            f"{shown} is not a file of weights, or is damaged: {_first_line(error)}"
        ) from None
    if not isinstance(state, dict):
        raise ConfigurationError(
            f"{shown} holds a {type(state).__name__} where names of tensors and tensors were "
            "expected."
        )
    if strip_prefix is None and ignore is None:
        return OrderedDict(modern_weights(state, _config_beside(path)))
    # What is there has just been seen to be tensors.
    with _weights_only():
        return stock(path, strip_prefix, ignore, strict, cuda_device)


def _config_beside(path: Union[str, os.PathLike]) -> Any:
    """The config of the model that a file of weights belongs to, if it lies where training or an
    archive has it."""
    try:
        return json.loads((Path(path).parent / archival.CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Another program's file of this name.
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _weights_only() -> Iterator[None]:
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _with_weights_only(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _weights_only():
        return stock(*args, **kwargs)


# Vocabularies


def _vocabulary_from_files(
    stock: Callable[..., Vocabulary],
    cls: type,
    directory: Union[str, os.PathLike],
    *args: Any,
    **kwargs: Any,
) -> Vocabulary:
    source = archive_of(Path(directory).parent)
    if not os.path.isdir(directory) and source is not None:
        raise ConfigurationError(
            f"{source} has no folder vocabulary, so it is not a model archive."
        )
    if os.path.isdir(directory) and not os.path.exists(
        os.path.join(directory, NAMESPACE_PADDING_FILE)
    ):
        raise ConfigurationError(
            f"{source or directory} has no "
            f"{NAMESPACE_PADDING_FILE}{' in its vocabulary' if source else ''}. "
            "A vocabulary is a folder with one file of words for each namespace, such as "
            "tokens.txt, and this one, which holds two lines: *labels and *tags."
        )
    try:
        return stock(cls, directory, *args, **kwargs)
    except FileNotFoundError:
        if os.path.exists(directory):
            raise
        raise ConfigurationError(
            f"There is no vocabulary at {directory}.{variables_with(str(directory))} Expected a "
            "folder with one file of words for each namespace, such as tokens.txt."
        ) from None


def _set_from_file(
    stock: Callable[..., None],
    self: Vocabulary,
    filename: str,
    is_padded: bool = True,
    oov_token: str = DEFAULT_OOV_TOKEN,
    namespace: str = "tokens",
) -> None:
    try:
        stock(self, filename, is_padded, oov_token, namespace)
    except AssertionError:
        raise ConfigurationError(_no_oov_token(filename, oov_token)) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            f"{filename}, line {line}: a byte that is not UTF-8 "
            f"({error.object[error.start]:#04x}). "
            "Convert the file to UTF-8."
        ) from None
    except IsADirectoryError:
        raise ConfigurationError(
            f"{filename} is a folder. A vocabulary is a folder of files, each with the words of "
            "one namespace."
        ) from None
    indices = self._token_to_index[namespace]
    problem = None
    if len(indices) != len(self._index_to_token[namespace]):
        problem = _first_duplicate(filename)
    elif "" in indices and is_padded and namespace == "tokens":
        problem = (
            f"{filename}, line {indices['']}: this line is empty. The number of a word is the "
            "number of its "
            "line. Remove empty lines."
        )
    if problem is None:
        return
    if archive_of(Path(filename).parent.parent) is not None:
        # That model was trained with it.
        logger.warning("%s", problem)
    else:
        raise ConfigurationError(problem)


def _words(filename: str) -> List[str]:
    with open(filename, encoding="utf-8", newline="") as file:
        return re.split(r"\n|\r\n", file.read())


def _no_oov_token(filename: str, oov_token: str) -> str:
    message = (
        f"{filename} has no line {oov_token}, the entry for words that are not in the list. A "
        "vocabulary "
        "file has one word a line, this one among them; every file in the folder is taken for one."
    )
    words = _words(filename)
    for other in ("<UNK>", "<unk>", "[UNK]", "UNK"):
        if other in words:
            return message + f" Line {words.index(other) + 1} is {other}: write {oov_token} there."
    return message + " Add it, for example as the first line."


def _first_duplicate(filename: str) -> str:
    lines: Dict[str, int] = {}
    for number, word in enumerate(_words(filename), start=1):
        if word in lines:
            return (
                f"{filename}, line {number}: the word {word!r} is also on line {lines[word]}. The "
                "number of a "
                "word is the number of its line, so that each may be there once. Remove the second."
            )
        lines[word] = number
    return (
        f"{filename} has the entry for padding, or that for unknown words, twice under two names. "
        "Remove one."
    )


# Tokenizers


def _get_spacy_model(
    stock: Callable[..., Any],
    spacy_model_name: str,
    pos_tags: bool = True,
    parse: bool = False,
    ner: bool = False,
) -> Any:
    """
    Without a trained model there are no tags, but words are split by rules, which come with spaCy.
    """
    options = (spacy_model_name, pos_tags, parse, ner)
    try:
        return stock(*options)
    # Its download ends the program where there is no such model.
    except (Exception, SystemExit) as error:
        problem = (
            f"spaCy's model {spacy_model_name} is not installed and could not be downloaded "
            f"({type(error).__name__}: {_first_line(error)[:80]})"
        )
    try:
        if pos_tags or parse or ner:
            raise ImportError
        language = spacy_model_name.partition("_")[0]
        LOADED_SPACY_MODELS[options] = spacy.blank(language)
    except ImportError:
        raise ConfigurationError(
            f"{problem}. Install it: python -m spacy download {spacy_model_name}. A tokenizer that "
            'is to find words only needs no model: give it "pos_tags": false.'
        ) from None
    logger.warning("%s. Words are found by spaCy's rules for %r alone.", problem, language)
    return LOADED_SPACY_MODELS[options]


# Predictors


def _from_archive(
    stock: Callable[..., Predictor],
    cls: type,
    archive: Any,
    predictor_name: Optional[str] = None,
    *args: Any,
    **kwargs: Any,
) -> Predictor:
    if predictor_name is not None:
        modern = modern_predictor(predictor_name, Predictor.list_available())
        if modern != predictor_name:
            logger.info("The predictor %s of AllenNLP 0.x is %s now.", predictor_name, modern)
        predictor_name = modern
    return stock(cls, archive, predictor_name, *args, **kwargs)


# Training


def _clip_grad_norm(
    stock: Callable[..., torch.Tensor], parameters: List[torch.Tensor], max_norm: float
) -> torch.Tensor:
    """torch's function of this name, which knows no sparse gradients. Shape `()`, the norm."""
    if not any(p.grad is not None and p.grad.is_sparse for p in parameters):
        return stock(parameters, max_norm)
    values = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            # Entries of the same place add up before they count.
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    norm = torch.stack([torch.linalg.vector_norm(v.detach()) for v in values]).norm()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.detach().mul_(factor)
    return norm


def _reduce_on_plateau(stock: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """
    AllenNLP passes a `verbose` that torch has no more. Its schedulers need nothing of torch's class
    but an object of it.
    """
    said = inspect.signature(stock).bind(self, *args, **kwargs).arguments
    options = {k: v for k, v in said.items() if k not in ("self", "verbose")}
    super(ReduceOnPlateauLearningRateScheduler, self).__init__(ReduceLROnPlateau(**options))
