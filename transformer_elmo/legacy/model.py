"""Models of AllenNLP 0.x configs: names, embedders, initializers, regularizers."""

import copy
from typing import Any, Callable, Dict, List, Set

from transformer_elmo.legacy.changes import Changes, not_understood
from transformer_elmo.legacy.data import SPACY_READERS

LANGUAGE_MODELS = {
    "language_model",
    "bidirectional-language-model",
    "bidirectional_language_model",
}

# Names that no version since 1.0 registers. Names with hyphens that AllenNLP 2 still has stay.
RENAMED_TYPES = {
    "bidirectional_lm": "bidirectional-language-model",
    "bidirectional-lm": "bidirectional-language-model",
    "language-model": "language_model",
    "bidirectional_token_embedder": "bidirectional_lm_token_embedder",
    "bidirectional-token-embedder": "bidirectional_lm_token_embedder",
    "bidirectional-lm-token-embedder": "bidirectional_lm_token_embedder",
    "bidirectional_language_model_token_embedder": "bidirectional_lm_token_embedder",
    "language-model-token-embedder": "language_model_token_embedder",
    "bidirectional-language-model-transformer": "bidirectional_language_model_transformer",
    "character-encoding": "character_encoding",
}

# Keys of the first bidirectional language model that say nothing about its weights or its loss per
# word.
OLD_LANGUAGE_MODEL_KEYS = {
    "remove_bos_eos": "boundaries are always embedded, and the token embedder removes them",
    "loss_scale": "the loss is the mean over words",
}

# Models that compare each word of one text with each of another. How they do it was called a
# similarity function; it is a matrix attention now, with names of its own for the same keys.
MATRIX_ATTENTION_MODELS = ("bidaf", "decomposable_attention", "esim")
SIMILARITY_FUNCTIONS: Dict[str, Dict[str, str]] = {
    "linear": {
        "tensor_1_dim": "tensor_1_dim",
        "tensor_2_dim": "tensor_2_dim",
        "combination": "combination",
        "activation": "activation",
    },
    "bilinear": {
        "tensor_1_dim": "matrix_1_dim",
        "tensor_2_dim": "matrix_2_dim",
        "activation": "activation",
    },
    "dot_product": {},
    "cosine": {},
}

EMBEDDER_OPTIONS = ("allow_unmatched_keys", "embedder_to_indexer_map")


is_registered: Callable[[str], bool] = lambda name: False


def is_old_name(key: str, value: Any) -> bool:
    """
    Whether `value`, the value of `key`, names a class that has another name now, and nobody has
    given the old one to a class of theirs.
    """
    return (
        key == "type"
        and isinstance(value, str)
        and value in RENAMED_TYPES
        and not is_registered(value)
    )


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
    embedders = {k: v for k, v in value.items() if k not in ("type", *EMBEDDER_OPTIONS)}
    return bool(embedders) and all(isinstance(v, dict) for v in embedders.values())


def is_old_embedder(key: str, value: Any) -> bool:
    """Whether `value`, the value of `key`, is a text field embedder as AllenNLP 0.x described
    it."""
    if not isinstance(value, dict):
        return False
    has_options = any(option in value for option in EMBEDDER_OPTIONS)
    if not is_embedder_key(key):
        # Whatever a user's model calls it.
        return has_options and isinstance(value.get("token_embedders"), dict)
    return has_options or is_flat_embedder(value)


def is_old_applicator(key: str, value: Any) -> bool:
    """Whether `value`, the value of `key`, lists initializers or regularizers the old way."""
    return key in ("initializer", "regularizer") and isinstance(value, list)


def has_similarity_function(model: Any) -> bool:
    """Whether a model is told how to compare words as AllenNLP 0.x was told."""
    return (
        isinstance(model, dict)
        and model.get("type") in MATRIX_ATTENTION_MODELS
        and "similarity_function" in model
    )


def modern_model(model: Any, readers: List[Dict[str, Any]], changes: Changes) -> Any:
    """
    # Parameters

    model : `Any`
        The config of the model.
    readers : `List[Dict[str, Any]]`
        The modern configs of the readers. Where an embedder was mapped to an indexer of another
        name, that indexer is added here under the embedder's.
    changes : `Changes`

    # Returns

    `Any`
        The modern config of the model.
    """
    if not isinstance(model, dict):
        return model
    modern = _modern_part(model, "model", readers, changes)
    if modern.get("type") in LANGUAGE_MODELS:
        for key, reason in OLD_LANGUAGE_MODEL_KEYS.items():
            if key in modern:
                changes.dropped(f"model.{key}", modern.pop(key), reason)
        for key in ("do_layer_norm", "layer_norm"):
            if key in modern:
                value = modern.pop(key)
                if value:
                    not_understood(
                        f"model.{key}",
                        value,
                        "no later version normalizes the word vectors before the contextualizer, "
                        "so that "
                        "the weights of this model have no place.",
                    )
                changes.needless(f"model.{key}", value, "it is the default")
        if modern["type"] == "bidirectional-language-model" and "bidirectional" in modern:
            changes.needless("model.bidirectional", modern.pop("bidirectional"), "the type says it")
    if modern.get("type") == "crf_tagger" and "constraint_type" in modern:
        value = modern.pop("constraint_type")
        if value is not None:
            modern.setdefault("label_encoding", value)
            modern.setdefault("constrain_crf_decoding", True)
        changes.moved("model.constraint_type", value, "model.label_encoding", value)
    if has_similarity_function(modern):
        value = modern.pop("similarity_function")
        modern["matrix_attention"] = _matrix_attention(value, "model.similarity_function")
        changes.moved(
            "model.similarity_function", value, "model.matrix_attention", modern["matrix_attention"]
        )
    return modern


def _matrix_attention(similarity: Any, path: str) -> Dict[str, Any]:
    if not isinstance(similarity, dict):
        similarity = {"type": similarity}
    # The old default.
    kind = similarity.get("type", "dot_product")
    if kind not in SIMILARITY_FUNCTIONS:
        not_understood(
            f"{path}.type", kind, f"AllenNLP 2 has only {', '.join(SIMILARITY_FUNCTIONS)}."
        )
    modern: Dict[str, Any] = {"type": kind}
    for key, value in similarity.items():
        if key == "scale_output" and kind == "dot_product" and not value:
            continue
        if key in SIMILARITY_FUNCTIONS[kind]:
            modern[SIMILARITY_FUNCTIONS[kind][key]] = value
        elif key != "type":
            not_understood(f"{path}.{key}", value, f"AllenNLP 2's {kind} has no such key.")
    return modern


def _modern_part(part: Any, path: str, readers: List[Dict[str, Any]], changes: Changes) -> Any:
    if isinstance(part, list):
        return [_modern_part(p, f"{path}.{i}", readers, changes) for i, p in enumerate(part)]
    if not isinstance(part, dict):
        return part
    modern: Dict[str, Any] = {}
    for key, value in part.items():
        key_path = f"{path}.{key}"
        if is_old_name(key, value):
            modern[key] = RENAMED_TYPES[value]
            changes.moved(key_path, value, key_path, modern[key])
        elif is_old_applicator(key, value):
            modern[key] = _modern_applicator(value, key_path, changes)
        elif is_old_embedder(key, value):
            embedder = _modern_embedder(value, key_path, readers, changes)
            modern[key] = _modern_part(embedder, key_path, readers, changes)
        else:
            modern[key] = _modern_part(value, key_path, readers, changes)
    if modern.get("type") == "character_encoding":
        embedding = modern.get("embedding")
        if isinstance(embedding, dict) and not {"num_embeddings", "vocab_namespace"} & set(
            embedding
        ):
            # This class had a default of its own, which it lost.
            embedding["vocab_namespace"] = "token_characters"
            new_path = f"{path}.embedding.vocab_namespace"
            changes.added(new_path, "token_characters", "the old default")
    return modern


def _modern_applicator(pairs: List[Any], path: str, changes: Changes) -> Dict[str, Any]:
    regexes: List[Any] = []
    prevented: List[str] = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            not_understood(
                f"{path}.{i}", pair, "expected a pair of a regular expression and what applies."
            )
        regex, what = pair
        if what == "prevent" or (isinstance(what, dict) and what.get("type") == "prevent"):
            prevented.append(regex)
        else:
            regexes.append([regex, what])
    modern: Dict[str, Any] = {"regexes": regexes}
    if prevented:
        modern["prevent_regexes"] = prevented
    changes.moved(path, pairs, path, modern)
    return modern


def _modern_embedder(
    old: Dict[str, Any], path: str, readers: List[Dict[str, Any]], changes: Changes
) -> Dict[str, Any]:
    options = {key: old[key] for key in EMBEDDER_OPTIONS if key in old}
    if "token_embedders" in old or (set(old) - set(options) <= {"type"}):
        modern = {k: v for k, v in old.items() if k not in options}
        modern["token_embedders"] = dict(old.get("token_embedders") or {})
    elif is_flat_embedder(old):
        embedders = {k: v for k, v in old.items() if k not in (*options, "type")}
        modern = {"token_embedders": embedders}
        if "type" in old:
            modern = {"type": old["type"], **modern}
        for name, embedder in embedders.items():
            changes.moved(f"{path}.{name}", embedder, f"{path}.token_embedders.{name}", embedder)
    else:
        return old
    embedders = modern["token_embedders"]

    mapping = options.get("embedder_to_indexer_map")
    if mapping is not None:
        _rename_indexers(mapping, embedders, f"{path}.embedder_to_indexer_map", readers, changes)
    if "allow_unmatched_keys" in options:
        changes.needless(
            f"{path}.allow_unmatched_keys",
            options["allow_unmatched_keys"],
            "an indexer without embedder gets an empty one",
        )
    if mapping is not None or options.get("allow_unmatched_keys"):
        for name in _indexer_names(readers):
            if name not in embedders:
                embedders[name] = {"type": "empty"}
                new_path = f"{path}.token_embedders.{name}"
                changes.added(new_path, embedders[name], "every indexer has an embedder")
    return modern


def _token_indexers(reader: Dict[str, Any]) -> Dict[str, Any]:
    while isinstance(reader.get("base_reader"), dict):
        reader = reader["base_reader"]
    key = "token_indexers"
    if key not in reader and SPACY_READERS.get(str(reader.get("type"))) == "source_tokenizer":
        key = "source_token_indexers"
    # Every reader's default.
    return reader.setdefault(key, {"tokens": {"type": "single_id"}})


def _indexer_names(readers: List[Dict[str, Any]]) -> List[str]:
    names: Dict[str, None] = {}
    for reader in readers:
        names.update(dict.fromkeys(_token_indexers(reader)))
    return list(names)


def _rename_indexers(
    mapping: Dict[str, Any],
    embedders: Dict[str, Any],
    path: str,
    readers: List[Dict[str, Any]],
    changes: Changes,
) -> None:
    """
    Gives every embedder an indexer of its own name. The embedder keeps its name because the weights
    have it.
    """
    added: Set[str] = set()
    for embedder, indexers in mapping.items():
        names = list(indexers.values()) if isinstance(indexers, dict) else indexers
        # `null` is for an argument that isn't given.
        names = [names] if isinstance(names, str) else [n for n in names if n is not None]
        config = embedders.get(embedder)
        kind = config.get("type") if isinstance(config, dict) else None
        if kind == "elmo_token_embedder" and "vocab_to_cache" not in (config or {}):
            # The second was for a cache of words that isn't there.
            names = names[:1]
        if len(names) != 1:
            not_understood(
                f"{path}.{embedder}",
                indexers,
                "a token embedder takes one indexer's output in AllenNLP 2.",
            )
        name = names[0]
        if name == embedder:
            changes.needless(f"{path}.{embedder}", indexers, "the names are equal")
            continue
        for reader in readers:
            known = _token_indexers(reader)
            if name not in known:
                not_understood(f"{path}.{embedder}", indexers, f"no token indexer is named {name}.")
            if embedder in known and embedder not in added:
                not_understood(
                    f"{path}.{embedder}",
                    indexers,
                    f"the token indexer {embedder} is another one, and an embedder takes the "
                    "indexer of "
                    "its own name in AllenNLP 2.",
                )
            # Not the same object: whoever reads a config takes it apart.
            known[embedder] = copy.deepcopy(known[name])
        added.add(embedder)
        changes.moved(
            f"{path}.{embedder}",
            indexers,
            f"dataset_reader.token_indexers.{embedder}",
            f"as {name}",
        )
