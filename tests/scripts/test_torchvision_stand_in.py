"""The stand-in for torchvision: what it answers, and when its installer puts it where."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from transformer_elmo import torchvision_stand_in
from transformer_elmo.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]

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
    done = run_python(
        "import torchvision, torchvision.ops.boxes as box_ops\n"
        "print(torchvision.STAND_IN, hasattr(torchvision, 'io'), hasattr(box_ops, '__path__'))",
        stand_in,
    )
    assert done.stdout.split() == ["True", "False", "False"], done.stderr


@pytest.mark.parametrize(
    "use",
    [
        "import torchvision; torchvision.io.read_image('x.png')",
        "import torchvision.models",
        "from torchvision import transforms",
        "from torchvision.ops import nms",
        "import torchvision.ops.boxes as boxes; boxes.nms()",
    ],
)
def test_use_is_told_in_one_line(stand_in, use):
    done = run_python(use, stand_in)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "stand-in" in last or "cannot import name 'nms'" in last
    if "cannot import" not in last:
        assert "pip install torchvision" in last


def test_pickle_looks_past_it(stand_in):
    done = run_python(
        "import torchvision, pickle\n"
        "def function(): pass\n"
        "function.__module__ = None\n"
        "import __main__\n"
        "print(pickle.loads(pickle.dumps(function)) is function)",
        stand_in,
    )
    assert done.stdout.strip() == "True", done.stderr


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
    for said in ("is put into", "is in"):
        assert f"stand-in for AllenNLP's imports {said}" in installer.run()
        assert is_stand_in(installer)
    assert [path.name for path in installer.site_packages.iterdir()] == ["torchvision"]


@pytest.mark.parametrize("place", ["site_packages", "system"])
def test_working_one_is_left_alone(installer, place):
    folder = getattr(installer, place)
    put(folder, WORKING)
    assert "9.9" in installer.run()
    assert (folder / "torchvision/__init__.py").read_text() == WORKING["torchvision/__init__.py"]
    assert not is_stand_in(installer)


def test_stand_in_goes_when_another_works(installer):
    installer.run()
    put(installer.system, WORKING)
    assert "the stand-in is removed" in installer.run()
    assert not (installer.site_packages / "torchvision").exists()


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


def test_folder_that_no_package_owns_is_replaced(installer):
    put(installer.site_packages, {"torchvision/__init__.py": "", "torchvision/old.py": ""})
    installer.run()
    assert is_stand_in(installer)
    assert not (installer.site_packages / "torchvision/old.py").exists()


def test_folder_that_may_not_be_written_to(installer):
    installer.site_packages.rmdir()
    installer.site_packages.write_text("no folder")
    with pytest.raises(ConfigurationError, match=r"site-packages/torchvision can't be written"):
        installer.run()


IMPORTED = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import transformer_elmo, allennlp
print([str(w.message) for w in caught if "AllenNLP is installed" in str(w.message)])
print(transformer_elmo.TransformerElmo.__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_without_it_the_package_works_and_says_what_to_do(tmp_path, broken):
    if broken:
        put(tmp_path, BROKEN)
        done = run_python(IMPORTED, tmp_path, ROOT)
    else:
        done = run_python("sys.modules['torchvision'] = None\n" + IMPORTED, ROOT)
    said, name = done.stdout.splitlines()
    assert "Try python -m transformer_elmo.torchvision_stand_in." in said, done.stderr
    assert "torchvision::nms does not exist" in said or not broken
    assert name == "TransformerElmo"
