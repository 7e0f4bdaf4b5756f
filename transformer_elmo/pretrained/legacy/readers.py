"""Dataset readers of AllenNLP 0.x configs, their tokenizers and token indexers."""

from typing import Any

from transformer_elmo.pretrained.legacy.report import Report, as_list, as_object, is_true, refuse
from transformer_elmo.pretrained.legacy.sections import LANGUAGE_MODELING_READER, type_of

# Readers that AllenNLP 2 and allennlp-models have under their 0.x names. None of them takes `lazy`
# any more.
KNOWN_READERS = {
    LANGUAGE_MODELING_READER,
    *"babi boolq ccgbank conll2000 conll2003 copynet_seq2seq coref drop interleaving".split(),
    *"multiprocess ontonotes_ner ptb_trees quac quora_paraphrase semantic_dependencies".split(),
    *"seq2seq sequence_tagging snli squad srl sst_tokens text_classification_json".split(),
    *"triviaqa universal_dependencies".split(),
}

# Readers that split with spaCy unless told otherwise, and the key that tells them.
SPACY_READERS = {
    **dict.fromkeys("drop qangaroo quac snli squad triviaqa".split(), "tokenizer"),
    **dict.fromkeys((LANGUAGE_MODELING_READER, "text_classification_json"), "tokenizer"),
    **dict.fromkeys(("copynet_seq2seq", "seq2seq"), "source_tokenizer"),
}

# An old tokenizer of the type `word` was made of parts. Only the first of them splits.
WORD_TOKENIZER_KEYS = {"word_splitter", "word_filter", "word_stemmer", "start_tokens", "end_tokens"}

# Without tags, which the old default didn't look for and which need a trained model.
SPACY_TOKENIZER = {"type": "spacy", "pos_tags": False}

# Types that could put tokens around a text as part of a word tokenizer, and now can't.
PLAIN_TYPES = ("just_spaces", "letters_digits")
BOUNDARIES = ("start_tokens", "end_tokens")

MULTIPROCESS_KEYS = ("num_workers", "epochs_per_read", "output_queue_size")

# Token indexers for a word's tags: the attribute of the token, and the default namespace.
TAG_INDEXERS = {
    "pos_tag": ("tag_", "pos_tokens"),
    "dependency_label": ("dep_", "dep_labels"),
    "ner_tag": ("ent_type_", "ner_tokens"),
}


def is_old_reader(key: str, part: Any) -> bool:
    """Whether only 0.x could have understood `part`, at `key` in a reader; not what lies deeper."""
    if key.endswith("tokenizer") or not isinstance(part, dict):
        return is_word_tokenizer(key, part)
    if key.endswith("token_indexers"):
        return any(isinstance(v, dict) and type_of(v) in TAG_INDEXERS for v in part.values())
    kind = type_of(part)
    return kind == "multiprocess" or ("lazy" in part and kind in KNOWN_READERS)


def modern_reader(old: Any, path: str, report: Report) -> tuple[Any, bool]:
    """Returns the reader's modern config, and whether the old one read lazily."""
    reader, lazy = _modern_reader(old, path, report)
    refuse_boundaries(reader, path)
    return reader, lazy


def _modern_reader(old: Any, path: str, report: Report) -> tuple[Any, bool]:
    if not isinstance(old, dict):
        return old, False
    if old.get("type") == "multiprocess":
        return _without_processes(old, path, report), True
    kind = type_of(old)
    modern: dict[str, Any] = {}
    for key, value in old.items():
        at = f"{path}.{key}"
        if key == "lazy":
            report.needless(at, value, "readers always stream")
        elif key == "coding_scheme" and kind in ("conll2000", "conll2003"):
            scheme = modern["convert_to_coding_scheme"] = "BIOUL" if value == "BIOUL" else None
            report.moved(at, value, f"{path}.convert_to_coding_scheme", scheme)
        else:
            modern[key] = _modern_part(key, value, at, report)
    if kind == LANGUAGE_MODELING_READER:
        move_boundaries(modern, path, report)
    tokenizer_key = SPACY_READERS.get(kind)
    if tokenizer_key is not None and modern.get(tokenizer_key) is None:
        modern[tokenizer_key] = dict(SPACY_TOKENIZER)
        report.added(f"{path}.{tokenizer_key}", modern[tokenizer_key], "the old default")
    return modern, is_true(old.get("lazy"))


def _without_processes(old: dict[str, Any], path: str, report: Report) -> Any:
    base = old.get("base_reader")
    if base is None:
        refuse(path, old, "a multiprocess reader needs a base_reader.")
    if not isinstance(base, (dict, str)):
        refuse(f"{path}.base_reader", base, "expected an object.")
    for key in old:
        if key not in ("type", "base_reader", *MULTIPROCESS_KEYS):
            refuse(f"{path}.{key}", old[key], "a multiprocess reader has no such key.")
    base, _ = _modern_reader(base, f"{path}.base_reader", report)
    if isinstance(base, dict) and type_of(base) == LANGUAGE_MODELING_READER:
        # Several processes were there to keep up with the model; our loader does in one, and it
        # takes folders and globs itself.
        modern = base
    else:
        modern = {"type": "sharded", "base_reader": base}
    report.moved(f"{path}.type", "multiprocess", f"{path}.type", modern["type"])
    reason = "the reader starts no processes"
    report.drop_keys(dict(old), path, dict.fromkeys(MULTIPROCESS_KEYS, reason))
    return modern


def _modern_part(key: str, value: Any, path: str, report: Report) -> Any:
    """Converts readers, tokenizers and token indexers, however deep they lie."""
    if is_word_tokenizer(key, value) or is_default_tokenizer(key, value):
        return modern_tokenizer(value, path, report)
    if key == "base_reader":
        return _modern_reader(value, path, report)[0]
    if not isinstance(value, dict):
        return value
    if key.endswith("token_indexers"):
        return {k: _modern_indexer(v, f"{path}.{k}", report) for k, v in value.items()}
    if key == "readers":
        return {k: _modern_reader(v, f"{path}.{k}", report)[0] for k, v in value.items()}
    return {k: _modern_part(k, v, f"{path}.{k}", report) for k, v in value.items()}


def _modern_indexer(old: Any, path: str, report: Report) -> Any:
    if not isinstance(old, dict):
        return old
    old = {k: _modern_part(k, v, f"{path}.{k}", report) for k, v in old.items()}
    kind = type_of(old)
    if kind not in TAG_INDEXERS:
        return old
    feature, namespace = TAG_INDEXERS[kind]
    modern: dict[str, Any] = {
        "type": "single_id",
        "namespace": old.get("namespace", namespace),
        "feature_name": "pos_" if is_true(old.get("coarse_tags")) else feature,
        # What those indexers put where a token has no tag.
        "default_value": "NONE",
    }
    for key, value in old.items():
        if key == "token_min_padding_length":
            modern[key] = value
        elif key not in ("type", "namespace", "coarse_tags"):
            refuse(f"{path}.{key}", value, f"the {kind} indexer has no such key.")
    report.moved(path, old, path, modern)
    return modern


def is_word_tokenizer(key: str, value: Any) -> bool:
    """Whether `value`, the value of `key`, is a tokenizer of the type `word`."""
    if not key.endswith("tokenizer"):
        return False
    if not isinstance(value, dict):
        return bool(value == "word")
    return value.get("type") == "word" or "word_splitter" in value


def is_default_tokenizer(key: str, value: Any) -> bool:
    """Whether `value`, the value of `key`, is a tokenizer of words because it names no type."""
    is_of_words = key.endswith("tokenizer") and key != "character_tokenizer"
    return is_of_words and isinstance(value, dict) and value.keys() <= WORD_TOKENIZER_KEYS


def modern_tokenizer(old: str | dict[str, Any], path: str, report: Report) -> dict[str, Any]:
    """What splits as the `word_splitter` did; `modern_reader` moves boundary tokens on."""
    old = {"type": old} if isinstance(old, str) else old
    if old.get("type", "word") != "word":
        # A modern type that an override put over the old config.
        modern = dict(old)
        report.drop_keys(modern, path, {"word_splitter": f"the type is {old['type']}"}, lost=False)
        return modern
    modern = _splitter(old.get("word_splitter"), path)
    for key, value in old.items():
        if key in ("word_filter", "word_stemmer"):
            step = value.get("type", "pass_through") if isinstance(value, dict) else value
            if step in (None, "pass_through"):
                report.needless(f"{path}.{key}", value, "it changes nothing")
            else:
                report.dropped(f"{path}.{key}", value, "tokenizers only split")
        elif key in BOUNDARIES:
            modern[key] = value
        elif key not in ("type", "word_splitter"):
            refuse(f"{path}.{key}", value, "the word tokenizer has no such key.")
    report.moved(path, old, path, modern)
    return modern


def _splitter(splitter: Any, tokenizer_path: str) -> dict[str, Any]:
    """What splits alike. There must be one: of other tokens a trained model knows nothing."""
    path = f"{tokenizer_path}.word_splitter"
    splitter = {"type": splitter} if isinstance(splitter, str) else splitter or {}
    keys = dict(as_object(splitter, path))
    kind = keys.pop("type", "spacy")
    if kind == "spacy":
        if keys.get("language") == "en":
            keys["language"] = "en_core_web_sm"
        # The old splitter tagged only if told to; the new one does unless told not to.
        return {**SPACY_TOKENIZER, **keys}
    if kind not in PLAIN_TYPES:
        advice = (
            "AllenNLP 2 has no tokenizer that splits like it. Choose one with --overrides "
            f"""'{{"{tokenizer_path}": {{"type": "spacy"}}}}', or register your own."""
        )
        refuse(f"{path}.type", kind, advice)
    for key, value in keys.items():
        refuse(f"{path}.{key}", value, f"{kind} takes no such key.")
    return {"type": kind}


def move_boundaries(reader: dict[str, Any], path: str, report: Report) -> None:
    """Moves tokens that a tokenizer can't add any more to its reader, inside the reader's own."""
    tokenizer = reader.get("tokenizer")
    if not isinstance(tokenizer, dict) or tokenizer.get("type") not in PLAIN_TYPES:
        return
    for key in BOUNDARIES:
        inner = tokenizer.pop(key, None)
        if inner:
            inner = as_list(inner, f"{path}.tokenizer.{key}")
            outer = as_list(reader.get(key) or [], f"{path}.{key}")
            reader[key] = outer + inner if key == "start_tokens" else inner + outer
            report.moved(f"{path}.tokenizer.{key}", inner, f"{path}.{key}", reader[key])


def refuse_boundaries(part: Any, path: str) -> None:
    """Refuses tokens that neither a tokenizer nor its reader can add any more."""
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        refuse_boundaries(value, f"{path}.{key}")
        if not (key.endswith("tokenizer") and isinstance(value, dict)):
            continue
        for boundary in BOUNDARIES if value.get("type") in PLAIN_TYPES else ():
            tokens = value.pop(boundary, None)
            if tokens:
                advice = f"the tokenizer {value['type']} adds no tokens in AllenNLP 2."
                refuse(f"{path}.{key}.{boundary}", tokens, advice)
