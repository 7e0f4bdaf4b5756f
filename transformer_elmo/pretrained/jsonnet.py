"""
Config files and overrides, evaluated: jsonnet to plain objects, and what to do about variables not
set.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from transformer_elmo.errors import ConfigurationError, first_line
from transformer_elmo.files import parsed_json, read_bytes

# What the configs of this project, and those that it grew from, read from the environment.
VARIABLES = {
    "BIDIRECTIONAL_LM_TRAIN_PATH": (
        "the training text: a file, a folder, or a pattern in quotes",
        "'/path/to/training-monolingual.tokenized.shuffled/*'",
    ),
    "BIDIRECTIONAL_LM_VOCAB_PATH": (
        "the folder that holds tokens.txt and non_padded_namespaces.txt",
        "/path/to/vocabulary",
    ),
    "BIDIRECTIONAL_LM_DATA_PATH": (
        "the folder of the billion-word benchmark",
        "/path/to/1-billion-word-language-modeling-benchmark-r13output",
    ),
    "BIDIRECTIONAL_LM_ARCHIVE_PATH": (
        "a trained language model's archive",
        "/path/to/model.tar.gz",
    ),
    "BIDIRECTIONAL_LM_HELDOUT_PATH": (
        "the text to validate on: a file, a folder, or a pattern in quotes",
        "/path/to/heldout.txt",
    ),
    "TAGGER_TRAIN_PATH": ("tagged sentences, one a line: WORD###TAG WORD###TAG", "/path/to/train"),
    "TAGGER_VALIDATION_PATH": ("the same, to validate on", "/path/to/dev"),
    "PTB_TRAIN_PATH": ("bracketed trees in the Penn Treebank's format", "/path/to/train.trees"),
    "PTB_VALIDATION_PATH": ("the same, to validate on", "/path/to/dev.trees"),
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNDEFINED = re.compile(r"undefined external variable: *(\S+)", re.IGNORECASE)
_EXT_VAR = re.compile(r"""std\.extVar\(\s*(["'])(.+?)\1\s*\)""")


def evaluated_file(file: str | os.PathLike, ext_vars: dict[str, Any] | None = None) -> Any:
    """
    `file`: JSON or jsonnet. `ext_vars`: variables beside those of the environment. Returns what the
    file says. Raises `ConfigurationError` if it can't be read or understood, or reads variables
    that aren't set; it names all of them.
    """
    path = Path(file)
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} can't be read: {first_line(error)}") from None
    return _evaluated(str(path), text, _variables(ext_vars), is_file=True)


def evaluated_overrides(
    overrides: str | dict[str, Any], ext_vars: dict[str, Any] | None = None
) -> dict[str, Any]:
    """
    `overrides`: as given to AllenNLP. Raises `ConfigurationError` if they read variables that
    aren't set, or aren't an object.
    """
    text = json.dumps(overrides) if isinstance(overrides, dict) else overrides
    parsed = _evaluated("The override", text, _variables(ext_vars)) if text else {}
    if not isinstance(parsed, dict):
        raise ConfigurationError(
            f'The override {text} is not an object, such as {{"trainer.cuda_device": -1}}.'
        )
    return parsed


def _variables(ext_vars: dict[str, Any] | None) -> dict[str, str]:
    # What a system's variables hold needn't be text.
    of_system = {k: v for k, v in os.environ.items() if v.isascii() or not _SURROGATE.search(v)}
    return {**of_system, **(ext_vars or {})}


def _evaluated(name: str, text: str, variables: dict[str, str], is_file: bool = False) -> Any:
    try:
        import _jsonnet
    except ImportError:
        _jsonnet = None
    try:
        if _jsonnet is None:
            return parsed_json(text)
        if is_file:
            return json.loads(_jsonnet.evaluate_file(name, ext_vars=variables))
        return json.loads(_jsonnet.evaluate_snippet(name, text, ext_vars=variables))
    except (ValueError, RecursionError) as error:
        # Text that jsonnet doesn't take, such as a null character.
        reason = f"can't be understood: {first_line(error)}"
        if _jsonnet is None:
            reason = (
                f"is not JSON ({first_line(error)}). If it is jsonnet, install what reads it: pip "
                "install jsonnet."
            )
        raise ConfigurationError(f"{name} {reason}") from None
    except RuntimeError as error:
        raise (
            _unset_variables(error, text, name, variables)
            or ConfigurationError(f"{name} can't be understood: {str(error).strip()}")
        ) from None


def _unset_variables(
    error: RuntimeError, text: str, source: str, variables: dict[str, str]
) -> ConfigurationError | None:
    first = _UNDEFINED.search(str(error))
    if first is None:
        return None
    names = dict.fromkeys([first[1], *(match[2] for match in _EXT_VAR.finditer(text))])
    lines = []
    for name in names:
        if name not in variables:
            what, example = VARIABLES.get(name, ("a value that you choose", "..."))
            lines.append(f"  {name}: {what}\n    export {name}={example}")
    return ConfigurationError(
        f"{source} reads environment variables that are not set:\n" + "\n".join(lines)
    )
