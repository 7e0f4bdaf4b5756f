"""
Names of this package's variants of what AllenNLP registers itself, which configs of language models
have in place of AllenNLP's.
"""

import copy
from collections.abc import Iterator
from typing import Any

from transformer_elmo.pretrained.legacy.report import Change
from transformer_elmo.pretrained.legacy.sections import type_of

OWN_NAMES = {
    "tokenizer": {"spacy": "lm_spacy"},
    "vocabulary": {"from_files": "lm_from_files"},
    "predictor": {"sentence_tagger": "lm_sentence_tagger"},
}
_STOCK_NAMES = {
    kind: {ours: stock for stock, ours in names.items()} for kind, names in OWN_NAMES.items()
}


def with_own_names(config: dict[str, Any]) -> dict[str, Any]:
    """A modern config with our names where AllenNLP's, or its default tokenizer, stand."""
    return _renamed(config, OWN_NAMES)[0]


def with_stock_names(config: dict[str, Any]) -> tuple[dict[str, Any], list[Change]]:
    """A modern config with AllenNLP's names where ours stand, and what was changed."""
    return _renamed(config, _STOCK_NAMES)


def _renamed(
    config: dict[str, Any], names: dict[str, dict[str, str]]
) -> tuple[dict[str, Any], list[Change]]:
    new, changes = copy.deepcopy(config), []
    for kind, path, holder, key in _sections(new):
        old = holder[key]
        # AllenNLP's default; tokenizers by other keys may be of classes that have no types.
        default = "spacy" if key == "tokenizer" and isinstance(old, dict) else ""
        name = names[kind].get(type_of(old) or default)
        if name is not None:
            holder[key] = {**old, "type": name} if isinstance(old, dict) else name
            changes.append(Change(path, old, path, holder[key]))
    return new, changes


def _sections(part: Any, path: str = "") -> Iterator[tuple[str, str, Any, Any]]:
    """The tokenizers and the vocabulary in a config: kind, dotted key, what holds it, last key."""
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in [*items]:
        at = f"{path}.{key}" if path else str(key)
        if isinstance(value, (dict, list)):
            yield from _sections(value, at)
        if at == "vocabulary":
            yield "vocabulary", at, part, key
        elif str(key).endswith("tokenizer"):
            yield "tokenizer", at, part, key
