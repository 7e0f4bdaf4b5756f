"""The stand-in for torchvision: what it answers, and when `install.py` puts it where."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

STAND_IN = Path(__file__).resolve().parents[2] / "scripts" / "torchvision_stand_in"

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
        [sys.executable, "-c", start + code], capture_output=True, text=True, timeout=60
    )


def test_imports_of_allennlp_work():
    done = run_python(
        "import torchvision, torchvision.ops.boxes as box_ops\n"
        "print(torchvision.STAND_IN, hasattr(torchvision, 'io'), hasattr(box_ops, '__path__'))",
        STAND_IN,
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
def test_use_is_told_in_one_line(use):
    done = run_python(use, STAND_IN)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "stand-in" in last or "cannot import name 'nms'" in last
    if "cannot import" not in last:
        assert "pip install torchvision" in last


def test_pickle_looks_past_it():
    done = run_python(
        "import torchvision, pickle\n"
        "def function(): pass\n"
        "function.__module__ = None\n"
        "import __main__\n"
        "print(pickle.loads(pickle.dumps(function)) is function)",
        STAND_IN,
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.fixture
def installer(monkeypatch, tmp_path):
    """`install.py` as a module, with a folder of the test's as this Python's site-packages."""
    spec = importlib.util.spec_from_file_location("stand_in_installer", STAND_IN / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    site_packages = tmp_path / "site-packages"
    system = tmp_path / "system"
    site_packages.mkdir()
    system.mkdir()
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"purelib": str(site_packages)})

    def probe():
        # torch takes seconds to import and isn't the question here.
        code = module.PROBE.replace("import torch, ", "import ").replace(
            "torch.zeros(1, 4), torch.zeros(1), 0.5", ""
        )
        isolated = (
            "sys.path[:] = [folder for folder in sys.path if 'site-packages' not in folder]\n"
        )
        return run_python(isolated + f"sys.path[:0] = {[str(site_packages), str(system)]}\n" + code)

    monkeypatch.setattr(module, "probe", probe)
    monkeypatch.setattr(module, "search_path", lambda: [str(site_packages), str(system)])
    module.site_packages, module.system = site_packages, system
    return module


def put(folder: Path, files) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def is_stand_in(installer) -> bool:
    return installer.is_stand_in(installer.site_packages / "torchvision")


def test_installed_where_there_is_none_and_again(installer, capsys):
    for _ in range(2):
        installer.main()
        assert is_stand_in(installer)
        assert "stand-in" in capsys.readouterr().out
    assert [path.name for path in installer.site_packages.iterdir()] == ["torchvision"]


@pytest.mark.parametrize("place", ["site_packages", "system"])
def test_working_one_is_left_alone(installer, place, capsys):
    folder = getattr(installer, place)
    put(folder, WORKING)
    installer.main()
    assert (folder / "torchvision/__init__.py").read_text() == WORKING["torchvision/__init__.py"]
    assert not is_stand_in(installer)
    assert "9.9" in capsys.readouterr().out


def test_stand_in_goes_when_another_works(installer):
    installer.main()
    put(installer.system, WORKING)
    installer.main()
    assert not (installer.site_packages / "torchvision").exists()


def test_broken_one_elsewhere_is_kept_and_told(installer):
    put(installer.system, {**BROKEN, **METADATA})
    with pytest.raises(SystemExit) as error:
        installer.main()
    assert "torchvision: 0.1 in" in str(error.value)
    assert "nms does not exist" in str(error.value)
    assert (installer.system / "torchvision/__init__.py").exists()
    assert not (installer.site_packages / "torchvision").exists()


def test_folder_that_no_package_owns_is_replaced(installer):
    put(installer.site_packages, {"torchvision/__init__.py": "", "torchvision/old.py": ""})
    installer.main()
    assert is_stand_in(installer)
    assert not (installer.site_packages / "torchvision/old.py").exists()


def test_broken_one_of_pip_is_uninstalled(installer, monkeypatch):
    put(installer.site_packages, {**BROKEN, **METADATA})
    commands = []
    monkeypatch.setattr(
        installer.subprocess, "run", lambda command, **settings: commands.append(command)
    )
    broken = subprocess.CompletedProcess([], 1, "", "RuntimeError: no nms\n")
    monkeypatch.setattr(installer, "probe", lambda: broken)
    installer.main()
    assert commands[0][1:4] == ["-m", "pip", "uninstall"]
    assert is_stand_in(installer)
