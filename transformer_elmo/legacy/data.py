"""Dataset readers, tokenizers, token indexers and vocabularies of AllenNLP 0.x configs."""

from typing import Any, Dict, List, Optional, Tuple, Union

from transformer_elmo.legacy.changes import Changes, is_true, not_understood

LANGUAGE_MODELING_READER = "simple_language_modeling"

# Readers that AllenNLP 2 and allennlp-models have under their 0.x names. None of them takes `lazy`
# any more.
KNOWN_READERS = {
    LANGUAGE_MODELING_READER,
    "babi",
    "boolq",
    "ccgbank",
    "conll2000",
    "conll2003",
    "copynet_seq2seq",
    "coref",
    "drop",
    "interleaving",
    "multiprocess",
    "ontonotes_ner",
    "ptb_trees",
    "quac",
    "quora_paraphrase",
    "semantic_dependencies",
    "seq2seq",
    "sequence_tagging",
    "snli",
    "squad",
    "srl",
    "sst_tokens",
    "text_classification_json",
    "triviaqa",
    "universal_dependencies",
}

# Readers that split with spaCy unless told otherwise, and the key that tells them.
SPACY_READERS = {
    LANGUAGE_MODELING_READER: "tokenizer",
    "copynet_seq2seq": "source_tokenizer",
    "drop": "tokenizer",
    "qangaroo": "tokenizer",
    "quac": "tokenizer",
    "seq2seq": "source_tokenizer",
    "snli": "tokenizer",
    "squad": "tokenizer",
    "text_classification_json": "tokenizer",
    "triviaqa": "tokenizer",
}
# Without tags, which the old default didn't look for and which need a trained model.
SPACY_TOKENIZER = {"type": "spacy", "pos_tags": False}
WORD_TOKENIZER_KEYS = {"word_splitter", "word_filter", "word_stemmer", "start_tokens", "end_tokens"}

MULTIPROCESS_READER_KEYS = ("num_workers", "epochs_per_read", "output_queue_size")

# Old token indexers for a word's tags: the attribute of the token, and the default namespace.
TAG_INDEXERS = {
    "pos_tag": ("tag_", "pos_tokens"),
    "dependency_label": ("dep_", "dep_labels"),
    "ner_tag": ("ent_type_", "ner_tokens"),
}

VOCABULARY_KEYS = {
    "min_count",
    "max_vocab_size",
    "non_padded_namespaces",
    "pretrained_files",
    "only_include_pretrained_words",
    "tokens_to_add",
    "min_pretrained_embeddings",
}
VOCABULARY_TOKEN_KEYS = {"padding_token", "oov_token"}


def is_old_tokenizer(key: str, value: Any) -> bool:
    """Whether `value`, the value of `key`, is a tokenizer as AllenNLP 0.x described it."""
    if not key.endswith("tokenizer"):
        return False
    if not isinstance(value, dict):
        # Short for {"type": "word"}.
        return value == "word"
    return value.get("type") == "word" or "word_splitter" in value


def is_old_indexer(key: str, value: Any) -> bool:
    """Whether `value`, the value of `key`, are token indexers with a kind that only AllenNLP 0.x
    had."""
    return (
        key.endswith("token_indexers")
        and isinstance(value, dict)
        and any(isinstance(v, dict) and v.get("type") in TAG_INDEXERS for v in value.values())
    )


def modern_reader(reader: Any, path: str, changes: Changes) -> Tuple[Any, bool]:
    """
    # Returns

    `Tuple[Any, bool]`
        The reader's modern config, and whether the old one read lazily.
    """
    if not isinstance(reader, dict):
        return reader, False
    lazy = False
    if reader.get("type") == "multiprocess":
        base = reader.get("base_reader")
        if base is None:
            not_understood(path, reader, "a multiprocess reader needs a base_reader.")
        for key in reader:
            if key not in ("type", "base_reader", *MULTIPROCESS_READER_KEYS):
                not_understood(
                    f"{path}.{key}", reader[key], "a multiprocess reader has no such key."
                )
        base, lazy = modern_reader(base, f"{path}.base_reader", changes)
        if isinstance(base, dict) and base.get("type") == LANGUAGE_MODELING_READER:
            # Several processes were there to keep up with the model; our loader does in one, and
            # it takes folders and globs itself.
            modern = base
        else:
            modern = {"type": "sharded", "base_reader": base}
        changes.moved(f"{path}.type", "multiprocess", f"{path}.type", modern["type"])
        for key in MULTIPROCESS_READER_KEYS:
            if key in reader:
                changes.dropped(f"{path}.{key}", reader[key], "the reader starts no processes")
        return modern, True

    modern = {}
    for key, value in reader.items():
        if key == "lazy":
            lazy = is_true(value)
            changes.needless(f"{path}.lazy", value, "readers always stream")
        elif key == "coding_scheme" and reader.get("type") in ("conll2000", "conll2003"):
            new = "BIOUL" if value == "BIOUL" else None
            modern["convert_to_coding_scheme"] = new
            changes.moved(f"{path}.{key}", value, f"{path}.convert_to_coding_scheme", new)
        else:
            modern[key] = _modern_part(key, value, f"{path}.{key}", changes)
    if modern.get("type") == LANGUAGE_MODELING_READER:
        _boundaries_to_reader(modern, path, changes)
    tokenizer_key = SPACY_READERS.get(str(modern.get("type")))
    if tokenizer_key is not None and modern.get(tokenizer_key) is None:
        modern[tokenizer_key] = dict(SPACY_TOKENIZER)
        changes.added(f"{path}.{tokenizer_key}", modern[tokenizer_key], "the old default")
    return modern, lazy


def _modern_part(key: str, value: Any, path: str, changes: Changes) -> Any:
    """Converts tokenizers and token indexers, however deep they lie."""
    if is_old_tokenizer(key, value) or _has_no_type(key, value):
        return modern_tokenizer(value, path, changes)
    if key.endswith("token_indexers") and isinstance(value, dict):
        return {
            name: _modern_indexer(indexer, f"{path}.{name}", changes)
            for name, indexer in value.items()
        }
    if key == "base_reader":
        return modern_reader(value, path, changes)[0]
    if key == "readers" and isinstance(value, dict):
        return {k: modern_reader(v, f"{path}.{k}", changes)[0] for k, v in value.items()}
    if isinstance(value, dict):
        return {k: _modern_part(k, v, f"{path}.{k}", changes) for k, v in value.items()}
    return value


def _has_no_type(key: str, value: Any) -> bool:
    """Whether `value`, the value of `key`, is a tokenizer of the kind that was the default."""
    is_tokenizer = key.endswith("tokenizer") and key != "character_tokenizer"
    return is_tokenizer and isinstance(value, dict) and set(value) <= WORD_TOKENIZER_KEYS


def _modern_indexer(indexer: Any, path: str, changes: Changes) -> Any:
    if not isinstance(indexer, dict):
        return indexer
    indexer = {k: _modern_part(k, v, f"{path}.{k}", changes) for k, v in indexer.items()}
    kind = indexer.get("type")
    if kind not in TAG_INDEXERS:
        return indexer
    feature, namespace = TAG_INDEXERS[kind]
    if is_true(indexer.get("coarse_tags", False)):
        feature = "pos_"
    modern: Dict[str, Any] = {
        "type": "single_id",
        "namespace": indexer.get("namespace", namespace),
        "feature_name": feature,
        # What those indexers put where a token has no tag.
        "default_value": "NONE",
    }
    for key, value in indexer.items():
        if key == "token_min_padding_length":
            modern[key] = value
        elif key not in ("type", "namespace", "coarse_tags"):
            not_understood(f"{path}.{key}", value, f"the {kind} indexer has no such key.")
    changes.moved(path, indexer, path, modern)
    return modern


def modern_tokenizer(
    tokenizer: Union[str, Dict[str, Any]], path: str, changes: Changes
) -> Dict[str, Any]:
    """
    # Returns

    `Dict[str, Any]`
        The tokenizer that splits as the `word_splitter` did. `start_tokens` and `end_tokens` stay
        in it even where its class has no such keys; `modern_reader` finds them another place.

    # Raises

    `ConfigurationError`
        If AllenNLP 2 has no tokenizer that splits alike: other tokens are another input, which a
        trained model wasn't trained for.
    """
    if isinstance(tokenizer, str):
        tokenizer = {"type": tokenizer}
    splitter = tokenizer.get("word_splitter", {})
    if tokenizer.get("type", "word") != "word":
        # A modern type that an override put over the old config.
        modern = {key: value for key, value in tokenizer.items() if key != "word_splitter"}
        changes.needless(f"{path}.word_splitter", splitter, f"the type is {tokenizer['type']}")
        return modern
    splitter = {"type": splitter} if isinstance(splitter, str) else dict(splitter or {})
    kind = splitter.pop("type", "spacy")
    modern = {"type": kind}
    if kind == "spacy":
        if splitter.get("language") == "en":
            splitter["language"] = "en_core_web_sm"
        # The old splitter tagged only if told to; the new one does unless told not to.
        modern.update({"pos_tags": False, **splitter})
    elif kind in ("just_spaces", "letters_digits"):
        for key, value in splitter.items():
            not_understood(f"{path}.word_splitter.{key}", value, f"{kind} takes no such key.")
    else:
        not_understood(
            f"{path}.word_splitter.type",
            kind,
            "AllenNLP 2 has no tokenizer that splits like it. Choose one with "
            f"""--overrides '{{"{path}": {{"type": "spacy"}}}}', or register your own.""",
        )
    for key, value in tokenizer.items():
        if key in ("word_filter", "word_stemmer"):
            step = value.get("type", "pass_through") if isinstance(value, dict) else value
            if step in (None, "pass_through"):
                changes.needless(f"{path}.{key}", value, "it changes nothing")
            else:
                changes.dropped(f"{path}.{key}", value, "tokenizers only split")
        elif key in ("start_tokens", "end_tokens"):
            modern[key] = value
        elif key not in ("type", "word_splitter"):
            not_understood(f"{path}.{key}", value, "the word tokenizer has no such key.")
    changes.moved(path, tokenizer, path, modern)
    return modern


def _boundaries_to_reader(reader: Dict[str, Any], path: str, changes: Changes) -> None:
    """The tokens that the tokenizer put around a sentence lie inside those that the reader puts
    there."""
    tokenizer = reader.get("tokenizer")
    if not isinstance(tokenizer, dict) or tokenizer.get("type") not in (
        "just_spaces",
        "letters_digits",
    ):
        return
    for key in ("start_tokens", "end_tokens"):
        tokens = tokenizer.pop(key, None)
        if not tokens:
            continue
        outer: List[str] = reader.get(key) or []
        reader[key] = outer + tokens if key == "start_tokens" else tokens + outer
        changes.moved(f"{path}.tokenizer.{key}", tokens, f"{path}.{key}", reader[key])


def check_boundaries(part: Any, path: str) -> None:
    """
    # Raises

    `ConfigurationError`
        If a tokenizer was to add tokens, and neither it nor its reader can any more.
    """
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        check_boundaries(value, f"{path}.{key}")
        if not (key.endswith("tokenizer") and isinstance(value, dict)):
            continue
        if value.get("type") in ("just_spaces", "letters_digits"):
            for tokens_key in ("start_tokens", "end_tokens"):
                tokens = value.pop(tokens_key, None)
                if tokens:
                    not_understood(
                        f"{path}.{key}.{tokens_key}",
                        tokens,
                        f"the tokenizer {value['type']} adds no tokens in AllenNLP 2.",
                    )


def modern_vocabulary(vocabulary: Dict[str, Any], changes: Changes) -> Optional[Dict[str, Any]]:
    """
    # Returns

    `Dict[str, Any]`, optional
        `None` where nothing is left to say.
    """
    kind = vocabulary.get("type")
    if kind not in (None, "default"):
        extra = {k: vocabulary[k] for k in ("directory_path", "extend") if k in vocabulary}
        for old_key, value in extra.items():
            key = str(old_key)
            if kind in ("from_files", "extend") and ("directory" in vocabulary or key == "extend"):
                changes.needless(f"vocabulary.{key}", value, f"the type is {kind}")
            elif kind in ("from_files", "extend"):
                changes.moved(f"vocabulary.{key}", value, "vocabulary.directory", value)
                vocabulary = {**vocabulary, "directory": value}
            else:
                # A registered class of the user's, which may well have such a key.
                return vocabulary
        return {k: v for k, v in vocabulary.items() if k not in extra}

    for key, value in vocabulary.items():
        if key not in VOCABULARY_KEYS | VOCABULARY_TOKEN_KEYS | {
            "type",
            "directory_path",
            "extend",
        }:
            not_understood(f"vocabulary.{key}", value, "a vocabulary has no such key.")
    directory = vocabulary.get("directory_path")
    extend = is_true(vocabulary.get("extend", False))
    modern: Dict[str, Any] = {}
    if "type" in vocabulary:
        changes.needless("vocabulary.type", kind, "it is the default")
    if directory:
        modern["type"] = "extend" if extend else "from_files"
        modern["directory"] = directory
        changes.moved("vocabulary.directory_path", directory, "vocabulary.directory", directory)
        if extend:
            changes.moved("vocabulary.extend", vocabulary["extend"], "vocabulary.type", "extend")
    elif extend:
        not_understood("vocabulary.extend", True, "there is no directory_path to extend.")
    elif "directory_path" in vocabulary:
        changes.needless("vocabulary.directory_path", directory, "it names nothing")
    if "extend" in vocabulary and not extend:
        changes.needless("vocabulary.extend", vocabulary["extend"], "it is the default")
    for key, value in vocabulary.items():
        if key in VOCABULARY_TOKEN_KEYS or (key in VOCABULARY_KEYS and (extend or not directory)):
            modern[key] = value
        elif key in VOCABULARY_KEYS:
            changes.dropped(
                f"vocabulary.{key}", value, "the vocabulary is read from directory_path"
            )
    return modern or None
