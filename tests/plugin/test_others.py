"""Models that aren't ours don't notice this package: the same commands with and without it."""

import json
import os
import re
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("others.py")
# Times, and what takes one.
OF_ONE_RUN = re.compile(r"duration|memory|^\d{4}-\d\d-\d\d ")


def content(name: str, written: bytes) -> Any:
    """What of a file is to be the same."""
    if name.endswith("namespaces.txt"):
        # AllenNLP writes it in any order.
        return sorted(written.split())
    if name.endswith((".th", ".pt")):
        return _plain(torch.load(BytesIO(written), weights_only=False))
    if name.endswith(".tar.gz"):
        with tarfile.open(fileobj=BytesIO(written)) as archive:
            files: Any = ((member.name, archive.extractfile(member)) for member in archive)
            return [(name, content(name, file.read())) for name, file in files if file is not None]
    if name.endswith(".json"):
        return _plain(json.loads(written))
    if name.endswith(".stdout"):
        return [line for line in written.decode().splitlines() if not OF_ONE_RUN.search(line)]
    if name.endswith((".log", ".stderr")):
        # Calls go by way of this package's wrappers, and times differ.
        return written.count(b"Traceback"), written.count(b"Uncaught exception")
    return written


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
        paths = filter(Path.is_file, folder.rglob("*"))
        found.append({str(p.relative_to(folder)): content(p.name, p.read_bytes()) for p in paths})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        assert found[0][name] == expected, name
    # And they ended as they should.
    codes = {path.stem: int(path.read_text()) for path in folders[1].glob("*.code")}
    fine = {"train", "recover", "evaluate", "predict"}
    assert {name for name, code in codes.items() if code == 0} == fine
    assert codes["interrupted"] == 130
    assert (folders[1] / "interrupted_run" / "model.tar.gz").is_file()
    assert "nan loss" in (folders[1] / "nan.error").read_text()
