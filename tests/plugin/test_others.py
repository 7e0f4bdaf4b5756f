"""Models that aren't ours don't notice this package: the same commands with and without it."""

import json
import os
import re
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("others.py")
# Times, and what takes one.
OF_ONE_RUN = re.compile(r"duration|memory|^\d{4}-\d\d-\d\d ")


def content(name: str, file: IO[bytes]) -> Any:
    """What of a file is to be the same."""
    if name.endswith("namespaces.txt"):
        # AllenNLP writes it in any order.
        return sorted(file.read().split())
    if name.endswith((".th", ".pt")):
        with suppress(OSError, RuntimeError):
            return _plain(torch.load(file, weights_only=False))
        # Half of a file, from a full disk.
        file.seek(0)
    if name.endswith(".tar.gz"):
        with tarfile.open(fileobj=file) as archive:
            files = ((member.name, archive.extractfile(member)) for member in archive)
            return [(n, content(n, member)) for n, member in files if member is not None]
    if name.endswith(".json"):
        return _plain(json.load(file))
    text = file.read()
    if name.endswith(".stdout"):
        return [line for line in text.decode().splitlines() if not OF_ONE_RUN.search(line)]
    if name.endswith((".log", ".stderr")):
        # Calls go by way of this package's wrappers, and times differ.
        return text.count(b"Traceback"), text.count(b"Uncaught exception")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not OF_ONE_RUN.search(str(k))}
    return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value


@pytest.mark.slow
def test_commands(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("allennlp_models")
    folders = [tmp_path_factory.mktemp(name) for name in ("with", "without")]
    # The command is known by its file's name.
    command = tmp_path_factory.mktemp("bin") / "allennlp"
    command.write_bytes(SCRIPT.read_bytes())
    root = str(SCRIPT.parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "PYTHONUTF8": "1"}
    processes = [
        subprocess.Popen([sys.executable, command, folder, name], env=environment, cwd=folder)
        for name, folder in zip(("with", "without"), folders)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    found = []
    for folder in folders:
        found.append({})
        for path in filter(Path.is_file, folder.rglob("*")):
            name = str(path.relative_to(folder))
            with open(path, "rb") as file:
                found[-1][name] = content(name, file)
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        assert found[0][name] == expected, name
    # And they ended as they should.
    codes = {path.stem: int(path.read_text()) for path in folders[1].glob("*.code")}
    fine = {"train", "recover", "evaluate", "predict", "classify", "classified", "classes"}
    assert {name for name, code in codes.items() if code == 0} == fine
    assert codes["interrupted"] == 130
    assert (folders[1] / "interrupted_run" / "model.tar.gz").is_file()
    # As torch says of a file that it can't write to its end.
    for name, expected in ("nan", "nan loss"), ("full", "File too large|enforce fail"):
        assert re.search(expected, (folders[1] / f"{name}.error").read_text())
