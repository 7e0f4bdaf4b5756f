"""Weights of AllenNLP 0.x under the names that AllenNLP 2 has for them."""

from typing import Any, Dict, Tuple

from transformer_elmo.legacy.model import MATRIX_ATTENTION_MODELS

_MATRIX_ATTENTION = (("_matrix_attention._similarity_function.", "_matrix_attention."),)

# For each type of model: what names began with, and what they begin with now.
RENAMED: Dict[str, Tuple[Tuple[str, str], ...]] = {
    **dict.fromkeys(MATRIX_ATTENTION_MODELS, _MATRIX_ATTENTION),
    "coref": (
        ("_mention_pruner._scorer.0.", "_mention_feedforward."),
        ("_mention_pruner._scorer.1.", "_mention_scorer."),
    ),
}


def renamed_weights(config: Any) -> Tuple[Tuple[str, str], ...]:
    """
    # Parameters

    config : `Any`
        The config of an experiment.

    # Returns

    `Tuple[Tuple[str, str], ...]`
        What the names of its weights may begin with, and what they begin with in AllenNLP 2.
    """
    model = config.get("model") if isinstance(config, dict) else None
    return RENAMED.get(str(model.get("type")), ()) if isinstance(model, dict) else ()


def modern_weights(weights: Dict[str, Any], config: Any) -> Dict[str, Any]:
    """
    # Parameters

    weights : `Dict[str, Any]`
        Tensors by name.
    config : `Any`
        The config of the experiment that they are from.

    # Returns

    `Dict[str, Any]`
        The same tensors in the same order, under their modern names.
    """
    modern = {}
    for name, tensor in weights.items():
        for old, new in renamed_weights(config):
            if name.startswith(old):
                name = new + name[len(old) :]
        modern[name] = tensor
    return modern
