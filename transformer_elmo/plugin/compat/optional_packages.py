"""What AllenNLP imports only when training has begun."""

from importlib.util import find_spec
from typing import Any, Callable

from allennlp.training.callbacks.wandb import WandBCallback

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.patches import wrap


def install() -> None:
    """Wraps the functions."""
    wrap(WandBCallback, "__init__", _make_wandb, "wandb is missed before training begins")


def _make_wandb(stock: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    if find_spec("wandb") is None:
        raise ConfigurationError(
            'The callback "wandb" needs the package wandb: pip install wandb. "tensorboard" needs '
            "nothing more."
        )
    stock(self, *args, **kwargs)
