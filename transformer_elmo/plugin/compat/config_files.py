"""Config files and overrides, evaluated: jsonnet to plain objects, and what to do about variables
not set."""

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, Optional, Union

from allennlp.common import params as allennlp_params
from allennlp.common.file_utils import cached_path

from transformer_elmo.errors import ConfigurationError

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
_UNDEFINED = re.compile(r"undefined external variable: *(\S+)", re.IGNORECASE)
_EXT_VAR = re.compile(r"""std\.extVar\(\s*(["'])(.+?)\1\s*\)""")


def evaluated_file(file: Union[str, os.PathLike], ext_vars: Optional[Dict[str, Any]] = None) -> Any:
    """
    # Parameters

    file : `Union[str, os.PathLike]`
        JSON or jsonnet, or its URL.
    ext_vars : `Dict[str, Any]`, optional (default = `None`)
        Variables beside those of the environment.

    # Returns

    `Any`
        What the file says.

    # Raises

    `ConfigurationError`
        If it reads variables that aren't set; it names all of them.
    """
    path = str(cached_path(file))
    variables = _variables(ext_vars)
    try:
        text = allennlp_params.evaluate_file(path, ext_vars=variables)
    except RuntimeError as error:
        source = Path(path).read_text(encoding="utf-8", errors="replace")
        raise _unset_variables(error, source, str(file), variables) or error from None
    return json.loads(text)


def evaluated_overrides(
    overrides: Union[str, Dict[str, Any]], ext_vars: Optional[Dict[str, Any]] = None
) -> Dict[str, Any]:
    """
    # Parameters

    overrides : `Union[str, Dict[str, Any]]`
        As given to AllenNLP.
    ext_vars : `Dict[str, Any]`, optional (default = `None`)

    # Returns

    `Dict[str, Any]`

    # Raises

    `ConfigurationError`
        If they read variables that aren't set, or aren't an object.
    """
    text = json.dumps(overrides) if isinstance(overrides, dict) else overrides
    try:
        parsed = allennlp_params.parse_overrides(text, _variables(ext_vars))
    except RuntimeError as error:
        raise _unset_variables(error, text, "The override", _variables(ext_vars)) or error from None
    if not isinstance(parsed, dict):
        raise ConfigurationError(
            f'The override {text} is not an object, such as {{"trainer.cuda_device": -1}}.'
        )
    return parsed


def _variables(ext_vars: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    return {**allennlp_params._environment_variables(), **(ext_vars or {})}


def _unset_variables(
    error: RuntimeError, text: str, source: str, variables: Dict[str, Any]
) -> Optional[ConfigurationError]:
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
