"""
Weights that are what was written: each has a checksum in its file, and none has a NaN. What is
small is looked at when a model is opened; the softmax, which is most of a model and often not
needed, when it is used first.
"""

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from transformer_elmo.errors import ConfigurationError, first_line
from transformer_elmo.files import check_can_read

SOFTMAX = "_softmax_loss."

# The key of the checksums in the metadata of a safetensors file.
METADATA = "crc32"

# Where a file was written without checksums, zip has this number.
_NONE = 0

# What a zip archive's reader says of one that is damaged.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(OSError, EOFError, ValueError, LookupError, OverflowError, RuntimeError),
)

# From a weight's name and the weight to the checksums that it may have; none if that isn't known.
Sums = Callable[[str, torch.Tensor], Collection[int]]


class Unchecked:
    """
    What is still to be looked at.

    `weights`: as they were read. In whatever model they are now, these tensors are looked at.
    `shown`: what messages call the file.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], sums: Sums, shown: str) -> None:
        self._weights = {n: (tensor, tensor._version) for n, tensor in weights.items()}
        self._sums = {n: sums(n, tensor) for n, tensor in weights.items()}
        self._shown = shown

    def check(self) -> None:
        """
        Looks at all of them, the first time.

        Raises `ConfigurationError` if one has another checksum than when it was written, or isn't
        finite.
        """
        for name, (tensor, version) in self._weights.items():
            # What somebody has written to since is theirs.
            if tensor._version == version:
                _check(name, tensor, self._sums[name], self._shown)
        self._weights = {}

    def __reduce__(self) -> Any:
        # A copy would have the tensors twice.
        self.check()
        return Unchecked, ({}, _no_sums, self._shown)


def _no_sums(name: str, tensor: torch.Tensor) -> Collection[int]:
    return ()


class Weights(dict[str, torch.Tensor]):
    """
    Weights by their names in archives.

    `unchecked`: those that nobody has looked at yet: the softmax's.
    """

    unchecked: Unchecked

    def check(self) -> "Weights":
        """Looks at the rest, too. Errors are those of `Unchecked.check`."""
        self.unchecked.check()
        return self


def checked(weights: Mapping[str, torch.Tensor], sums: Sums, shown: str) -> Weights:
    """
    `weights`: by their names in archives. `shown`: what messages call the file. Returns all but the
    softmax's have been looked at. Raises `ConfigurationError` if a weight has another checksum, or
    isn't finite.
    """
    later = {name: tensor for name, tensor in weights.items() if name.startswith(SOFTMAX)}
    for name, tensor in weights.items():
        if name not in later:
            _check(name, tensor, sums(name, tensor), shown)
    result = Weights(weights)
    result.unchecked = Unchecked(later, sums, shown)
    return result


def _check(name: str, tensor: torch.Tensor, sums: Collection[int], shown: str) -> None:
    if sums and checksum(tensor) not in sums:
        raise damaged(shown, f"the checksum of {name} is another than when it was written")
    # Nobody reads this one, and a batch without words made it a NaN.
    if not is_finite(tensor) and not name.endswith("_last_average_loss"):
        raise ConfigurationError(
            f"{shown}: the weight {name} has a NaN or an infinity in it, so this model is broken. "
            "Take an earlier checkpoint of its training."
        )


def damaged(shown: str, reason: str) -> ConfigurationError:
    """What to say of a file that isn't as it was written."""
    return ConfigurationError(
        f"{shown} is damaged: {reason}. Copy it again from where it came, or take an earlier "
        "checkpoint."
    )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether there is neither a NaN nor an infinity in it."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # `isfinite` would need as much memory again as the softmax; a NaN is the least and the most.
    return all(map(math.isfinite, map(float, torch.aminmax(tensor.detach()))))


def checksum(tensor: torch.Tensor) -> int:
    """The CRC-32 of its bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0


def metadata_of(weights: Mapping[str, torch.Tensor], more: Mapping[str, bytes]) -> dict[str, str]:
    """
    The metadata of a safetensors file: the checksums of its weights, and of files beside it.

    `weights`: as they are written. `more`: contents of other files by their names.
    """
    sums = {name: checksum(tensor) for name, tensor in weights.items()}
    sums.update({name: zlib.crc32(content) for name, content in more.items()})
    return {"format": "pt", METADATA: json.dumps(sums)}


def sums_of_metadata(metadata: Mapping[str, str] | None) -> dict[str, int]:
    """
    Of the metadata of a safetensors file, the checksums by name; none where another program wrote
    it.
    """
    try:
        sums = json.loads((metadata or {}).get(METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    return sums if isinstance(sums, dict) else {}


def sums_of_zip(path: Path, shown: str) -> Sums:
    """
    The checksums in a file that `torch.save` wrote; none in those that are no zip archives, as
    before 2020.

    Raises `ConfigurationError` if what the file says of its weights is damaged itself.
    """
    check_can_read(path, shown)
    if not zipfile.is_zipfile(path):
        return lambda name, tensor: ()
    by_size: dict[int, dict[int, None]] = {}
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                # Which of these belongs to which weight, only torch's own reader knows.
                if Path(member.filename).parent.name == "data":
                    by_size.setdefault(member.file_size, {})[member.CRC] = None
                elif member.CRC != _NONE:
                    file.read(member)
    except _UNREADABLE as error:
        raise damaged(shown, first_line(error)) from None

    def sums(name: str, tensor: torch.Tensor) -> Collection[int]:
        found = by_size.get(tensor.untyped_storage().nbytes(), {})
        size = tensor.numel() * tensor.element_size()
        # A view of something larger has no checksum of its own.
        if _NONE in found or size != tensor.untyped_storage().nbytes():
            return ()
        return tuple(found)

    return sums


__all__ = [
    "Unchecked",
    "Weights",
    "checked",
    "checksum",
    "damaged",
    "is_finite",
    "metadata_of",
    "sums_of_metadata",
    "sums_of_zip",
]
