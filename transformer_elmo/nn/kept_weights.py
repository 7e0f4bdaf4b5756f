"""What was made of a model's weights, kept for as long as they stand still."""

import threading
from typing import Any, Callable, Sequence, Tuple, Type

import torch

from transformer_elmo.nn.weights_watch import WeightsWatch


class KeptWeights:
    """
    Weights in another form: joined, cast, laid out for a kernel. Making them takes as long as a
    batch of one sentence. They are derived: copies and pickles of a model begin without any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._watch = WeightsWatch()
        self._made: Any = None

    def __reduce__(self) -> Tuple[Type["KeptWeights"], Tuple[()]]:
        # A lock can't be copied.
        return type(self), ()

    def forget(self) -> None:
        """Gives back the memory that they take."""
        if self._made is not None:
            with self._lock:
                self._forget()

    def get(self, weights: Sequence[torch.Tensor], setting: Tuple, make: Callable[[], Any]) -> Any:
        """
        # Parameters

        weights : `Sequence[torch.Tensor]`
            All that `make` depends on.
        setting : `Tuple`
            What else it depends on, such as the precision.
        make : `Callable[[], Any]`
            Called when there is nothing yet, or when something has changed.

        # Returns

        `Any`
            What `make` returned, which nobody may change.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if not self._watch.unchanged(weights, setting) or self._made is None:
                # Not twice in memory.
                self._made = None
                self._made = make()
            return self._made
