"""
When AllenNLP's plugin is imported.

As a rule it comes with the package, so that AllenNLP's configs know what is registered here. The
command line does most of its work without AllenNLP, which takes some seconds and 300 MB to import:
there it comes when something needs it.
"""

import importlib
import warnings
from pathlib import Path
from typing import Any, Callable, Optional

from transformer_elmo import elmo, model_folder
from transformer_elmo.errors import first_line
from transformer_elmo.text import corpus

STAND_IN = "transformer_elmo.torchvision_stand_in"

_why_not: Optional[str] = None


def load() -> str:
    """
    Imports the plugin, if that hasn't been tried before.

    # Returns

    `str`
        Empty, or why there is no plugin, to go after "AllenNLP,".
    """
    global _why_not
    if _why_not is None:
        try:
            importlib.import_module("transformer_elmo.plugin")
        except (ImportError, RuntimeError, AttributeError, OSError) as error:
            # Of the four, all but the first are how a torchvision for another torch fails.
            _why_not = _said(error)
        else:
            _why_not = ""
    return _why_not


def _said(error: Exception) -> str:
    if getattr(error, "name", None) == "allennlp":
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


def load_when_needed() -> None:
    """Lets what the core leaves to the plugin import it."""
    elmo.openers.append(_open)
    model_folder.other_tokenizer = _tokenizer(model_folder.other_tokenizer)
    corpus.download = _download(corpus.download)


def _open(path: str, **special: Any) -> None:
    if Path(path).exists() or "://" in path:
        # It puts an opener of its own after this one.
        load()


def _tokenizer(without: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def tokenizer(named: Any) -> Any:
        return without(named) if load() else model_folder.other_tokenizer(named)

    return tokenizer


def _download(without: Callable[[str], str]) -> Callable[[str], str]:
    def download(url: str) -> str:
        return without(url) if load() else corpus.download(url)

    return download
