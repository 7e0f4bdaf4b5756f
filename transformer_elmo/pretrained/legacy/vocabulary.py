"""Vocabularies of AllenNLP 0.x configs."""

from typing import Any

from transformer_elmo.pretrained.legacy.report import Report, is_true, refuse

# What a vocabulary counted from the data is told, and what any vocabulary is told.
COUNTING_KEYS = {
    *"min_count max_vocab_size non_padded_namespaces pretrained_files tokens_to_add".split(),
    *"only_include_pretrained_words min_pretrained_embeddings".split(),
}
SPECIAL_TOKEN_KEYS = {"padding_token", "oov_token"}
LEGACY_KEYS = ("directory_path", "extend")


def is_old_vocabulary(section: Any) -> bool:
    """Whether only AllenNLP 0.x could have understood the section."""
    return (
        isinstance(section, dict)
        and section.get("type") in (None, "default", "from_files", "lm_from_files")
        and any(key in section for key in LEGACY_KEYS)
    )


def modern_vocabulary(old: dict[str, Any], report: Report) -> dict[str, Any] | None:
    """The modern section, with the type that old keys stood for; `None`: nothing is left to say."""
    kind = old.get("type")
    if kind in (None, "default"):
        return _of_the_default_type(old, report)
    if kind not in ("from_files", "lm_from_files", "extend"):
        # A registered class of the user's, which may well have such keys.
        return old
    modern = {key: value for key, value in old.items() if key not in LEGACY_KEYS}
    for key in LEGACY_KEYS:
        if key == "directory_path" and key in old and "directory" not in old:
            modern["directory"] = old[key]
            report.moved(f"vocabulary.{key}", old[key], "vocabulary.directory", old[key])
        elif key in old:
            report.needless(f"vocabulary.{key}", old[key], f"the type is {kind}")
    return modern


def _of_the_default_type(old: dict[str, Any], report: Report) -> dict[str, Any] | None:
    for key in old:
        if key not in {"type", *LEGACY_KEYS, *COUNTING_KEYS, *SPECIAL_TOKEN_KEYS}:
            refuse(f"vocabulary.{key}", old[key], "a vocabulary has no such key.")
    directory = old.get("directory_path")
    extend = is_true(old.get("extend", False))
    modern: dict[str, Any] = {}
    if "type" in old:
        report.needless("vocabulary.type", old["type"], "it is the default")
    if directory:
        modern = {"type": "extend" if extend else "from_files", "directory": directory}
        report.moved("vocabulary.directory_path", directory, "vocabulary.directory", directory)
        if extend:
            report.moved("vocabulary.extend", old["extend"], "vocabulary.type", "extend")
    elif extend:
        refuse("vocabulary.extend", True, "there is no directory_path to extend.")
    elif "directory_path" in old:
        report.needless("vocabulary.directory_path", directory, "it names nothing")
    if "extend" in old and not extend:
        report.needless("vocabulary.extend", old["extend"], "it is the default")
    rest = {key: value for key, value in old.items() if key not in ("type", *LEGACY_KEYS)}
    if directory and not extend:
        reason = "the vocabulary is read from directory_path"
        counting = {key: reason for key in rest if key in COUNTING_KEYS}
        report.drop_keys(rest, "vocabulary", counting)
    return {**modern, **rest} or None
