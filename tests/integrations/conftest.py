"""Where AllenNLP isn't installed: `pytest --confcutdir tests/integrations tests/integrations`."""

import os
import signal
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from tests.integrations.small_model import CONFIG, OF_IDS, save_small_model
from transformer_elmo.commands.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Path]:
    """Folders, with a graph where ONNX's packages are: of characters and of words' numbers."""
    onnx = ["--onnx"] * all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    home, folders = tmp_path_factory.mktemp("models"), {}
    for name, config in (("characters", CONFIG), ("ids", OF_IDS)):
        source, folders[name] = save_small_model(home / f"{name}.0", config=config), home / name
        assert main(["export", str(source), str(folders[name]), *onnx]) == 0
    return folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "folder")


@pytest.fixture(scope="session")
def in_new_process() -> Callable[..., str]:
    """From code and a folder to its last line of output, by the core: AllenNLP takes long."""

    def run(code: str, folder: Path, allennlp: bool = False, **variables: Any) -> str:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        start = "import json, sys\n" + "sys.modules['allennlp'] = None\n" * (not allennlp)
        command = [sys.executable, "-W", "ignore", "-c", start + textwrap.dedent(code)]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}
        with subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                printed, errors = process.communicate(timeout=180)
            except subprocess.TimeoutExpired:
                # Its own processes as well, which hold the pipes.
                os.killpg(process.pid, signal.SIGKILL)
                raise
        assert process.returncode == 0, errors
        return printed.splitlines()[-1]

    return run
