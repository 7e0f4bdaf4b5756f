"""
AllenNLP 0.x configs, overrides and archives in AllenNLP 2.

The functions here take and give plain dictionaries; `transformer_elmo.seam` puts them where
AllenNLP reads config files. `python -m transformer_elmo.legacy OLD NEW` converts a file once and
for all.
"""

from transformer_elmo.legacy.changes import Change, log_changes
from transformer_elmo.legacy.config import is_experiment, modernize, old_signs
from transformer_elmo.legacy.overrides import (
    apply_overrides,
    check_evaluation_overrides,
    goes_over,
    shared_with_validation,
)

__all__ = [
    "Change",
    "apply_overrides",
    "check_evaluation_overrides",
    "goes_over",
    "is_experiment",
    "log_changes",
    "modernize",
    "old_signs",
    "shared_with_validation",
]
