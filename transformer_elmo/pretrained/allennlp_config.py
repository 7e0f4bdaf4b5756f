"""
AllenNLP's configs of language models, in its version 2, and what they say of the model.
"""

from collections.abc import Collection
from typing import Any

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.config import (
    CharactersConfig,
    ContextualizerConfig,
    ModelConfig,
    SoftmaxConfig,
    TextConfig,
    WordIdsConfig,
)

BIDIRECTIONAL = ("bidirectional_language_model", "bidirectional-language-model")
LANGUAGE_MODELS = ("language_model", *BIDIRECTIONAL)
READER = "simple_language_modeling"
CONTEXTUALIZER = "bidirectional_language_model_transformer"

# Parts of a config that say nothing of a trained model.
_NOT_OF_THE_MODEL = ("initializer", "regularizer", "type")


class NotStandardError(ConfigurationError):
    """A language model with a part that the core doesn't have; AllenNLP may."""


def model_config_of(experiment: dict[str, Any], num_words: int | None) -> ModelConfig:
    """
    `experiment`: with nothing of AllenNLP 0.x in it. `num_words`: the rows of the softmax; `None`
    for none. Raises `NotStandardError` if a part of it isn't Transformer ELMo's; the message names
    the key.
    """
    vocabulary = experiment.get("vocabulary")
    if isinstance(vocabulary, dict):
        for key in ("padding_token", "oov_token"):
            if vocabulary.get(key) is not None:
                raise _other(f"vocabulary.{key}", vocabulary[key])
    model = _section(experiment, "model", LANGUAGE_MODELS)
    if not (model["type"] in BIDIRECTIONAL or model.get("bidirectional") is True):
        raise _other("model.bidirectional", model.get("bidirectional"))
    _check_keys(
        model,
        "model",
        (
            "text_field_embedder",
            "contextualizer",
            "dropout",
            "num_samples",
            "sparse_embeddings",
            "bidirectional",
            "precision",
            # How it was trained, which isn't how it is used.
            "compile",
        ),
    )
    name, words = _words(model.get("text_field_embedder"))
    text, own_characters = _text(experiment, name, isinstance(words, CharactersConfig))
    if isinstance(words, CharactersConfig):
        words.own_characters.update(own_characters)
    elif words.num_embeddings == 0:
        words = WordIdsConfig(num_words or 0, words.embedding_dim)
    softmax = None
    if num_words is not None:
        softmax = SoftmaxConfig(
            num_words, model.get("num_samples"), bool(model.get("sparse_embeddings", False))
        )
    config = ModelConfig(
        words,
        _contextualizer(model),
        text,
        softmax,
        model.get("dropout") or 0.0,
        model.get("precision", "float32"),
        name,
    )
    # Every value has the type that it must have.
    return ModelConfig.from_json(config.to_json(), "model")


def experiment_of(config: ModelConfig) -> dict[str, Any]:
    """The AllenNLP config of a model: its reader and its model section."""
    words, text = config.words, config.text
    indexers: dict[str, Any] = {"tokens": {"type": "single_id"}}
    if text.lowercase:
        indexers["tokens"]["lowercase_tokens"] = True
    embedder: dict[str, Any]
    if isinstance(words, CharactersConfig):
        embedder = {
            "type": "character_encoding",
            "embedding": {
                "num_embeddings": words.num_characters,
                "embedding_dim": words.character_dim,
            },
            "encoder": {
                "type": "cnn-highway",
                "activation": words.activation,
                "embedding_dim": words.character_dim,
                "filters": [list(pair) for pair in words.filters],
                "num_highway": words.num_highway,
                "projection_dim": words.projection_dim,
                "projection_location": words.projection_location,
                "do_layer_norm": words.do_layer_norm,
            },
        }
        indexers[config.words_name] = {"type": "elmo_characters"}
        if words.own_characters:
            indexers[config.words_name]["tokens_to_add"] = words.own_characters
    else:
        embedder = {"type": "embedding", "embedding_dim": words.embedding_dim}
    embedders = {name: {"type": "empty"} for name in indexers}
    embedders[config.words_name] = embedder
    model: dict[str, Any] = {
        "type": "bidirectional_language_model",
        "text_field_embedder": {"token_embedders": embedders},
        "contextualizer": {
            "type": CONTEXTUALIZER,
            "input_dim": config.contextualizer.input_dim,
            "hidden_dim": config.contextualizer.hidden_dim,
            "num_layers": config.contextualizer.num_layers,
            "dropout": config.contextualizer.dropout,
            "input_dropout": config.contextualizer.input_dropout,
        },
        "dropout": config.dropout,
    }
    if config.contextualizer.activation != "relu":
        model["contextualizer"]["activation"] = config.contextualizer.activation
    if config.precision != "float32":
        model["precision"] = config.precision
    if config.softmax is not None and config.softmax.num_samples is not None:
        model["num_samples"] = config.softmax.num_samples
        model["sparse_embeddings"] = config.softmax.sparse
    reader = {
        "type": READER,
        "tokenizer": text.tokenizer,
        "token_indexers": indexers,
        "start_tokens": text.start_tokens,
        "end_tokens": text.end_tokens,
    }
    return {
        "dataset_reader": reader,
        "model": model,
        "data_loader": {"type": "language_modeling", "max_tokens": 2000, "distinct_words": True},
        "trainer": {},
    }


def _words(embedder: Any) -> tuple[str, Any]:
    """The name of what is embedded, and how."""
    path = "model.text_field_embedder"
    if not isinstance(embedder, dict) or embedder.get("type", "basic") != "basic":
        raise _other(path, embedder)
    embedders = embedder.get("token_embedders")
    if not isinstance(embedders, dict):
        raise _other(f"{path}.token_embedders", embedders)
    found = {
        name: value
        for name, value in embedders.items()
        if not (isinstance(value, dict) and value.get("type") == "empty")
    }
    if len(found) != 1:
        raise _other(f"{path}.token_embedders", sorted(found))
    ((name, value),) = found.items()
    path = f"{path}.token_embedders.{name}"
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "embedding":
        _check_keys(
            value,
            path,
            (
                "embedding_dim",
                "num_embeddings",
                "trainable",
                "padding_index",
                "sparse",
                "pretrained_file",
                "vocab_namespace",
            ),
        )
        if value.get("vocab_namespace", "tokens") != "tokens":
            raise _other(f"{path}.vocab_namespace", value["vocab_namespace"])
        return name, WordIdsConfig(value.get("num_embeddings") or 0, _int(value, "embedding_dim"))
    if kind != "character_encoding":
        raise _other(f"{path}.type", kind)
    _check_keys(value, path, ("embedding", "encoder", "dropout"))
    embedding = value.get("embedding")
    if not isinstance(embedding, dict) or "num_embeddings" not in embedding:
        raise _other(f"{path}.embedding", embedding)
    _check_keys(
        embedding,
        f"{path}.embedding",
        ("num_embeddings", "embedding_dim", "trainable", "vocab_namespace", "padding_index"),
    )
    encoder = value.get("encoder")
    if not isinstance(encoder, dict) or encoder.get("type") not in ("cnn-highway", "cnn_highway"):
        raise _other(f"{path}.encoder", encoder)
    options = ("activation", "projection_location", "do_layer_norm")
    _check_keys(
        encoder,
        f"{path}.encoder",
        ("embedding_dim", "filters", "num_highway", "projection_dim", *options),
    )
    return name, CharactersConfig(
        _int(embedding, "num_embeddings"),
        _int(embedding, "embedding_dim"),
        encoder.get("filters", []),
        _int(encoder, "num_highway"),
        _int(encoder, "projection_dim"),
        **{key: encoder[key] for key in options if key in encoder},
    )


def _contextualizer(model: dict[str, Any]) -> ContextualizerConfig:
    section = _section(model, "contextualizer", (CONTEXTUALIZER,), "model.contextualizer")
    keys = ("dropout", "input_dropout", "activation")
    options = {key: section[key] for key in keys if section.get(key) is not None}
    _check_keys(
        section,
        "model.contextualizer",
        ("input_dim", "hidden_dim", "num_layers", "return_all_layers", *keys),
    )
    return ContextualizerConfig(
        _int(section, "input_dim"),
        _int(section, "hidden_dim"),
        _int(section, "num_layers"),
        **options,
    )


def _text(
    experiment: dict[str, Any], words_name: str, by_characters: bool
) -> tuple[TextConfig, dict[str, int]]:
    reader = _section(experiment, "dataset_reader", (READER,))
    indexers = reader.get("token_indexers") or {"tokens": {"type": "single_id"}}
    if not isinstance(indexers, dict):
        raise _other("dataset_reader.token_indexers", indexers)
    tokens = _kind(indexers.get("tokens"))
    if tokens.get("type") != "single_id":
        raise _other("dataset_reader.token_indexers.tokens", indexers.get("tokens"))
    _check_keys(
        tokens,
        "dataset_reader.token_indexers.tokens",
        ("lowercase_tokens", "token_min_padding_length", "namespace"),
    )
    if tokens.get("namespace", "tokens") != "tokens":
        raise _other("dataset_reader.token_indexers.tokens.namespace", tokens["namespace"])
    own_characters: dict[str, int] = {}
    if by_characters:
        path = f"dataset_reader.token_indexers.{words_name}"
        characters = _kind(indexers.get(words_name))
        if characters.get("type") != "elmo_characters":
            raise _other(path, indexers.get(words_name))
        _check_keys(characters, path, ("tokens_to_add", "token_min_padding_length", "namespace"))
        own_characters = characters.get("tokens_to_add") or {}
        if not isinstance(own_characters, dict):
            raise _other(f"{path}.tokens_to_add", own_characters)
    elif words_name != "tokens":
        raise _other("model.text_field_embedder.token_embedders", [words_name])
    text = TextConfig(
        _kind(reader.get("tokenizer") or "spacy"),
        _strings(reader, "start_tokens"),
        _strings(reader, "end_tokens"),
        bool(tokens.get("lowercase_tokens", False)),
    )
    return text, own_characters


def _strings(reader: dict[str, Any], key: str) -> list[str]:
    value = reader.get(key) or []
    if not isinstance(value, list):
        raise _other(f"dataset_reader.{key}", value)
    return [str(item) for item in value]


def _kind(value: Any) -> dict[str, Any]:
    """AllenNLP lets a name stand for an object with that type."""
    return {"type": value} if isinstance(value, str) else value if isinstance(value, dict) else {}


def _section(
    above: dict[str, Any], key: str, types: Collection[str], path: str | None = None
) -> dict[str, Any]:
    section = _kind(above.get(key))
    if section.get("type") not in types:
        raise _other(f"{path or key}.type", section.get("type"))
    return section


def _int(section: dict[str, Any], key: str) -> int:
    value = section.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _other(key, value)
    return value


def _check_keys(section: dict[str, Any], path: str, known: Collection[str]) -> None:
    for key in section:
        if key not in known and key not in _NOT_OF_THE_MODEL:
            raise _other(f"{path}.{key}", section[key])


def _other(path: str, value: Any) -> NotStandardError:
    return NotStandardError(
        f"{path} = {value!r:.80}: without AllenNLP, only bidirectional transformers over a "
        "character CNN or over word embeddings are known, as the shipped configs have them."
    )
