"""
The one door from the core to AllenNLP and to the plugin around it.

Importing AllenNLP takes seconds, so nothing here does it before it is needed: for a name that only
the plugin has, for overrides, for a tokenizer of AllenNLP's, for a download. And whenever a program
imports AllenNLP, the plugin follows, so that configs know what is registered there.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar

from transformer_elmo.errors import ConfigurationError, first_line

T = TypeVar("T")

STAND_IN = "transformer_elmo.torchvision_stand_in"
INSTALL = f"""Install it, in a checkout of transformer-elmo:
    pip install '.[allennlp]'
    pip install --no-deps allennlp==2.10.1
    python -m {STAND_IN}"""

# allennlp-models, too: it must not be in the middle of its own import when the plugin comes.
_FOLLOWED = ("allennlp", "allennlp_models")

_Run = Callable[[ModuleType], None]

_why_not: str | None = None


class AroundImport(MetaPathFinder):
    """Has modules of some names run by `run(usual, module)`, and found as others find them."""

    def __init__(self, names: Sequence[str], run: "Callable[[_Run, ModuleType], None]") -> None:
        self.names = names
        self._run = run

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        for finder in sys.meta_path:
            # Some old finders have no such method.
            if isinstance(finder, AroundImport) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                # On this one loader, not its class: everything else about it stays as it is.
                spec.loader.exec_module = partial(  # type: ignore[method-assign]
                    self._run, spec.loader.exec_module
                )
                return spec
        return None


def follow_allennlp() -> None:
    """Imports the plugin if AllenNLP is imported, or has it imported as soon as that is."""
    if any(sys.modules.get(name) for name in _FOLLOWED):
        load()
    else:
        sys.meta_path.insert(0, AroundImport(_FOLLOWED, _run_before_plugin))


def _run_before_plugin(usual: _Run, module: ModuleType) -> None:
    usual(module)
    load()


def load() -> str:
    """Imports the plugin, once. Returns why there is none, to go after "AllenNLP,", or nothing."""
    global _why_not
    if _why_not is None:
        # What is imported now imports AllenNLP, and that the plugin again.
        _why_not = ""
        try:
            importlib.import_module("transformer_elmo.plugin")
        except (ImportError, RuntimeError, AttributeError, OSError) as error:
            # Of the four, all but the first are how a torchvision for another torch fails.
            _why_not = _said(error)
    return _why_not


def _said(error: Exception) -> str:
    if find_spec("allennlp") is None:
        return "which isn't installed"
    # Or a transformers of today, say, which AllenNLP can't be imported with.
    reason = first_line(error)
    hint = f" Try python -m {STAND_IN}." if "torchvision" in reason else ""
    warnings.warn(
        f"AllenNLP is installed, but can't be imported ({reason}): its configs won't know "
        f"transformer_elmo. TransformerElmo works.{hint}",
        stacklevel=4,
    )
    return f"which can't be imported: {reason}"


def plugin(module: str, needed_for: str) -> Any:
    """A module of the plugin; an `ImportError` with advice where AllenNLP isn't."""
    why_not = load()
    if why_not:
        raise ImportError(f"{needed_for} needs AllenNLP, {why_not}. {INSTALL}")
    return importlib.import_module(f"transformer_elmo.plugin.{module}")


def opened(
    path: str, softmax: bool, overrides: Any, weights_file: str | None
) -> tuple[Any, Any] | None:
    """What AllenNLP makes of an archive: a model and its reader. `None` without AllenNLP."""
    if load():
        return None
    from allennlp.common.checks import ConfigurationError as AllenNLPError

    from transformer_elmo.plugin import loading

    try:
        return loading.opened(path, softmax, overrides, weights_file)
    except AllenNLPError as error:
        raise ConfigurationError(str(error)) from error


def adapted(model: Any, reader: Any, tokenizer: Any) -> tuple[Any, Any] | None:
    """What the core can work with, out of AllenNLP's model and reader; `None` of others."""
    if not sys.modules.get("allennlp") or load():
        return None
    from transformer_elmo.plugin import sentences

    return sentences.adapted(model, reader, tokenizer)


def tokenizer_of(tokenizer: Any) -> Callable[[str], list[str]]:
    """From AllenNLP's name, config or object of a tokenizer to what splits a text."""
    why_not = load()
    if why_not:
        name = tokenizer.get("type") if isinstance(tokenizer, dict) else tokenizer
        # Lists of words don't need it.
        return partial(_no_tokenizer, str(name), why_not)
    from transformer_elmo.plugin import sentences

    return sentences.allennlp_tokenizer(tokenizer)


def _no_tokenizer(name: str, why_not: str, text: str) -> list[str]:
    raise ConfigurationError(
        f"Text is to be split by AllenNLP's tokenizer {name!r}, which needs AllenNLP, {why_not}. "
        'Give sentences as lists of words, or say how to split them: tokenizer="just_spaces".'
    )


def downloaded(url: str) -> str:
    """The path of a file with what is at an address, in AllenNLP's cache where AllenNLP is."""
    try:
        if load():
            from cached_path import cached_path
        else:
            from allennlp.common.file_utils import cached_path
    except ImportError:
        raise ConfigurationError(
            f"{url} is an address. Install what downloads it (pip install cached-path), or "
            "download it by other means and give the file's path."
        ) from None
    return str(cached_path(url))


def is_registered(name: str) -> bool:
    """Whether anything is registered under a name: by AllenNLP, this package or the user."""
    if not sys.modules.get("allennlp"):
        return False
    from allennlp.common import Registrable

    return any(name in names for names in Registrable._registry.values())


def progress_bar(**options: Any) -> Any:
    """
    From tqdm's options to an object with `update` and `close`; under AllenNLP it is AllenNLP's,
    which can write for log files.
    """
    if sys.modules.get("allennlp"):
        from allennlp.common.tqdm import Tqdm

        return Tqdm.tqdm(**options)
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(mininterval=0.1, **options)


class _NoBar:
    def update(self, n: int = 1) -> None:
        pass

    def close(self) -> None:
        pass


def tracked(items: Iterable[T], desc: str, total: int | None = None) -> Iterator[T]:
    """The same items, with a bar that moves by one for each."""
    bar = progress_bar(desc=desc, total=total)
    try:
        for item in items:
            yield item
            bar.update()
    finally:
        bar.close()
