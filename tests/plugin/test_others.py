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
    for folder in folders.values():
        for path in folder.rglob("*.tar.gz"):
            with suppress(EOFError, tarfile.TarError), tarfile.open(path) as archive:
                archive.extractall(path.with_suffix(".unpacked"), filter="data")
            path.unlink()
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
    if path.suffix == ".json":
        return _plain(json.loads(path.read_text()))
    if path.suffix in (".log", ".stderr"):
        # Calls go by way of this package's wrappers, and times differ.
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        failed = path.suffix == ".stderr" and path.with_suffix(".error").exists()
        return sum("Traceback" in line for line in lines), lines[-1:] if failed else []
    if path.suffix == ".stdout":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if not OF_ONE_RUN.search(line)]
    return path.read_bytes()


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not OF_ONE_RUN.search(str(k))}
    return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value


@pytest.mark.slow
def test_everything_is_the_same(folders: Dict[str, Path]) -> None:
    ours, theirs = (
        {str(path.relative_to(f)): content(path) for path in f.rglob("*") if path.is_file()}
        for f in folders.values()
    )
    assert ours.keys() == theirs.keys()
    assert [name for name, found in ours.items() if found != theirs[name]] == []
    # They end as they should: else there would be little to compare.
    for kind in ("tagger", "classifier"):
        codes = {
            name.removeprefix(f"{kind}_").removesuffix(".code"): int(code)
            for name, code in theirs.items()
            if name.startswith(kind) and name.endswith(".code")
        }
        fine = {"train", "recover", "evaluate", "predict"}
        assert {name for name, code in codes.items() if code == 0} == fine
        assert codes["interrupted"] == 130
        assert f"{kind}_interrupted_run/model.tar.unpacked/config.json" in theirs
        assert b"nan loss" in theirs[f"{kind}_nan.error"]
        # As torch says of a file that it can't write to its end.
        assert re.search(b"File too large|enforce fail", theirs[f"{kind}_full.error"])
