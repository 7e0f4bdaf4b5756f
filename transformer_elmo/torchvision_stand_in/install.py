"""
Makes `import torchvision` work in the Python that runs this, for AllenNLP, which imports it.

- A torchvision that works is left alone, wherever it is.
- One that fails, as one that was built for another torch does, is left alone, too: this ends with
  a message that says what to do. The stand-in could hide its modules but not its metadata, and
  transformers goes by those.
- Where there is none, the stand-in below `files` is copied into this Python's site-packages.

Run again after torch or torchvision has changed: the stand-in goes when a torchvision works
without it.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path
from typing import List, Optional

SOURCE = Path(__file__).resolve().parent / "files" / "torchvision"

# An operator is run because a torchvision built for another torch may import and fail only there.
PROBE = """
import torch, torchvision, torchvision.io, torchvision.ops.boxes
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print(torchvision.__version__, "in", torchvision.__path__[0])
"""


def probe() -> "subprocess.CompletedProcess[str]":
    """Tries torchvision in a fresh process; `returncode` 0 says that it works."""
    with tempfile.TemporaryDirectory() as elsewhere:
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROBE],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )


def installed_in(folder: str) -> Optional[str]:
    """The version of the torchvision that pip installed into `folder`, if it did."""
    for distribution in metadata.distributions(name="torchvision", path=[folder]):
        return distribution.version
    return None


def search_path() -> List[str]:
    """The folders in which this Python looks for packages."""
    return sys.path


def copy_stand_in(target: Path) -> None:
    """Copies the stand-in to `target`, which appears complete or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".torchvision-") as beside:
        copy = Path(beside) / "torchvision"
        shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        os.replace(copy, target)


def is_stand_in(package: Path) -> bool:
    """Whether the package at `package` is the stand-in, of this or another version."""
    try:
        return "STAND_IN = True" in (package / "__init__.py").read_text(encoding="utf-8")
    except OSError:
        return False


def main() -> None:
    """Leaves this Python with a torchvision that works or, where there is none, the stand-in."""
    site_packages = Path(sysconfig.get_paths()["purelib"])
    target = site_packages / "torchvision"
    was_there = is_stand_in(target)
    try:
        if was_there:
            shutil.rmtree(target)
        probed = probe()
        if probed.returncode == 0:
            gone = "; the stand-in is removed" if was_there else ""
            print(f"torchvision: {probed.stdout.strip()} works, left as it is{gone}")
            return
        reason = (probed.stderr.strip().splitlines() or ["no reason given"])[-1]
        for folder in [str(site_packages), *search_path()]:
            version = installed_in(folder)
            if version is not None:
                sys.exit(
                    f"torchvision: {version} in {folder} doesn't work with this torch ({reason}). "
                    "Install the one that was built for your torch, or uninstall it, and run this "
                    "again"
                )
        # What is left of one that was uninstalled in part.
        if target.exists():
            shutil.rmtree(target)
        copy_stand_in(target)
    except OSError as error:
        sys.exit(f"torchvision: {site_packages} can't be written to: {error}")
    done = "is in" if was_there else "is put into"
    print(f"torchvision: a stand-in for AllenNLP's imports {done} {site_packages} ({reason})")
