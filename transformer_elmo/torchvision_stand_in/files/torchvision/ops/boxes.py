"""Stand-in for `torchvision.ops.boxes`: see the package above."""

from typing import Any

from torchvision import missing


def __getattr__(name: str) -> Any:
    raise missing("torchvision.ops.boxes", name)
