"""The stand-in for torchvision: what it answers, and when its installer puts it where."""

import subprocess
import sys

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
    "torchvision/__init__.py": "raise RuntimeError('operator torchvision::nms does not exist')\n",
    "torchvision-0.1.dist-info/METADATA": "Name: torchvision\nVersion: 0.1\n",
}
PLACES = pytest.mark.parametrize("place", ["site-packages", "system"])


def put(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def run_python(code, *path):
    start = f"import sys; sys.path[:0] = {list(map(str, path))}\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def stand_in(tmp_path):
    put(tmp_path, {"torchvision/__init__.py": torchvision_stand_in.STAND_IN})
    return tmp_path


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


@pytest.mark.parametrize(
    "use",
    [
        "torchvision.io.read_image('x.png')",
        "import torchvision.models",
        "torchvision.ops.boxes.nms()",
    ],
)
def test_use_is_told_in_one_line(stand_in, use):
    done = run_python(f"import torchvision, torchvision.ops.boxes\n{use}", stand_in)
    assert "pip install torchvision" in done.stderr.splitlines()[-1]


@pytest.fixture
def install(monkeypatch, tmp_path):
    """The installer, with `site-packages` as this Python's, and `system` behind it."""
    paths = [tmp_path / "site-packages", tmp_path / "system"]
    for path in paths:
        path.mkdir()
    # torch takes seconds to import and isn't the question here.
    code = torchvision_stand_in.PROBE.replace("import torch, ", "import ").replace(
        "torch.zeros(1, 4), torch.zeros(1), 0.5", ""
    )
    isolated = "sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
    isolated += f"sys.path[:0] = {list(map(str, paths))}\n"
    monkeypatch.setattr(torchvision_stand_in, "probe", lambda: run_python(isolated + code))
    return lambda: torchvision_stand_in.install(paths[0] / "torchvision", [str(paths[1])])


def test_installed_where_there_is_none_and_again(install, tmp_path):
    # Of a package that was uninstalled in part.
    put(tmp_path / "site-packages", {"torchvision/old.py": ""})
    for said in ("is put into", "is in"):
        assert f"stand-in for AllenNLP's imports {said}" in install()
        (found,) = (tmp_path / "site-packages" / "torchvision").iterdir()
        assert found.read_text() == torchvision_stand_in.STAND_IN


@PLACES
def test_working_one_is_left_alone(install, tmp_path, place):
    """And a stand-in before it goes."""
    if place == "system":
        install()
    put(tmp_path / place, WORKING)
    said = install()
    assert "9.9" in said and ("the stand-in is removed" in said) == (place == "system")
    (left,) = tmp_path.glob("*/torchvision/__init__.py")
    assert left.read_text() == WORKING["torchvision/__init__.py"]


@PLACES
def test_broken_one_is_kept_and_told(install, tmp_path, place):
    put(tmp_path / place, BROKEN)
    message = f"0.1 in {tmp_path / place} doesn't work.*nms does not exist"
    with pytest.raises(ConfigurationError, match=message):
        install()
    (left,) = tmp_path.glob("*/torchvision/__init__.py")
    assert left.read_text() == BROKEN["torchvision/__init__.py"]
