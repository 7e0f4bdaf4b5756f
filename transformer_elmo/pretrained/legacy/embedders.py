"""
Text field embedders of AllenNLP 0.x configs.

They stood without the key `token_embedders` around them, and said which indexer each of them takes.
In AllenNLP 2 every embedder takes the indexer of its own name, and every indexer has an embedder.
"""

import copy
from typing import Any

from transformer_elmo.pretrained.legacy.readers import SPACY_READERS
from transformer_elmo.pretrained.legacy.report import Report
from transformer_elmo.pretrained.legacy.sections import type_of

MAP_KEY = "embedder_to_indexer_map"
UNMATCHED_KEY = "allow_unmatched_keys"
OPTIONS = (UNMATCHED_KEY, MAP_KEY)


def is_embedder_key(key: str) -> bool:
    """Whether a model's argument `key` is a text field embedder, by its name."""
    return key.endswith("text_field_embedder") or key in ("source_embedder", "source_text_embedder")


def is_flat_embedder(value: Any) -> bool:
    """Whether `value` names token embedders without the key `token_embedders` around them."""
    if not isinstance(value, dict) or "token_embedders" in value or "_pretrained" in value:
        return False
    if value.get("type", "basic") != "basic":
        # It may be that an embedder is named "type", but no name is a dictionary.
        return False
    embedders = _without_options(value, "type")
    return bool(embedders) and all(isinstance(v, dict) for v in embedders.values())


def _without_options(embedder: dict[str, Any], *others: str) -> dict[str, Any]:
    return {key: value for key, value in embedder.items() if key not in (*OPTIONS, *others)}


def modern_embedder(
    key: str, old: Any, path: str, readers: list[dict[str, Any]], report: Report
) -> Any:
    """
    `key`: what the model calls it. `old`: the value of `key`, which needn't be a text field
    embedder. `readers`: the modern configs of the readers. Where an embedder was mapped to an
    indexer of another name, that indexer is added here under the embedder's. Returns the modern
    config; `old` itself if it isn't an old text field embedder.
    """
    if not isinstance(old, dict):
        return old
    has_options = any(option in old for option in OPTIONS)
    if not is_embedder_key(key):
        # Whatever a user's model calls it.
        if not (has_options and isinstance(old.get("token_embedders"), dict)):
            return old
    flat = is_flat_embedder(old)
    if flat:
        embedders = _without_options(old, "type")
        modern: dict[str, Any] = {"type": old["type"]} if "type" in old else {}
        modern["token_embedders"] = embedders
        for name, embedder in embedders.items():
            report.moved(f"{path}.{name}", embedder, f"{path}.token_embedders.{name}", embedder)
    elif has_options and ("token_embedders" in old or _without_options(old).keys() <= {"type"}):
        within = old.get("token_embedders") or {}
        embedders = dict(report.as_object(within, f"{path}.token_embedders"))
        modern = {**_without_options(old), "token_embedders": embedders}
    else:
        return old
    _match_indexers(old, embedders, path, readers, report)
    return modern


def _match_indexers(
    old: dict[str, Any],
    embedders: dict[str, Any],
    path: str,
    readers: list[dict[str, Any]],
    report: Report,
) -> None:
    """Gives every embedder an indexer, and every indexer an embedder, as the old options had it."""
    mapping, unmatched = old.get(MAP_KEY), old.get(UNMATCHED_KEY)
    if mapping:
        _rename_indexers(mapping, embedders, f"{path}.{MAP_KEY}", readers, report)
    elif MAP_KEY in old:
        report.needless(f"{path}.{MAP_KEY}", mapping, "it maps nothing")
    if UNMATCHED_KEY in old:
        reason = "an indexer without embedder gets an empty one"
        report.needless(f"{path}.{UNMATCHED_KEY}", unmatched, reason)
    if mapping is None and not unmatched:
        return
    for name in dict.fromkeys(name for reader in readers for name in _indexers(reader, report)):
        if name not in embedders:
            embedders[name] = {"type": "empty"}
            at = f"{path}.token_embedders.{name}"
            report.added(at, embedders[name], "every indexer has an embedder")


def _indexers(reader: dict[str, Any], report: Report) -> dict[str, Any]:
    while isinstance(reader.get("base_reader"), dict):
        reader = reader["base_reader"]
    key = "token_indexers"
    if key not in reader and SPACY_READERS.get(type_of(reader)) == "source_tokenizer":
        key = "source_token_indexers"
    # Every reader's default.
    indexers = reader.setdefault(key, {"tokens": {"type": "single_id"}})
    return report.as_object(indexers, f"dataset_reader.{key}")


def _rename_indexers(
    mapping: Any,
    embedders: dict[str, Any],
    path: str,
    readers: list[dict[str, Any]],
    report: Report,
) -> None:
    """
    Gives every embedder an indexer of its own name. The embedder keeps its name because the weights
    have it.
    """
    added: set[str] = set()
    for embedder, said in report.as_object(mapping, path).items():
        at = f"{path}.{embedder}"
        names = _indexer_names(said, embedders.get(embedder))
        if len(names) != 1 or not isinstance(names[0], str):
            advice = "a token embedder takes one indexer's output in AllenNLP 2."
            report.refused(at, said, advice)
            continue
        name = names[0]
        if name == embedder:
            report.needless(at, said, "the names are equal")
            continue
        for reader in readers:
            indexers = _indexers(reader, report)
            if name not in indexers:
                report.refused(at, said, f"no token indexer is named {name}.")
            elif embedder in indexers and embedder not in added:
                advice = (
                    f"the token indexer {embedder} is another one, and an embedder takes the "
                    "indexer of its own name in AllenNLP 2."
                )
                report.refused(at, said, advice)
            else:
                # Not the same object: whoever reads a config takes it apart.
                indexers[embedder] = copy.deepcopy(indexers[name])
        added.add(embedder)
        report.moved(at, said, f"dataset_reader.token_indexers.{embedder}", f"as {name}")


def _indexer_names(said: Any, embedder: Any) -> list[Any]:
    names = list(said.values()) if isinstance(said, dict) else said
    # `null` is for an argument that isn't given.
    names = [n for n in names if n is not None] if isinstance(names, list) else [names]
    if type_of(embedder) == "elmo_token_embedder" and "vocab_to_cache" not in embedder:
        # The second was for a cache of words that isn't there.
        return names[:1]
    return names
