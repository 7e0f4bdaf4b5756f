"""Vocabularies of AllenNLP 0.x configs."""

from typing import Any

from transformer_elmo.pretrained.legacy.report import Report, check_keys, is_true, refuse

# What a vocabulary counted from the data is told, and what any vocabulary is told.
COUNTING_KEYS = {
    *"min_count max_vocab_size non_padded_namespaces pretrained_files tokens_to_add".split(),
    *"only_include_pretrained_words min_pretrained_embeddings".split(),
}
LEGACY_KEYS = ("directory_path", "extend")
KNOWN_KEYS = {"type", "padding_token", "oov_token", *LEGACY_KEYS, *COUNTING_KEYS}


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
    modern = dict(old)
    if "directory_path" in old and "directory" not in old:
        directory = modern["directory"] = modern.pop("directory_path")
        report.moved("vocabulary.directory_path", directory, "vocabulary.directory", directory)
    reasons = dict.fromkeys(LEGACY_KEYS, f"the type is {kind}")
    report.drop_keys(modern, "vocabulary", reasons, lost=False)
    return modern


def _of_the_default_type(old: dict[str, Any], report: Report) -> dict[str, Any] | None:
    check_keys(old, KNOWN_KEYS, "vocabulary", "a vocabulary has no such key.")
    rest, modern = dict(old), {}
    extend = is_true(old.get("extend", False))
    report.drop_keys(rest, "vocabulary", {"type": "it is the default"}, lost=False)
    if directory := old.get("directory_path"):
        modern = {"type": "extend" if extend else "from_files", "directory": directory}
        report.moved("vocabulary.directory_path", directory, "vocabulary.directory", directory)
        del rest["directory_path"]
        if extend:
            report.moved("vocabulary.extend", rest.pop("extend"), "vocabulary.type", "extend")
    elif extend:
        refuse("vocabulary.extend", True, "there is no directory_path to extend.")
    needless = {"directory_path": "it names nothing", "extend": "it is the default"}
    report.drop_keys(rest, "vocabulary", needless, lost=False)
    if directory and not extend:
        reason = "the vocabulary is read from directory_path"
        counting = {key: reason for key in rest if key in COUNTING_KEYS}
        report.drop_keys(rest, "vocabulary", counting)
    return {**modern, **rest} or None
