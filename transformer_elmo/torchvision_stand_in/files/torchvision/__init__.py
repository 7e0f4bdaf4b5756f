"""
A stand-in for torchvision in an environment that has no usable one.

AllenNLP's `allennlp` command imports torchvision, whether or not an image is ever touched. Text
needs none of it. This package can be imported, and whatever else is asked of it fails with one
message that says what to do. It has no distribution metadata, so no library takes it for the real
thing, and installing the real torchvision over it replaces every file of it.
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any

STAND_IN = True

__version__ = "0.0.0+stand.in"

ADVICE = (
    "the torchvision of this environment is a stand-in that can only be imported: text needs none, "
    "and no usable torchvision was found when it was set up. To work on images install the "
    "torchvision that was built for your torch, from the same place (`pip install torchvision`)."
)


class MissingImageFunctionError(AttributeError):
    """Raised when something of torchvision is used: the stand-in has nothing of it."""


def missing(module: str, name: str) -> MissingImageFunctionError:
    """
    The error for `name` asked of `module`. An `AttributeError`, so that `hasattr` and pickling,
    which looks through all modules, keep working.
    """
    if name.startswith("__"):
        return MissingImageFunctionError(f"module '{module}' has no attribute '{name}'")
    return MissingImageFunctionError(f"'{module}.{name}' was used, but {ADVICE}")


class _OtherSubmodules(MetaPathFinder):
    """Comes last, and says the same of another submodule, as in `import torchvision.io`."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.startswith("torchvision."):
            raise ImportError(f"'{fullname}' was imported, but {ADVICE}", name=fullname)


sys.meta_path.append(_OtherSubmodules())


def __getattr__(name: str) -> Any:
    raise missing("torchvision", name)
