"""Weights of AllenNLP 0.x under the names that AllenNLP 2 has for them."""

import re
from typing import Any

from transformer_elmo.pretrained.legacy.config import is_old
from transformer_elmo.pretrained.legacy.model import MATRIX_ATTENTION_MODELS
from transformer_elmo.pretrained.legacy.sections import type_of

_MATRIX_ATTENTION = (("_matrix_attention._similarity_function.", "_matrix_attention."),)

# For each type of model: what names began with, and what they begin with now.
RENAMED: dict[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(MATRIX_ATTENTION_MODELS, _MATRIX_ATTENTION),
    "coref": (
        ("_mention_pruner._scorer.0.", "_mention_feedforward."),
        ("_mention_pruner._scorer.1.", "_mention_scorer."),
    ),
}

# A step of AllenNLP's own LSTM, which has become a module within it.
_LSTM_STEP = re.compile(r"(.+)\.((?:input|state)_linearity\.(?:weight|bias))")


def modern_weights(weights: dict[str, Any], config: Any) -> dict[str, Any]:
    """
    `weights`: tensors by name. `config`: the config of the experiment that they are from. Returns
    the same tensors in the same order, under the names that they have in AllenNLP 2. If the config
    isn't old, the same object.
    """
    if not is_old(config):
        return weights
    model = config.get("model")
    prefixes = RENAMED.get(type_of(model), ()) if isinstance(model, dict) else ()
    modern = {}
    for name, tensor in weights.items():
        for old, new in prefixes:
            if name.startswith(old):
                name = new + name[len(old) :]
        step = _LSTM_STEP.fullmatch(name)
        # The original ELMo's LSTM, which still has no such module, is told by its projection.
        if step and not (
            step[1].endswith(".cell") or f"{step[1]}.state_projection.weight" in weights
        ):
            name = f"{step[1]}.cell.{step[2]}"
        modern[name] = tensor
    return modern
