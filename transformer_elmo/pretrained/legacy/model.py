"""Models of AllenNLP 0.x configs: their names, initializers, regularizers and own keys."""

from typing import Any

from transformer_elmo.pretrained.legacy.embedders import modern_embedder
from transformer_elmo.pretrained.legacy.report import Report
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
_DIMENSIONS = {"tensor_1_dim": "matrix_1_dim", "tensor_2_dim": "matrix_2_dim"}
SIMILARITY_FUNCTIONS: dict[str, dict[str, str]] = {
    "linear": {k: k for k in (*_DIMENSIONS, "combination", "activation")},
    "bilinear": {**_DIMENSIONS, "activation": "activation"},
    "dot_product": {},
    "cosine": {},
}


def modern_model(old: Any, readers: list[dict[str, Any]], report: Report) -> Any:
    """
    `old`: the config of the model. `readers`: the modern configs of the readers, which get token
    indexers by other names where the model's embedders need them. Returns the modern config of the
    model.
    """
    if not isinstance(old, dict):
        return old
    modern = _modern_part(old, "model", readers, report)
    kind = type_of(modern)
    if kind in LANGUAGE_MODELS:
        _language_model(modern, report.if_old)
    elif kind == "crf_tagger" and "constraint_type" in modern:
        value = modern.pop("constraint_type")
        if value is not None:
            modern.setdefault("label_encoding", value)
            modern.setdefault("constrain_crf_decoding", True)
        report.if_old.moved("model.constraint_type", value, "model.label_encoding", value)
    elif kind in MATRIX_ATTENTION_MODELS and "similarity_function" in modern:
        value, path = modern.pop("similarity_function"), "model.similarity_function"
        attention = modern["matrix_attention"] = _matrix_attention(value, path, report)
        report.moved(path, value, "model.matrix_attention", attention)
    return modern


def _language_model(model: dict[str, Any], report: Report) -> None:
    for key, reason in DROPPED_LANGUAGE_MODEL_KEYS.items():
        if key in model:
            report.dropped(f"model.{key}", model.pop(key), reason)
    for key in LAYER_NORM_KEYS:
        if model.get(key):
            advice = (
                "no later version normalizes the word vectors before the contextualizer, so that "
                "the weights of this model have no place."
            )
            report.refused(f"model.{key}", model.pop(key), advice)
        elif key in model:
            report.needless(f"model.{key}", model.pop(key), "it is the default")
    if model["type"] == "bidirectional-language-model" and "bidirectional" in model:
        report.needless("model.bidirectional", model.pop("bidirectional"), "the type says it")


def _matrix_attention(similarity: Any, path: str, report: Report) -> dict[str, Any]:
    similarity = similarity if isinstance(similarity, dict) else {"type": similarity}
    # The old default.
    kind = similarity.get("type", "dot_product")
    keys = SIMILARITY_FUNCTIONS.get(kind) if isinstance(kind, str) else None
    if keys is None:
        advice = f"AllenNLP 2 has only {', '.join(SIMILARITY_FUNCTIONS)}."
        report.refused(f"{path}.type", kind, advice)
        return {}
    modern: dict[str, Any] = {"type": kind}
    for key, value in similarity.items():
        if key in keys:
            modern[keys[key]] = value
        elif key == "scale_output" and kind == "dot_product" and not value:
            continue
        elif key != "type":
            report.refused(f"{path}.{key}", value, f"AllenNLP 2's {kind} has no such key.")
    return modern


def _modern_part(part: Any, path: str, readers: list[dict[str, Any]], report: Report) -> Any:
    """Converts what may lie at any depth of a model."""
    if isinstance(part, list):
        return [_modern_part(p, f"{path}.{i}", readers, report) for i, p in enumerate(part)]
    if not isinstance(part, dict):
        return part
    modern: dict[str, Any] = {}
    for key, value in part.items():
        at = f"{path}.{key}"
        if key in ("initializer", "regularizer") and isinstance(value, list):
            modern[key] = _applicator(value, at, report)
        elif key == "type" and isinstance(value, str) and value in RENAMED_TYPES:
            modern[key] = _modern_type(value, at, report)
        else:
            embedder = modern_embedder(key, value, at, readers, report)
            modern[key] = _modern_part(embedder, at, readers, report)
    if modern.get("type") == "character_encoding":
        embedding = modern.get("embedding")
        if isinstance(embedding, dict) and not {"num_embeddings", "vocab_namespace"} & set(
            embedding
        ):
            # This class had a default of its own, which it lost.
            embedding["vocab_namespace"] = "token_characters"
            namespace_path = f"{path}.embedding.vocab_namespace"
            report.added(namespace_path, "token_characters", "the old default")
    return modern


def _modern_type(name: str, path: str, report: Report) -> str:
    if is_registered(name):
        # Somebody gave it to a class of theirs.
        return name
    report.moved(path, name, path, RENAMED_TYPES[name])
    return RENAMED_TYPES[name]


def _applicator(pairs: list[Any], path: str, report: Report) -> dict[str, Any]:
    """Initializers or regularizers, which were a list of pairs."""
    regexes: list[Any] = []
    prevented: list[Any] = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            advice = "expected a pair of a regular expression and what applies."
            report.refused(f"{path}.{i}", pair, advice)
        elif type_of(pair[1]) == "prevent":
            prevented.append(pair[0])
        else:
            regexes.append([*pair])
    modern: dict[str, Any] = {"regexes": regexes}
    if prevented:
        modern["prevent_regexes"] = prevented
    report.moved(path, pairs, path, modern)
    return modern
