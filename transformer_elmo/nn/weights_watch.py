"""Whether weights are what they were: whoever keeps something that was made of them has to know."""

from typing import List, Optional, Sequence, Tuple

import torch


class WeightsWatch:
    """
    Remembers where weights are and what they were.

    # Parameters

    numbers_in_sample : `int`
        So many numbers of each weight are compared. PyTorch counts the changes of a tensor, but not
        those that are made behind its back, through `.data`.
    """

    def __init__(self, numbers_in_sample: int) -> None:
        self._numbers = numbers_in_sample
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
            Whether all is as it was at the last call. Never at the first one.
        """
        described: List[Tuple] = [setting]
        for weight in weights:
            version = None if weight.is_inference() else weight._version
            described.append((weight.data_ptr(), version, weight.dtype, weight.device))
        if described == self._described and self._sample is not None:
            # All numbers are compared at once, because a host waits for its device to say.
            if torch.equal(self._sample, torch.cat(self._views)):
                return True
        self._described = described
        flat = [weight.detach().reshape(-1) for weight in weights]
        self._views = [part[:: max(1, part.numel() // self._numbers)] for part in flat]
        self._sample = torch.cat(self._views)
        return False
