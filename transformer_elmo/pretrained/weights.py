"""
Weights on disk, as torch or safetensors writes them: tensors and nothing else, mapped into memory.
They are what was written: each has a checksum in its file, and none has a NaN. What is small is
looked at when a model is opened; the softmax, which is most of a model and often not needed, when
it is used first.
"""

import json
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from transformer_elmo.errors import ConfigurationError, first_line
from transformer_elmo.files import check_can_read

Shape = tuple[int, ...]

SOFTMAX = "_softmax_loss."

# The key of the checksums in the metadata of a safetensors file.
METADATA = "crc32"

# Where a file was written without checksums, zip has this number.
_NONE = 0

# What readers say of a file that is damaged, or isn't one of theirs.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, SafetensorError),
    *(OSError, EOFError, ValueError, LookupError, OverflowError, RuntimeError),
)

# From a weight's name and the weight to the checksums that it may have; none if that isn't known.
Sums = Callable[[str, torch.Tensor], Collection[int]]


def read_weights(path: Path, with_softmax: bool = True, shown: str | None = None) -> "Weights":
    """
    `path`: a file that torch or, where its suffix says so, safetensors wrote. No pickle in it is
    run. `shown`: what messages call it. Returns on the CPU. Raises `ConfigurationError` if it holds
    anything but tensors, is damaged, or has a NaN in it.
    """
    shown = shown or str(path)
    sums = _sums_of_safetensors(path) if _is_safetensors(path) else sums_of_zip(path, shown)
    tensors = _tensors(path, shown)
    return Weights(
        {n: t for n, t in tensors.items() if with_softmax or not n.startswith(SOFTMAX)}, sums, shown
    )


def read_shapes(path: Path, shown: str) -> dict[str, Shape]:
    """The shapes of the weights in a file, as `read_weights` reads it, which aren't looked at."""
    return shapes_of(_tensors(path, shown))


def shapes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    """The shapes of weights by their names."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def softmax_rows(shapes: Mapping[str, Shape]) -> int | None:
    """A row for each word, and one that nobody uses; `None` without a softmax."""
    for name in ("softmax_b", "softmax_b.weight"):
        if shape := shapes.get(SOFTMAX + name):
            return shape[0]
    return None


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _tensors(path: Path, shown: str) -> dict[str, torch.Tensor]:
    if _is_safetensors(path):
        with _opened(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_can_read(path, shown)
    try:
        state = _loaded(path)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"{shown} holds something other than tensors, or is damaged, and is not loaded because "
            f"that could run a program hidden in it: {first_line(error)}"
        ) from None
    except _UNREADABLE as error:
        raise _no_weights(shown, error) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise ConfigurationError(
            f"{shown} holds a {type(state).__name__} where names of tensors and tensors were "
            "expected."
        )
    return state


def _loaded(path: Path) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        return torch.load(path, mmap=True, **options)
    except RuntimeError as error:
        # Files from before 2020 are no zip archives, and can't be mapped.
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, **options)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    check_can_read(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except _UNREADABLE as error:
        raise _no_weights(str(path), error) from None


def _no_weights(shown: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{shown} is not a file of weights, or is damaged: {first_line(error)}"
    )


class Weights(dict[str, torch.Tensor]):
    """
    Weights by their names in archives.

    `unchecked`: the softmax's, which nobody has looked at yet. Raises `ConfigurationError` if one
    of the others has another checksum than when it was written, or isn't finite.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], sums: Sums, shown: str) -> None:
        super().__init__(weights)
        later = {}
        for name, tensor in weights.items():
            if name.startswith(SOFTMAX):
                later[name] = tensor
            else:
                _check(name, tensor, sums(name, tensor), shown)
        self.unchecked = Unchecked(later, sums, shown)

    def check(self) -> "Weights":
        """Looks at the rest, too."""
        self.unchecked.check()
        return self


class Unchecked:
    """What is still to be looked at, in whatever model these tensors are now."""

    def __init__(self, weights: Mapping[str, torch.Tensor], sums: Sums, shown: str) -> None:
        self._weights = {n: (tensor, tensor._version) for n, tensor in weights.items()}
        self._sums = {n: sums(n, tensor) for n, tensor in weights.items()}
        self._shown = shown

    def check(self) -> None:
        """Looks at all of them, the first time. Errors are those of `Weights`."""
        for name, (tensor, version) in self._weights.items():
            # What somebody has written to since is theirs.
            if tensor._version == version:
                _check(name, tensor, self._sums[name], self._shown)
        self._weights = {}

    def __reduce__(self) -> Any:
        # A copy would have the tensors twice.
        self.check()
        return Unchecked, ({}, None, self._shown)


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
    The metadata of a safetensors file: the checksums of its weights, as they are written, and of
    files beside it, by their names.
    """
    sums = {name: checksum(tensor) for name, tensor in weights.items()}
    sums.update({name: zlib.crc32(content) for name, content in more.items()})
    return {"format": "pt", METADATA: json.dumps(sums)}


def recorded_sums(path: Path) -> dict[str, int]:
    """The checksums in a safetensors file, by name; none where another program wrote it."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    try:
        sums = json.loads(metadata.get(METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    return sums if isinstance(sums, dict) else {}


def _sums_of_safetensors(path: Path) -> Sums:
    sums = recorded_sums(path)
    return lambda name, _: (sums[name],) if name in sums else ()


def sums_of_zip(path: Path, shown: str) -> Sums:
    """
    The checksums in a file that `torch.save` wrote; none in those that are no zip archives, as
    before 2020. Raises `ConfigurationError` if what the file says of itself is damaged.
    """
    check_can_read(path, shown)
    if not zipfile.is_zipfile(path):
        return lambda name, tensor: ()
    by_size: dict[int, set[int]] = {}
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                # Which of these belongs to which weight, only torch's own reader knows.
                if Path(member.filename).parent.name == "data":
                    by_size.setdefault(member.file_size, set()).add(member.CRC)
                elif member.CRC != _NONE:
                    file.read(member)
    except _UNREADABLE as error:
        raise damaged(shown, first_line(error)) from None

    def sums(name: str, tensor: torch.Tensor) -> Collection[int]:
        found = by_size.get(tensor.untyped_storage().nbytes(), ())
        size = tensor.numel() * tensor.element_size()
        # A view of something larger has no checksum of its own.
        if _NONE in found or size != tensor.untyped_storage().nbytes():
            return ()
        return found

    return sums
