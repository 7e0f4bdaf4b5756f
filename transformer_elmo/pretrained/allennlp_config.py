"""
AllenNLP's configs of language models, in its version 2, and what they say of the model.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.config import CharactersConfig, ModelConfig
from transformer_elmo.pretrained.weights import Shape, softmax_rows

BIDIRECTIONAL = ("bidirectional_language_model", "bidirectional-language-model")
LANGUAGE_MODELS = ("language_model", *BIDIRECTIONAL)
READER = "simple_language_modeling"
CONTEXTUALIZER = "bidirectional_language_model_transformer"

# The keys of a section that say what the model is, and those that say nothing of one that is
# trained.
_KEYS = {
    "model": (
        "text_field_embedder contextualizer bidirectional dropout num_samples sparse_embeddings "
        "precision",
        "compile",
    ),
    "contextualizer": (
        "input_dim hidden_dim num_layers dropout input_dropout activation",
        "return_all_layers",
    ),
    "embedding of ids": (
        "embedding_dim num_embeddings",
        "trainable padding_index sparse pretrained_file vocab_namespace",
    ),
    "character_encoding": ("embedding encoder", "dropout"),
    "embedding": ("num_embeddings embedding_dim", "trainable vocab_namespace padding_index"),
    "encoder": (
        "filters num_highway projection_dim activation projection_location do_layer_norm",
        "embedding_dim",
    ),
    "tokens": ("lowercase_tokens", "token_min_padding_length namespace"),
    "characters": ("tokens_to_add", "token_min_padding_length namespace"),
}
_NOT_OF_THE_MODEL = ("initializer", "regularizer", "type")


class NotStandardError(ConfigurationError):
    """A language model with a part that the core doesn't have; AllenNLP may."""


def model_config_of(experiment: dict[str, Any], shapes: Mapping[str, Shape]) -> ModelConfig:
    """
    `experiment`: with nothing of AllenNLP 0.x in it. `shapes`: of its weights, which say how many
    words it knows, and whether it has a softmax. Raises `NotStandardError` if a part of it isn't
    Transformer ELMo's, and `ConfigurationError` if a value has another type; messages name the key.
    """
    for key in ("padding_token", "oov_token"):
        _expect(f"vocabulary.{key}", _object(experiment.get("vocabulary")).get(key), (None,))
    model = _section("model", experiment.get("model"), LANGUAGE_MODELS)
    if _object(experiment["model"])["type"] not in BIDIRECTIONAL:
        _expect("model.bidirectional", model.get("bidirectional"), (True,))
    name, words = _words(model.get("text_field_embedder"))
    text, own_characters = _text(experiment.get("dataset_reader"), name, "filters" in words)
    if own_characters:
        words["own_characters"] = own_characters
    if "embedding_dim" in words:
        rows = shapes.get(f"_text_field_embedder.token_embedder_{name}.weight", (0,))[0]
        words = {"num_embeddings": rows, **words}
    path = "model.contextualizer"
    contextualizer = _section(path, model.get("contextualizer"), (CONTEXTUALIZER,))
    softmax, num_words = None, softmax_rows(shapes)
    if num_words is not None:
        samples = model.get("num_samples")
        # Where there are no more words, the full softmax was trained.
        is_full = isinstance(samples, int) and samples >= num_words
        softmax = {
            "num_words": num_words,
            "num_samples": None if is_full else samples,
            "sparse": bool(model.get("sparse_embeddings", False)),
        }
    value = {
        "words": words,
        "contextualizer": contextualizer,
        "text": text,
        "softmax": softmax,
        "dropout": model.get("dropout", 0.0),
        "precision": model.get("precision", "float32"),
        "words_name": name,
    }
    return ModelConfig.from_json(value, "model")


def experiment_of(config: ModelConfig) -> dict[str, Any]:
    """The AllenNLP config of a model: its reader and its model section."""
    text, words = config.text, asdict(config.words)
    indexers: dict[str, Any] = {"tokens": {"type": "single_id"}}
    if text.lowercase:
        indexers["tokens"]["lowercase_tokens"] = True
    embedder: dict[str, Any] = {"type": "embedding", "embedding_dim": words.get("embedding_dim")}
    if isinstance(config.words, CharactersConfig):
        dim = words.pop("character_dim")
        indexers[config.words_name] = {"type": "elmo_characters"}
        if own_characters := words.pop("own_characters"):
            indexers[config.words_name]["tokens_to_add"] = own_characters
        embedding = {"num_embeddings": words.pop("num_characters"), "embedding_dim": dim}
        words["filters"] = [list(pair) for pair in words["filters"]]
        embedder = {
            "type": "character_encoding",
            "embedding": embedding,
            "encoder": {"type": "cnn-highway", "embedding_dim": dim, **words},
        }
    embedders = {name: {"type": "empty"} for name in indexers}
    model: dict[str, Any] = {
        "type": "bidirectional_language_model",
        "text_field_embedder": {"token_embedders": {**embedders, config.words_name: embedder}},
        "contextualizer": {"type": CONTEXTUALIZER, **config.to_json()["contextualizer"]},
        "dropout": config.dropout,
    }
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


def _words(embedder: Any) -> tuple[str, dict[str, Any]]:
    """The name of what is embedded, and how, as `ModelConfig.to_json` has it."""
    path = "model.text_field_embedder"
    if not isinstance(embedder, dict) or embedder.get("type", "basic") != "basic":
        raise _other(path, embedder)
    path = f"{path}.token_embedders"
    embedders = _object(embedder.get("token_embedders"))
    found = {n: v for n, v in embedders.items() if _object(v).get("type") != "empty"}
    if len(found) != 1:
        raise _other(path, sorted(found))
    ((name, value),) = found.items()
    path = f"{path}.{name}"
    if _object(value).get("type") == "embedding":
        _expect(f"{path}.vocab_namespace", value.get("vocab_namespace", "tokens"), ("tokens",))
        ids = _section(path, value, ("embedding",), "embedding of ids")
        return name, ids
    section = _section(path, value, ("character_encoding",), "character_encoding")
    embedding = _section(f"{path}.embedding", section.get("embedding"), (None, "embedding"))
    encoder = _section(f"{path}.encoder", section.get("encoder"), ("cnn-highway", "cnn_highway"))
    sizes = {"num_characters": "num_embeddings", "character_dim": "embedding_dim"}
    if embedding.keys() != set(sizes.values()):
        raise _other(f"{path}.embedding", embedding)
    return name, {**{ours: embedding[key] for ours, key in sizes.items()}, "filters": [], **encoder}


def _text(reader: Any, words_name: str, by_characters: bool) -> tuple[dict[str, Any], Any]:
    """What `ModelConfig.to_json` has of it, and of the words that are one character each."""
    reader, path = _object(reader), "dataset_reader"
    _expect(f"{path}.type", reader.get("type"), (READER,))
    path = f"{path}.token_indexers"
    indexers = _object(reader.get("token_indexers") or {"tokens": "single_id"})
    tokens = _section(f"{path}.tokens", indexers.get("tokens"), ("single_id",))
    namespace = _object(indexers["tokens"]).get("namespace", "tokens")
    _expect(f"{path}.tokens.namespace", namespace, ("tokens",))
    own_characters = None
    if by_characters:
        path = f"{path}.{words_name}"
        section = _section(path, indexers.get(words_name), ("elmo_characters",), "characters")
        own_characters = section.get("tokens_to_add")
    elif words_name != "tokens":
        raise _other("model.text_field_embedder.token_embedders", [words_name])
    text = {
        "tokenizer": _object(reader.get("tokenizer") or "spacy"),
        "start_tokens": reader.get("start_tokens") or [],
        "end_tokens": reader.get("end_tokens") or [],
        "lowercase": bool(tokens.get("lowercase_tokens", False)),
    }
    return text, own_characters


def _object(value: Any) -> dict[str, Any]:
    """AllenNLP lets a name stand for an object with that type."""
    return {"type": value} if isinstance(value, str) else value if isinstance(value, dict) else {}


def _section(
    path: str, value: Any, types: Collection[Any], keys: str | None = None
) -> dict[str, Any]:
    """What a section says of the model: one of these types, with these of `_KEYS`."""
    section = _object(value)
    _expect(f"{path}.type", section.get("type"), types)
    wanted, ignored = map(str.split, _KEYS[keys or path.rpartition(".")[2]])
    for key in section:
        if key not in (*wanted, *ignored, *_NOT_OF_THE_MODEL):
            raise _other(f"{path}.{key}", section[key])
    return {key: section[key] for key in wanted if section.get(key) is not None}


def _expect(path: str, value: Any, choices: Collection[Any]) -> None:
    if value not in choices:
        raise _other(path, value)


def _other(path: str, value: Any) -> NotStandardError:
    return NotStandardError(
        f"{path} = {value!r:.80}: without AllenNLP, only bidirectional transformers over a "
        "character CNN or over word embeddings are known, as the shipped configs have them."
    )
