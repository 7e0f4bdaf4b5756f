"""
`python -m transformer_elmo.torchvision_stand_in`: a torchvision for AllenNLP to import.

- A torchvision that works is left alone, wherever it is, and a stand-in before it goes.
- One that fails, as one built for another torch does, is left alone, too, and told of: a stand-in
  could hide its modules, but not its metadata, and transformers goes by those.
- Where there is none, a stand-in is written into this Python's site-packages.
"""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import errors_of_disk, folder_written_whole

# An operator is run because a torchvision built for another torch may import and fail only there.
PROBE = """
import torch, torchvision, torchvision.io, torchvision.ops.boxes
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print(torchvision.__version__, "in", torchvision.__path__[0])
"""

# Without metadata of a distribution, no library takes it for the real thing. Every error but that
# of a submodule is an `AttributeError`, so that `hasattr` and pickle, which looks through all
# modules, keep working.
STAND_IN = '''"""A stand-in: AllenNLP imports torchvision, of which text needs nothing."""
import sys, types
STAND_IN = True
__version__ = "0.0.0+stand.in"
ADVICE = (
    "the torchvision of this environment is a stand-in that can only be imported: text needs none, "
    "and no usable torchvision was found when it was set up. To work on images install the "
    "torchvision that was built for your torch, from the same place (`pip install torchvision`)."
)

def _without(module):
    def missing(name):
        use = "is missing" if name.startswith("__") else f"was used, but {ADVICE}"
        raise AttributeError(f"'{module}.{name}' {use}")
    return missing

class _OtherSubmodules:
    def find_spec(fullname, path=None, target=None):
        if fullname.startswith("torchvision."):
            raise ImportError(f"'{fullname}' was imported, but {ADVICE}", name=fullname)

__getattr__ = _without("torchvision")
ops, boxes = map(types.ModuleType, ("torchvision.ops", "torchvision.ops.boxes"))
for _module in (ops, boxes):
    _module.__getattr__ = _without(_module.__name__)
    sys.modules[_module.__name__] = _module
ops.boxes = boxes
del boxes
sys.meta_path.append(_OtherSubmodules)
'''


def probe() -> "subprocess.CompletedProcess[str]":
    """Tries torchvision in a fresh process; `returncode` 0 says that it works."""
    command = [sys.executable, "-W", "ignore", "-c", PROBE]
    with tempfile.TemporaryDirectory() as elsewhere:
        return subprocess.run(
            command, cwd=elsewhere, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )


def is_stand_in(package: Path) -> bool:
    """Whether the package is a stand-in, of this or another version."""
    file = package / "__init__.py"
    return file.is_file() and "STAND_IN = True" in file.read_text("utf-8", "replace")


def install(target: Path, search_path: list[str]) -> str:
    """
    What was done, as a message. `target`: where a stand-in would be.

    Raises `ConfigurationError` if one is there that doesn't work, or the disk says no.
    """
    was_there = is_stand_in(target)
    with errors_of_disk(target):
        if was_there:
            shutil.rmtree(target)
        probed = probe()
        if probed.returncode == 0:
            gone = "; the stand-in is removed" if was_there else ""
            return f"{probed.stdout.strip()} works, left as it is{gone}"
        reason = (probed.stderr.strip().splitlines() or ["no reason given"])[-1]
        for folder in [str(target.parent), *search_path]:
            for found in metadata.distributions(name="torchvision", path=[folder]):
                raise ConfigurationError(
                    f"{found.version} in {folder} doesn't work with this torch ({reason}). Install "
                    "the one that was built for your torch, or uninstall it, and run this again"
                )
        # What is there is left of one that was uninstalled in part.
        with folder_written_whole(target, replace=True) as package:
            (package / "__init__.py").write_text(STAND_IN, encoding="utf-8")
    done = "is in" if was_there else "is put into"
    return f"a stand-in for AllenNLP's imports {done} {target.parent} ({reason})"


if __name__ == "__main__":
    try:
        site_packages = Path(sysconfig.get_paths()["purelib"])
        print("torchvision:", install(site_packages / "torchvision", sys.path))
    except ConfigurationError as error:
        sys.exit(f"torchvision: {error}")
