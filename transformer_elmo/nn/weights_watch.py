"""Whether weights are what they were: whoever keeps something that was made of them has to know."""

from typing import List, Optional, Sequence, Tuple

import torch


class WeightsWatch:
    """
    Remembers where weights are and what they were.

    PyTorch counts the changes of a tensor, but not those that are made behind its back, through
    `.data` or an array that shares its memory. Against those a sample is compared: all numbers of
    vectors, and of matrices one a row, each in another column. Changes of fewer numbers may be
    missed.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._described: Optional[List[Tuple]] = None
        # They hold on to the memory, so that nothing else can come to lie there.
        self._views: List[torch.Tensor] = []
        self._sample: Optional[torch.Tensor] = None

    def unchanged(self, weights: Sequence[torch.Tensor], setting: Tuple = ()) -> bool:
        """
        # Parameters

        weights : `Sequence[torch.Tensor]`
            Of one device and type.
        setting : `Tuple`, optional (default = `()`)
            What else must be as it was.

        # Returns

        `bool`
            Whether all is as it was at the last call. Never at the first one, of weights made in
            inference mode, whose changes aren't counted, and of those with gaps in memory.
        """
        if any(weight.is_inference() or not weight.is_contiguous() for weight in weights):
            self._forget()
            return False
        described: List[Tuple] = [setting]
        for weight in weights:
            described.append((weight.data_ptr(), weight._version, weight.dtype, weight.shape))
        if described == self._described and self._sample is not None:
            # All numbers are compared at once, because a host waits for its device to say; as
            # bytes, because a NaN isn't equal to itself.
            if torch.equal(self._sample, _bytes(self._views)):
                return True
        self._described = described
        self._views = [_sampled(weight.detach()) for weight in weights]
        self._sample = _bytes(self._views)
        return False


def _sampled(weight: torch.Tensor) -> torch.Tensor:
    row = weight.numel() // max(1, weight.size(0)) if weight.dim() > 1 else 0
    return weight.view(-1)[:: row + 1]


def _bytes(views: List[torch.Tensor]) -> torch.Tensor:
    return torch.cat(views).view(torch.uint8)
