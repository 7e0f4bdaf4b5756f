"""The stand-in for torchvision: what it answers, and when its installer puts it where."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from transformer_elmo import torchvision_stand_in
from transformer_elmo.errors import ConfigurationError

WORKING = {
    "torchvision/__init__.py": "from . import ops\n__version__ = '9.9'\n",
    "torchvision/io.py": "",
    "torchvision/ops/__init__.py": "def nms(*arguments): pass\n",
    "torchvision/ops/boxes.py": "",
}
BROKEN = {
    "torchvision/__init__.py": "raise RuntimeError('operator torchvision::nms does not exist')\n"
}
METADATA = {"torchvision-0.1.dist-info/METADATA": "Name: torchvision\nVersion: 0.1\n"}


def run_python(code: str, *path: Path) -> "subprocess.CompletedProcess[str]":
    start = f"import sys; sys.path[:0] = {[str(folder) for folder in path]}\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-in")
    put(folder, {"torchvision/__init__.py": torchvision_stand_in.STAND_IN})
    return folder


def test_imports_of_allennlp_work(stand_in):
    """And pickle looks through all modules."""
    done = run_python(
        "import torchvision, torchvision.ops.boxes as boxes, pickle, __main__\n"
        "def function(): pass\n"
        "function.__module__ = None\n"
        "print(torchvision.STAND_IN, hasattr(torchvision, 'io'), hasattr(boxes, '__path__'))\n"
        "print(pickle.loads(pickle.dumps(function)) is function)",
        stand_in,
    )
    assert done.stdout.split() == ["True", "False", "False", "True"], done.stderr


def test_use_is_told_in_one_line(stand_in):
    uses = (
        "torchvision.io.read_image('x.png')",
        "import torchvision.models",
        "from torchvision import transforms",
        "from torchvision.ops import nms",
        "torchvision.ops.boxes.nms()",
    )
    lines = "".join(
        f"try: {use}\nexcept Exception as error: print(str(error).replace(chr(10), '|'))\n"
        for use in uses
    )
    said = run_python("import torchvision\n" + lines, stand_in).stdout.splitlines()
    assert len(said) == len(uses)
    for line in said:
        assert "pip install torchvision" in line or "cannot import name 'nms'" in line, line


@pytest.fixture
def installer(monkeypatch, tmp_path):
    """The installer, with a folder of the test's as this Python's site-packages."""
    site_packages = tmp_path / "site-packages"
    system = tmp_path / "system"
    site_packages.mkdir()
    system.mkdir()

    def probe():
        # torch takes seconds to import and isn't the question here.
        code = torchvision_stand_in.PROBE.replace("import torch, ", "import ").replace(
            "torch.zeros(1, 4), torch.zeros(1), 0.5", ""
        )
        isolated = (
            "sys.path[:] = [folder for folder in sys.path if 'site-packages' not in folder]\n"
        )
        return run_python(isolated + f"sys.path[:0] = {[str(site_packages), str(system)]}\n" + code)

    monkeypatch.setattr(torchvision_stand_in, "probe", probe)

    def run():
        return torchvision_stand_in.install(site_packages / "torchvision", [str(system)])

    return SimpleNamespace(run=run, site_packages=site_packages, system=system)


def put(folder: Path, files) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def is_stand_in(installer) -> bool:
    return torchvision_stand_in.is_stand_in(installer.site_packages / "torchvision")


def test_installed_where_there_is_none_and_again(installer):
    # Of a package that was uninstalled in part.
    put(installer.site_packages, {"torchvision/old.py": ""})
    for said in ("is put into", "is in"):
        assert f"stand-in for AllenNLP's imports {said}" in installer.run()
        assert is_stand_in(installer)
    found = installer.site_packages.rglob("*")
    assert sorted(path.name for path in found) == ["__init__.py", "torchvision"]


@pytest.mark.parametrize("place", ["site_packages", "system"])
def test_working_one_is_left_alone(installer, place):
    """And a stand-in before it goes."""
    if place == "system":
        installer.run()
    put(getattr(installer, place), WORKING)
    said = installer.run()
    assert "9.9" in said and ("the stand-in is removed" in said) == (place == "system")
    file = getattr(installer, place) / "torchvision/__init__.py"
    assert file.read_text() == WORKING["torchvision/__init__.py"]
    assert not is_stand_in(installer)


@pytest.mark.parametrize("place", ["site_packages", "system"])
def test_broken_one_is_kept_and_told(installer, place):
    folder = getattr(installer, place)
    put(folder, {**BROKEN, **METADATA})
    with pytest.raises(ConfigurationError) as error:
        installer.run()
    assert f"0.1 in {folder} doesn't work" in str(error.value)
    assert "nms does not exist" in str(error.value)
    assert (folder / "torchvision/__init__.py").read_text() == BROKEN["torchvision/__init__.py"]
    assert not is_stand_in(installer)


def test_folder_that_may_not_be_written_to(installer):
    installer.site_packages.rmdir()
    installer.site_packages.write_text("no folder")
    with pytest.raises(ConfigurationError, match=r"site-packages/torchvision can't be written"):
        installer.run()
