"""How much of each layer of a language model the model on top of it has learned to use."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

Weights = Mapping[str, torch.Tensor]

# AllenNLP's `ScalarMix` in a token embedder; the original ELMo numbers its own.
_SCALAR_MIX = re.compile(r"((?:(.+)\.)?_?scalar_mix[^.]*)\.scalar_parameters\.(\d+)")


class Mixture(NamedTuple):
    """
    A weighted sum of layers.

    `name`: of the module that has it. `weights`: one a layer, from the word vectors to the top;
    they add up to one. `factor`: what the sum is multiplied by.
    """

    name: str
    weights: list[float]
    factor: float


def mixtures_in(weights: Weights) -> list[Mixture]:
    """
    `weights`: a model's, by name. Returns those that are among them; none for a model that uses one
    layer only.
    """
    scalars: dict[str, dict[int, float]] = {}
    names: dict[str, str] = {}
    for name, tensor in weights.items():
        match = _SCALAR_MIX.fullmatch(name)
        if match and tensor.numel() == 1:
            scalars.setdefault(match[1], {})[int(match[3])] = tensor.item()
            names[match[1]] = (match[2] or match[1]).replace("_text_field_embedder.", "")
    found = []
    for path, by_layer in scalars.items():
        ordered = torch.tensor([by_layer[layer] for layer in sorted(by_layer)])
        factor = weights.get(f"{path}.gamma", torch.ones(1))
        found.append(
            Mixture(
                names[path],
                torch.softmax(ordered, dim=0).tolist(),
                factor.item() if factor.numel() == 1 else 1.0,
            )
        )
    return found
