"""Models that aren't ours don't notice this package: the same commands with and without it."""

import json
import os
import re
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

pytest.importorskip("allennlp_models")

SCRIPT = Path(__file__).with_name("others.py")
ROOT = SCRIPT.parents[2]
# Times, and what takes one.
OF_ONE_RUN = re.compile(r"duration|memory|^\d{4}-\d\d-\d\d ")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("with", "without")}
    # The command is known by its file's name.
    command = tmp_path_factory.mktemp("bin") / "allennlp"
    command.write_bytes(SCRIPT.read_bytes())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    processes = [
        subprocess.Popen([sys.executable, command, folder, name], env=environment, cwd=folder)
        for name, folder in folders.items()
    ]
    assert [process.wait() for process in processes] == [0, 0]
    return folders


def content(path: Path) -> Any:
    """What of a file is to be the same."""
    if path.name == "non_padded_namespaces.txt":
        # AllenNLP writes it in any order.
        return sorted(path.read_text().split())
    if path.suffix in (".th", ".pt"):
        with suppress(OSError, RuntimeError):
            return _plain(torch.load(path, weights_only=False))
        # Half of a file, from a full disk.
        return path.read_bytes()
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            return [
                (member.name, _member(archive, member)) for member in archive if not member.isdir()
            ]
    if path.suffix == ".json":
        found = json.loads(path.read_text())
        return {key: value for key, value in found.items() if not OF_ONE_RUN.search(key)}
    if path.suffix == ".stdout":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if not OF_ONE_RUN.search(line)]
    if path.suffix in (".log", ".stderr"):
        text = path.read_text(encoding="utf-8", errors="replace")
        # Calls go by way of this package's wrappers, and times differ.
        return text.count("Traceback"), text.count("Uncaught exception"), _last_line(path, text)
    return path.read_bytes()


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    file = archive.extractfile(member)
    assert file is not None
    if member.name.endswith("namespaces.txt"):
        return sorted(file.read().split())
    if member.name.endswith(".th"):
        return _plain(torch.load(file, weights_only=False))
    return file.read()


def _last_line(path: Path, text: str) -> str:
    failed = path.suffix == ".stderr" and path.with_suffix(".error").exists()
    return (text.splitlines() or [""])[-1] if failed else ""


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not OF_ONE_RUN.search(str(k))}
    return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value


@pytest.mark.slow
def test_everything_is_the_same(folders: Dict[str, Path]) -> None:
    names = {
        name: sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        for name, folder in folders.items()
    }
    assert names["with"] == names["without"]
    for name in names["with"]:
        assert content(folders["with"] / name) == content(folders["without"] / name), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tagger", "classifier"])
def test_commands_end_as_they_should(folders: Dict[str, Path], kind: str) -> None:
    codes = {
        path.stem.removeprefix(f"{kind}_"): int(path.read_text())
        for path in folders["without"].glob(f"{kind}_*.code")
    }
    fine = {"train", "recover", "evaluate", "overridden", "predict"}
    assert {name for name, code in codes.items() if code == 0} == fine
    assert codes["interrupted"] == 130
    assert (folders["without"] / f"{kind}_interrupted_run" / "model.tar.gz").is_file()
    # As torch says of a file that it can't write to its end.
    for name, expected in ("nan", "nan loss"), ("full", "File too large|enforce fail"):
        said = (folders["without"] / f"{kind}_{name}.error").read_text()
        assert re.search(expected, said), said
