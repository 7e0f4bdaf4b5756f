"""A web server on localhost for the scripts that download, and a way to run scripts."""

import importlib
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


class Mirror(ThreadingHTTPServer):
    """
    Serves `files` (by name), resuming where a client asks for it unless `ranges` is False. The
    first `cut_times` files stop after `cut_after` bytes; the first `failures` answers are a 503.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = {}
        self.ranges = True
        self.cut_after = self.cut_times = self.failures = 0
        self.requested_ranges = []

    def stop(self):
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    server: Mirror

    def log_message(self, *_):
        pass

    def do_GET(self):
        mirror, asked = self.server, self.headers.get("Range")
        mirror.requested_ranges.append(asked)
        content = mirror.files.get(self.path.lstrip("/"))
        if mirror.failures:
            mirror.failures -= 1
            return self.send_error(503)
        if content is None:
            return self.send_error(404)
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and mirror.ranges else 0
        body = content[begin:]
        self.send_response(200 if not begin else 206 if body else 416)
        self.send_header("Content-Length", str(len(body)))
        if begin and body:
            size = len(content)
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.end_headers()
        if mirror.cut_times:
            mirror.cut_times -= 1
            body = body[: mirror.cut_after]
        self.wfile.write(body)


@pytest.fixture
def mirror():
    serving = Mirror()
    threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def script_module():
    """Imports a module of `scripts/`; nothing of it stays imported."""
    before, folders = {*sys.modules}, (SCRIPTS, SCRIPTS / "benchmark")
    with pytest.MonkeyPatch.context() as patch:
        for folder in folders:
            patch.syspath_prepend(str(folder))
        yield importlib.import_module
    for name in {path.stem for folder in folders for path in folder.glob("*.py")} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def run_script(tmp_path):
    """
    Runs a script of `scripts/` in an empty folder, and returns what it prints, which is for a shell
    to run; or, if it fails, what it says, and then there is nothing to run.
    """
    # No proxy stands between a script and localhost, and no wait between two tries.
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment.update(FETCH_WAIT="0", FETCH_ATTEMPTS="3")
    for name in ("PYTHON", "BIDIRECTIONAL_LM_TRAIN_PATH"):
        environment.pop(name, None)

    def run(script, *arguments, status=0, **variables):
        done = subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments],
            cwd=tmp_path,
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == status, done.stderr
        assert not (status and done.stdout)
        return done.stderr if status else done.stdout

    return run


@pytest.fixture
def path_with(tmp_path):
    """
    Makes a folder with only the commands named, the programs of this machine or, where a text is
    given, a shell script of that text, and returns it for use as PATH.
    """
    folder = tmp_path / "commands"

    def make(*programs, **scripts):
        folder.mkdir(exist_ok=True)
        for program in programs:
            if found := shutil.which(program):
                (folder / program).symlink_to(found)
        for name, text in scripts.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return str(folder)

    return make
