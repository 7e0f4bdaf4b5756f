"""Archives and model folders under AllenNLP: unpacked safely, read as tensors only, mapped."""

import os
from collections import OrderedDict
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

import torch
from allennlp.commands import train
from allennlp.common.params import Params
from allennlp.common.util import namespace_match
from allennlp.data.vocabulary import Vocabulary
from allennlp.models import Model, archival
from allennlp.nn import util as nn_util

from transformer_elmo.errors import ConfigurationError, becoming_a_model
from transformer_elmo.files import read_json
from transformer_elmo.nn.softmax import making_softmaxes, softmaxes
from transformer_elmo.plugin.archiving import archive_model
from transformer_elmo.plugin.patches import wrap
from transformer_elmo.plugin.vocabulary import check_vocabulary_folder, vocabulary_of
from transformer_elmo.pretrained import archive as archived_models
from transformer_elmo.pretrained import folder as model_folder
from transformer_elmo.pretrained import hub
from transformer_elmo.pretrained.archive import contains_language_model
from transformer_elmo.pretrained.config import check_sizes
from transformer_elmo.pretrained.legacy import is_old, modern_weights
from transformer_elmo.pretrained.nested_models import is_language_model
from transformer_elmo.pretrained.unpacking import archive_of, extracted_archive
from transformer_elmo.pretrained.weights import (
    SOFTMAX,
    read_shapes,
    read_weights,
    shapes_of,
    softmax_rows,
)
from transformer_elmo.text.vocabulary import (
    NAMESPACE,
    NAMESPACES_WITHOUT_PADDING,
    PADDING,
    WordList,
)


def install() -> None:
    """Wraps the functions."""
    wrap(
        archival,
        "extracted_archive",
        lambda stock, *args, **kwargs: extracted_archive(*args, **kwargs),
        "damaged and hostile archives",
    )
    wrap(archival, "cached_path", _cached_path, "a run in place of its missing archive")
    wrap(
        archival,
        "_load_model",
        _load_model,
        "model folders; a GPU that isn't there; what an archive lacks",
    )
    wrap(
        nn_util,
        "read_state_dict",
        _read_state_dict,
        "no pickle is run; names of weights in AllenNLP 0.x; weights are mapped, not copied",
    )
    wrap(
        archival,
        "archive_model",
        _archive_model,
        "archives stand alone, and are written whole or not at all",
        train,
    )


def _archive_model(stock: Callable[..., str], serialization_dir: Any, *args: Any, **kw: Any) -> str:
    is_ours = _is_ours(_config_in(Path(serialization_dir)))
    return (archive_model if is_ours else stock)(serialization_dir, *args, **kw)


def _is_ours(config: Any) -> bool:
    return isinstance(config, dict) and contains_language_model(config)


def _cached_path(stock: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    # Whoever imported `load_archive` by name, it asks here first.
    with suppress(ConfigurationError):
        # What isn't a model folder of ours on the Hub, AllenNLP's own client brings.
        path = hub.local(str(path))
    if "://" not in str(path):
        local = archived_models.in_place_of_archive(Path(path))
        if local.exists():
            # AllenNLP's wants to make a folder for downloads even so.
            return str(local)
    return stock(path, *args, **kwargs)


def _load_model(
    stock: Callable[..., Model],
    config: Params,
    weights_path: str,
    serialization_dir: Union[str, os.PathLike],
    cuda_device: int,
) -> Model:
    folder = Path(serialization_dir)
    source = archive_of(folder) or str(folder)
    base = archived_models.base_of(config.as_dict(quiet=True))
    if base is not None:
        archived_models.check_base_exists(base, source)
    if not _is_ours(config.as_dict(quiet=True)):
        return stock(config, weights_path, serialization_dir, cuda_device)
    if isinstance(cuda_device, int) and cuda_device >= torch.cuda.device_count():
        raise ConfigurationError(no_gpu(cuda_device))
    if model_folder.is_model_folder(folder):
        with becoming_a_model(str(folder)):
            return _model_of_folder(config, folder, cuda_device)
    if weights_path == archival.get_weights_path(serialization_dir):
        weights_path = str(archived_models.weights_path(folder, source))
    check_vocabulary_folder(folder / "vocabulary", archive_of(folder))
    if archived_models.adapted_from(config.as_dict(quiet=True)) is not None:
        # The folder of a run: what it began with isn't asked any more.
        config = Params(archived_models.with_own_sections(config.as_dict(quiet=True), folder))
    section = config.as_dict(quiet=True).get("model")
    if is_language_model({"model": section}) and os.path.isfile(weights_path):
        shapes = read_shapes(Path(weights_path), _shown(weights_path))
        check_sizes(section, shapes, source)
        _check_words(folder / "vocabulary", softmax_rows(shapes), source)
    with _reading_ours(source):
        return stock(config, weights_path, serialization_dir, cuda_device)


_ours_is_read: ContextVar[bool] = ContextVar("ours_is_read", default=False)

# How torch and AllenNLP begin a line about weights of another model.
_OTHER_WEIGHTS = ("size mismatch", "Missing key", "Unexpected key")


@contextmanager
def _reading_ours(source: str) -> Iterator[None]:
    """
    Weights that are read in the block are a language model's. Raises `ConfigurationError` in place
    of what torch and AllenNLP raise if they are another model's, which is a line for each of them.
    """
    token = _ours_is_read.set(True)
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if not line.endswith("[]")]
        problems = [f"{line:.200}" for line in lines if line.startswith(_OTHER_WEIGHTS)]
        if not problems:
            raise
        raise ConfigurationError(
            f"{source}: the weights are not of the model that its config and vocabulary describe: "
            f"{' '.join(problems[:3])}{' ...' * (len(problems) > 3)} Restore the config.json and "
            "the vocabulary of its training."
        ) from None
    finally:
        _ours_is_read.reset(token)


def _check_words(folder: Path, rows: Optional[int], source: str) -> None:
    unpadded = (folder / NAMESPACES_WITHOUT_PADDING).read_text(encoding="utf-8").split()
    file = folder / f"{NAMESPACE}.txt"
    if rows is None or not file.is_file() or any(namespace_match(p, NAMESPACE) for p in unpadded):
        return
    words = WordList.read(file, f"vocabulary/{file.name} of {source}").ids
    model_folder.check_number_of_words(len(words.keys() - {PADDING}), rows - 1, source)


def no_gpu(number: Optional[int] = None) -> str:
    """What to say of a GPU that isn't there."""
    asked_for = "A GPU" if number is None else f"GPU {number}"
    return (
        f"{asked_for} was asked for, but torch finds {torch.cuda.device_count() or 'none'} here. "
        "For the CPU, say -1: with --cuda-device or, in a config, trainer.cuda_device or "
        "distributed.cuda_devices."
    )


def _model_of_folder(config: Params, folder: Path, cuda_device: int) -> Model:
    with_softmax = making_softmaxes() != "left out"
    weights = read_weights(folder / model_folder.WEIGHTS, with_softmax).check()
    has_softmax = any(name.startswith(SOFTMAX) for name in weights)
    words = model_folder.read_vocabulary(folder, model_folder.read_config(folder)[0])
    shapes = shapes_of(weights)
    check_sizes(config.as_dict(quiet=True).get("model"), shapes, str(folder))
    vocab: Vocabulary = vocabulary_of(words)
    with softmaxes("to be loaded" if has_softmax else "left out"), _reading_ours(str(folder)):
        model = Model.from_params(vocab=vocab, params=config["model"])
        model.load_state_dict({"_last_average_loss": torch.zeros(1), **weights})
    return model.cuda(cuda_device) if cuda_device >= 0 else model


def _read_state_dict(
    stock: Callable[..., Dict[str, torch.Tensor]],
    path: Union[str, os.PathLike],
    strip_prefix: Optional[str] = None,
    ignore: Optional[List[str]] = None,
    strict: bool = True,
    cuda_device: int = -1,
) -> Dict[str, torch.Tensor]:
    config = _config_in(Path(path).parent)
    # Names of AllenNLP 0.x in an archive of any model are ones that AllenNLP can't read.
    if not (_ours_is_read.get() or _is_ours(config) or is_old(config)):
        return stock(path, strip_prefix, ignore, strict, cuda_device)
    archive = archive_of(Path(path).parent)
    if not os.path.exists(path):
        raise ConfigurationError(f"There is no weights file {path}.")
    with_softmax = making_softmaxes() != "left out" or archive is None
    state: Dict[str, torch.Tensor] = read_weights(Path(path), with_softmax, _shown(path)).check()
    if strip_prefix is not None or ignore is not None:
        # What is there has just been seen to be tensors.
        return stock(path, strip_prefix, ignore, strict, cuda_device)
    if cuda_device >= 0:
        state = {name: tensor.cuda(cuda_device) for name, tensor in state.items()}
    return OrderedDict(modern_weights(state, config))


def _shown(weights_path: Union[str, os.PathLike]) -> str:
    archive = archive_of(Path(weights_path).parent)
    return str(weights_path) if archive is None else f"{Path(weights_path).name} in {archive}"


def _config_in(folder: Path) -> Any:
    """The config of the model whose weights lie in a folder, if training or an archive has it."""
    try:
        return read_json(folder / archival.CONFIG_NAME)
    except ConfigurationError:
        # Another program's file of this name.
        return None
