"""A web server on localhost for the scripts that download, and a way to run scripts."""

import importlib
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Callable, Dict, Iterator, List, Optional

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


class Mirror:
    """
    Serves `files` (by name), resuming where a client asks for it unless `ranges` is False. The
    first `cut_times` responses stop after `cut_after` bytes of their body; the first `failures`
    ones are a 503.
    """

    def __init__(self) -> None:
        self.files: Dict[str, bytes] = {}
        self.ranges = True
        self.cut_after = 0
        self.cut_times = 0
        self.failures = 0
        self.requested_ranges: List[Optional[str]] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                mirror._answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.requested_ranges.append(asked)
        if self.failures > 0:
            self.failures -= 1
            request.send_error(503)
            return
        content = self.files.get(request.path.lstrip("/"))
        if content is None:
            request.send_error(404)
            return
        start = 0
        if asked and self.ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(content)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        body = content[start:]
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.cut_times > 0:
            self.cut_times -= 1
            body = body[: self.cut_after]
        request.wfile.write(body)

    def stop(self) -> None:
        """Stops serving; the port is closed afterwards."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    serving = Mirror()
    yield serving
    serving.stop()


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of `scripts/benchmark/`; nothing of that folder stays imported."""
    before = {*sys.modules}
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmark"))
    yield importlib.import_module
    for name in {path.stem for path in (SCRIPTS / "benchmark").glob("*.py")} - before:
        sys.modules.pop(name, None)


RunScript = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_script(tmp_path: Path) -> RunScript:
    """Runs a script of `scripts/` in an empty folder, and returns what came of it."""
    # No proxy stands between a script and localhost, and no wait between two tries.
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment.update(FETCH_WAIT="0", FETCH_ATTEMPTS="3")
    for name in ("PYTHON", "BIDIRECTIONAL_LM_TRAIN_PATH"):
        environment.pop(name, None)

    def run(script: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments],
            cwd=tmp_path,
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
        )

    return run


@pytest.fixture
def path_with(tmp_path: Path) -> Callable[..., str]:
    """
    Makes a folder with only the commands named, the programs of this machine or, where a text is
    given, a shell script of that text, and returns it for use as PATH.
    """

    def make(*programs: str, **scripts: str) -> str:
        folder = tmp_path / "commands"
        folder.mkdir()
        for program in programs:
            found = shutil.which(program)
            if found is not None:
                (folder / program).symlink_to(found)
        for name, text in scripts.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return str(folder)

    return make


def variables_set_by(output: str) -> Dict[str, str]:
    """The variables that a shell has after it was given `output` to run."""
    names = [line.split()[1].split("=")[0] for line in output.splitlines()]
    script = output + "".join(f"printf '%s\\n' \"${name}\"\n" for name in names)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


@pytest.fixture
def exported() -> Callable[[str], Dict[str, str]]:
    return variables_set_by
