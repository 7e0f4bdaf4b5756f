"""
Models of AllenNLP 0.x configs, and their text field embedders. These stood without the key
`token_embedders` around them, and said which indexer each of them takes. In AllenNLP 2 every
embedder takes the indexer of its own name, and every indexer has an embedder.
"""

import copy
from typing import Any

from transformer_elmo.pretrained.legacy.readers import SPACY_READERS
from transformer_elmo.pretrained.legacy.report import Report, as_object, check_keys, refuse
from transformer_elmo.pretrained.legacy.sections import LANGUAGE_MODELS, type_of
from transformer_elmo.with_allennlp import is_registered

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
DROPPED_LANGUAGE_MODEL_KEYS = {
    "remove_bos_eos": "boundaries are always embedded, and the token embedder removes them",
    "loss_scale": "the loss is the mean over words",
}
# Both say whether the first of them normalized word vectors.
LAYER_NORM_KEYS = ("do_layer_norm", "layer_norm")

# Models that compare each word of one text with each of another. How they do it was called a
# similarity function; it is a matrix attention now, with names of its own for the same keys.
MATRIX_ATTENTION_MODELS = ("bidaf", "decomposable_attention", "esim")
SIMILARITY_FUNCTIONS = {
    "linear": ("tensor_1_dim", "tensor_2_dim", "combination", "activation"),
    "bilinear": ("tensor_1_dim", "tensor_2_dim", "activation"),
    "dot_product": ("scale_output",),
    "cosine": (),
}
RENAMED_IN_BILINEAR = {"tensor_1_dim": "matrix_1_dim", "tensor_2_dim": "matrix_2_dim"}

MAP_KEY, UNMATCHED_KEY = "embedder_to_indexer_map", "allow_unmatched_keys"
_APPLICATORS = ("initializer", "regularizer")


def is_old_part(key: str, value: Any) -> bool:
    """Whether only 0.x could have understood `value`, called `key`; not what lies deeper in it."""
    if isinstance(value, dict):
        return _is_old_embedder(key, value)
    if key == "type":
        # Somebody may have given it to a class of theirs.
        return type_of(value) in RENAMED_TYPES and not is_registered(value)
    return key in _APPLICATORS and isinstance(value, list)


def has_similarity_function(model: Any) -> bool:
    """Whether a model says how to compare words as AllenNLP 0.x did."""
    is_comparing = isinstance(model, dict) and type_of(model) in MATRIX_ATTENTION_MODELS
    return is_comparing and "similarity_function" in model


def modern_model(old: Any, readers: list[dict[str, Any]], report: Report) -> Any:
    """The modern config of the model; `readers`, modern already, get the indexers that it needs."""
    if not isinstance(old, dict):
        return old
    modern = _modern_part(old, "model", readers, report)
    kind = type_of(modern)
    if kind in LANGUAGE_MODELS:
        report.drop_keys(modern, "model", DROPPED_LANGUAGE_MODEL_KEYS)
        for key in LAYER_NORM_KEYS:
            if modern.get(key):
                advice = (
                    "no later version normalizes the word vectors before the contextualizer, so "
                    "that the weights of this model have no place."
                )
                refuse(f"model.{key}", modern[key], advice)
        needless = dict.fromkeys(LAYER_NORM_KEYS, "it is the default")
        if kind == "bidirectional-language-model":
            needless["bidirectional"] = "the type says it"
        report.drop_keys(modern, "model", needless, lost=False)
    elif kind == "crf_tagger" and "constraint_type" in modern:
        value = modern.pop("constraint_type")
        if value is not None:
            modern.setdefault("label_encoding", value)
            modern.setdefault("constrain_crf_decoding", True)
        report.moved("model.constraint_type", value, "model.label_encoding", value)
    elif has_similarity_function(modern):
        value, path = modern.pop("similarity_function"), "model.similarity_function"
        attention = modern["matrix_attention"] = _matrix_attention(value, path)
        report.moved(path, value, "model.matrix_attention", attention)
    return modern


def _matrix_attention(similarity: Any, path: str) -> dict[str, Any]:
    similarity = similarity if isinstance(similarity, dict) else {"type": similarity}
    # The old default.
    kind = similarity.get("type", "dot_product")
    if not isinstance(kind, str) or kind not in SIMILARITY_FUNCTIONS:
        refuse(f"{path}.type", kind, f"AllenNLP 2 has only {', '.join(SIMILARITY_FUNCTIONS)}.")
    known, advice = SIMILARITY_FUNCTIONS[kind], f"AllenNLP 2's {kind} has no such key."
    check_keys(similarity, ("type", *known), path, advice)
    if similarity.get("scale_output"):
        refuse(f"{path}.scale_output", similarity["scale_output"], advice)
    renamed = RENAMED_IN_BILINEAR if kind == "bilinear" else {}
    said = {renamed.get(k, k): v for k, v in similarity.items() if k in known}
    return {"type": kind, **{k: v for k, v in said.items() if k != "scale_output"}}


def _modern_part(part: Any, path: str, readers: list[dict[str, Any]], report: Report) -> Any:
    """Converts what may lie at any depth of a model."""
    if isinstance(part, list):
        return [_modern_part(p, f"{path}.{i}", readers, report) for i, p in enumerate(part)]
    if not isinstance(part, dict):
        return part
    modern: dict[str, Any] = {}
    for key, value in part.items():
        at = f"{path}.{key}"
        if not is_old_part(key, value):
            modern[key] = _modern_part(value, at, readers, report)
        elif isinstance(value, dict):
            embedder = _modern_embedder(value, at, readers, report)
            modern[key] = _modern_part(embedder, at, readers, report)
        else:
            modern[key] = RENAMED_TYPES[value] if key == "type" else _applicator(value, at)
            report.moved(at, value, at, modern[key])
    embedding = modern.get("embedding")
    if modern.get("type") == "character_encoding" and isinstance(embedding, dict):
        if not {"num_embeddings", "vocab_namespace"} & embedding.keys():
            # This class had a default of its own, which it lost.
            embedding["vocab_namespace"] = "token_characters"
            at = f"{path}.embedding.vocab_namespace"
            report.added(at, "token_characters", "the old default")
    return modern


def _applicator(pairs: list[Any], path: str) -> dict[str, Any]:
    """Initializers or regularizers, which were a list of pairs."""
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            advice = "expected a pair of a regular expression and what applies."
            refuse(f"{path}.{i}", pair, advice)
    prevented = [regex for regex, what in pairs if type_of(what) == "prevent"]
    regexes = [[regex, what] for regex, what in pairs if type_of(what) != "prevent"]
    return {"regexes": regexes, **({"prevent_regexes": prevented} if prevented else {})}


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


def _is_old_embedder(key: str, value: dict[str, Any]) -> bool:
    has_options = MAP_KEY in value or UNMATCHED_KEY in value
    if not is_embedder_key(key):
        # Whatever a user's model calls it.
        return has_options and isinstance(value.get("token_embedders"), dict)
    is_whole = "token_embedders" in value or _without_options(value).keys() <= {"type"}
    return is_flat_embedder(value) or (has_options and is_whole)


def _without_options(embedder: dict[str, Any], *others: str) -> dict[str, Any]:
    left_out = (MAP_KEY, UNMATCHED_KEY, *others)
    return {key: value for key, value in embedder.items() if key not in left_out}


def _modern_embedder(
    old: dict[str, Any], path: str, readers: list[dict[str, Any]], report: Report
) -> dict[str, Any]:
    """`old` is an old text field embedder; `readers` get indexers by the names it needs."""
    if is_flat_embedder(old):
        embedders = _without_options(old, "type")
        modern: dict[str, Any] = {"type": old["type"]} if "type" in old else {}
        modern["token_embedders"] = embedders
        for name, embedder in embedders.items():
            report.moved(f"{path}.{name}", embedder, f"{path}.token_embedders.{name}", embedder)
    else:
        embedders = dict(as_object(old.get("token_embedders") or {}, f"{path}.token_embedders"))
        modern = {**_without_options(old), "token_embedders": embedders}
    mapping, unmatched = old.get(MAP_KEY), old.get(UNMATCHED_KEY)
    if mapping:
        _rename_indexers(mapping, embedders, f"{path}.{MAP_KEY}", readers, report)
    elif MAP_KEY in old:
        report.needless(f"{path}.{MAP_KEY}", mapping, "it maps nothing")
    if UNMATCHED_KEY in old:
        reason = "an indexer without embedder gets an empty one"
        report.needless(f"{path}.{UNMATCHED_KEY}", unmatched, reason)
    if mapping is not None or unmatched:
        for name in [name for reader in readers for name in _indexers(reader)]:
            if name not in embedders:
                embedders[name] = {"type": "empty"}
                at = f"{path}.token_embedders.{name}"
                report.added(at, embedders[name], "every indexer has an embedder")
    return modern


def _indexers(reader: dict[str, Any]) -> dict[str, Any]:
    while isinstance(reader.get("base_reader"), dict):
        reader = reader["base_reader"]
    key = "token_indexers"
    if key not in reader and SPACY_READERS.get(type_of(reader)) == "source_tokenizer":
        key = "source_token_indexers"
    # Every reader's default.
    indexers = reader.setdefault(key, {"tokens": {"type": "single_id"}})
    return as_object(indexers, f"dataset_reader.{key}")


def _rename_indexers(
    mapping: Any,
    embedders: dict[str, Any],
    path: str,
    readers: list[dict[str, Any]],
    report: Report,
) -> None:
    """Gives every embedder an indexer of its name, which it keeps: the weights have it."""
    indexers = [_indexers(reader) for reader in readers]
    for embedder, said in as_object(mapping, path).items():
        at = f"{path}.{embedder}"
        names = _indexer_names(said, embedders.get(embedder))
        if len(names) != 1 or not isinstance(names[0], str):
            refuse(at, said, "a token embedder takes one indexer's output in AllenNLP 2.")
        name = names[0]
        if name == embedder:
            report.needless(at, said, "the names are equal")
            continue
        for known in indexers:
            if name not in known:
                refuse(at, said, f"no token indexer is named {name}.")
            if embedder in known:
                advice = (
                    f"the token indexer {embedder} is another one, and an embedder takes the "
                    "indexer of its own name in AllenNLP 2."
                )
                refuse(at, said, advice)
            # Not the same object: whoever reads a config takes it apart.
            known[embedder] = copy.deepcopy(known[name])
        report.moved(at, said, f"dataset_reader.token_indexers.{embedder}", f"as {name}")


def _indexer_names(said: Any, embedder: Any) -> list[Any]:
    names = list(said.values()) if isinstance(said, dict) else said
    # `null` is for an argument that isn't given.
    names = [n for n in names if n is not None] if isinstance(names, list) else [names]
    if type_of(embedder) == "elmo_token_embedder" and "vocab_to_cache" not in embedder:
        # The second was for a cache of words that isn't there.
        return names[:1]
    return names
