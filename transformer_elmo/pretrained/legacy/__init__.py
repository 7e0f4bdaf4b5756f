"""
AllenNLP 0.x configs, overrides and archives in AllenNLP 2.

Everything here works on plain dictionaries.
"""

from transformer_elmo.pretrained.legacy.archives import archived_files, modern_weights
from transformer_elmo.pretrained.legacy.config import is_old, modernize
from transformer_elmo.pretrained.legacy.overrides import (
    apply_overrides,
    check_evaluation_overrides,
    shared_with_validation,
)
from transformer_elmo.pretrained.legacy.report import Change, log_changes
from transformer_elmo.pretrained.legacy.sections import find_key, is_experiment
from transformer_elmo.pretrained.legacy.stock import without_this_package
from transformer_elmo.pretrained.legacy.trainer import check_trainer_keys

__all__ = [
    "Change",
    "apply_overrides",
    "archived_files",
    "check_evaluation_overrides",
    "check_trainer_keys",
    "find_key",
    "is_experiment",
    "is_old",
    "log_changes",
    "modern_weights",
    "modernize",
    "shared_with_validation",
    "without_this_package",
]
