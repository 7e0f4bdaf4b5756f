"""
AllenNLP 0.x configs, overrides and archives in AllenNLP 2.

Everything here works on plain dictionaries.
"""

# ruff: noqa: F401
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
