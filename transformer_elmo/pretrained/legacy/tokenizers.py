"""Tokenizers of AllenNLP 0.x configs."""

from typing import Any

from transformer_elmo.pretrained.legacy.report import Report, as_list, as_object, refuse

# An old tokenizer of the type `word` was made of parts. Only the first of them splits.
WORD_TOKENIZER_KEYS = {"word_splitter", "word_filter", "word_stemmer", "start_tokens", "end_tokens"}

# Without tags, which the old default didn't look for and which need a trained model.
SPACY_TOKENIZER = {"type": "spacy", "pos_tags": False}

# Types that could put tokens around a text as part of a word tokenizer, and now can't.
PLAIN_TYPES = ("just_spaces", "letters_digits")
BOUNDARIES = ("start_tokens", "end_tokens")


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
    """
    The tokenizer that splits as the `word_splitter` did. `start_tokens` and `end_tokens` stay in it
    even where its class has no such keys; `modern_reader` finds them another place.
    """
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
    """
    The tokenizer that splits alike. There must be one: other tokens are another input, which a
    trained model wasn't trained for.
    """
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
    """
    Moves the tokens that a tokenizer can't add any more to its reader. Those of the tokenizer lie
    inside those of the reader.
    """
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
