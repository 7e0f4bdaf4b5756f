"""Dataset readers of AllenNLP 0.x configs, their tokenizers and token indexers."""

from typing import Any

from transformer_elmo.pretrained.legacy.report import (
    Report,
    as_list,
    as_object,
    check_keys,
    is_true,
    refuse,
)
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
    if not isinstance(old, dict):
        return old, False
    kind = type_of(old)
    ours = kind == LANGUAGE_MODELING_READER
    if kind == "multiprocess":
        return _without_processes(old, path, report), True
    modern: dict[str, Any] = {}
    for key, value in old.items():
        at = f"{path}.{key}"
        if key == "lazy":
            report.needless(at, value, "readers always stream")
        elif key == "coding_scheme" and kind in ("conll2000", "conll2003"):
            scheme = modern["convert_to_coding_scheme"] = "BIOUL" if value == "BIOUL" else None
            report.moved(at, value, f"{path}.convert_to_coding_scheme", scheme)
        else:
            modern[key] = _modern_part(key, value, at, report, ours and key == "tokenizer")
    if ours:
        _move_boundaries(modern, path, report)
    key = SPACY_READERS.get(kind)
    if key is not None and modern.get(key) is None:
        modern[key] = dict(SPACY_TOKENIZER)
        report.added(f"{path}.{key}", modern[key], "the old default")
    return modern, is_true(old.get("lazy"))


def _without_processes(old: dict[str, Any], path: str, report: Report) -> Any:
    base, rest = old.get("base_reader"), {k: v for k, v in old.items() if k != "base_reader"}
    if base is None:
        refuse(path, old, "a multiprocess reader needs a base_reader.")
    if not isinstance(base, (dict, str)):
        refuse(f"{path}.base_reader", base, "expected an object.")
    advice = "a multiprocess reader has no such key."
    check_keys(rest, ("type", *MULTIPROCESS_KEYS), path, advice)
    modern, _ = modern_reader(base, f"{path}.base_reader", report)
    # Several processes were there to keep up with the model; our loader does in one, and it takes
    # folders and globs itself.
    if not isinstance(modern, dict) or type_of(modern) != LANGUAGE_MODELING_READER:
        modern = {"type": "sharded", "base_reader": modern}
    report.moved(f"{path}.type", "multiprocess", f"{path}.type", modern["type"])
    reason = "the reader starts no processes"
    report.drop_keys(rest, path, dict.fromkeys(MULTIPROCESS_KEYS, reason))
    return modern


def _modern_part(
    key: str, value: Any, path: str, report: Report, adds_boundaries: bool = False
) -> Any:
    """Converts readers, tokenizers and token indexers, however deep they lie."""
    if key.endswith("tokenizer"):
        modern = modern_tokenizer(key, value, path, report)
        for boundary, tokens in () if adds_boundaries else _boundaries(modern).items():
            advice = f"the tokenizer {modern['type']} adds no tokens in AllenNLP 2."
            refuse(f"{path}.{boundary}", tokens, advice)
        if modern is not value:
            return modern
    if key == "base_reader":
        return modern_reader(value, path, report)[0]
    if not isinstance(value, dict):
        return value
    if key == "readers":
        return {k: modern_reader(v, f"{path}.{k}", report)[0] for k, v in value.items()}
    if key.endswith("token_indexers"):
        return {k: _modern_indexer(v, f"{path}.{k}", report) for k, v in value.items()}
    return {k: _modern_part(k, v, f"{path}.{k}", report) for k, v in value.items()}


def _modern_indexer(old: Any, path: str, report: Report) -> Any:
    if not isinstance(old, dict):
        return old
    old = {k: _modern_part(k, v, f"{path}.{k}", report) for k, v in old.items()}
    kind, least = type_of(old), "token_min_padding_length"
    if kind not in TAG_INDEXERS:
        return old
    advice = f"the {kind} indexer has no such key."
    check_keys(old, ("type", "namespace", "coarse_tags", least), path, advice)
    feature, namespace = TAG_INDEXERS[kind]
    modern: dict[str, Any] = {
        "type": "single_id",
        "namespace": old.get("namespace", namespace),
        "feature_name": "pos_" if is_true(old.get("coarse_tags")) else feature,
        # What those indexers put where a token has no tag.
        "default_value": "NONE",
        **{key: value for key, value in old.items() if key == least},
    }
    report.moved(path, old, path, modern)
    return modern


def is_word_tokenizer(key: str, value: Any) -> bool:
    """Whether `value`, the value of `key`, is a tokenizer of the type `word`."""
    if not key.endswith("tokenizer"):
        return False
    if not isinstance(value, dict):
        return bool(value == "word")
    return value.get("type") == "word" or "word_splitter" in value


def modern_tokenizer(key: str, old: Any, path: str, report: Report) -> Any:
    """What splits as the `word_splitter` did, if there was one; boundary tokens are still in it."""
    can_be_of_words = key != "character_tokenizer" and isinstance(old, dict)
    is_of_words = can_be_of_words and old.keys() <= WORD_TOKENIZER_KEYS
    if not is_of_words and not is_word_tokenizer(key, old):
        return old
    old = {"type": old} if isinstance(old, str) else old
    if old.get("type", "word") != "word":
        # A modern type that an override put over the old config.
        modern = dict(old)
        report.drop_keys(modern, path, {"word_splitter": f"the type is {old['type']}"}, lost=False)
        return modern
    modern = _splitter(old.get("word_splitter"), path)
    advice = "the word tokenizer has no such key."
    check_keys(old, {"type", *WORD_TOKENIZER_KEYS}, path, advice)
    for key in [key for key in old if key in ("word_filter", "word_stemmer")]:
        if type_of(old[key] or "pass_through") in ("pass_through", ""):
            report.needless(f"{path}.{key}", old[key], "it changes nothing")
        else:
            report.dropped(f"{path}.{key}", old[key], "tokenizers only split")
    modern.update({key: old[key] for key in old if key in BOUNDARIES})
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
    check_keys(keys, (), path, f"{kind} takes no such key.")
    return {"type": kind}


def _boundaries(tokenizer: Any) -> dict[str, Any]:
    """Takes the tokens out of a tokenizer that it can't add any more."""
    if not isinstance(tokenizer, dict) or tokenizer.get("type") not in PLAIN_TYPES:
        return {}
    found = {key: tokenizer.pop(key, None) for key in BOUNDARIES}
    return {key: tokens for key, tokens in found.items() if tokens}


def _move_boundaries(reader: dict[str, Any], path: str, report: Report) -> None:
    """Moves such tokens to the tokenizer's reader, inside the reader's own."""
    for key, tokens in _boundaries(reader.get("tokenizer")).items():
        inner = as_list(tokens, f"{path}.tokenizer.{key}")
        outer = as_list(reader.get(key) or [], f"{path}.{key}")
        reader[key] = outer + inner if key == "start_tokens" else inner + outer
        report.moved(f"{path}.tokenizer.{key}", inner, f"{path}.{key}", reader[key])
