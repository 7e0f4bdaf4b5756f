"""Bad input on the command line: one message, without the calls that led to it."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import requests
from torch.multiprocessing import ProcessRaisedException

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.compat import shown_errors as errors

ROOT = Path(__file__).resolve().parents[3]
MESSAGE = "transformer_elmo.errors.ConfigurationError: "


@pytest.fixture
def as_main(monkeypatch):
    """Has the module in front be that of a command, and returns the hook that is installed."""
    monkeypatch.delenv("ALLENNLP_DEBUG", raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)

    def install(file=None, spec=None):
        main: Any = ModuleType("__main__")
        main.__file__ = file
        main.__spec__ = spec and SimpleNamespace(name=spec)
        monkeypatch.setitem(sys.modules, "__main__", main)
        errors.install()
        return sys.excepthook

    return install


def shown(hook, error, capsys):
    try:
        raise error
    except type(error):
        hook(*sys.exc_info())
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [{"file": "/usr/bin/allennlp"}, {"file": "x.py", "spec": "allennlp.__main__"}]
)
def test_bad_input_is_told_alone(as_main, command, capsys, monkeypatch):
    hook = as_main(**command)
    assert shown(hook, ConfigurationError("no such key"), capsys) == MESSAGE + "no such key\n"
    for error in (
        FileNotFoundError("no such file"),
        # An address in a config, for a machine that is offline.
        requests.ConnectionError("no such host"),
        # What may be a fault of the program is shown with all its calls.
        KeyError("type"),
    ):
        assert "Traceback" in shown(hook, error, capsys)
        with pytest.raises(type(error)), errors.errors_are_ours():
            raise error
        assert ("Traceback" in shown(hook, error, capsys)) == isinstance(error, KeyError)
    monkeypatch.setenv("ALLENNLP_DEBUG", "1")
    assert "Traceback" in shown(hook, ConfigurationError("no such key"), capsys)


def test_where_allennlp_logs_errors(as_main, caplog, monkeypatch):
    """As it does in training: into its log, and so to the console."""
    logged = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: logged.append(error))
    hook = as_main(spec="allennlp.__main__")
    assert as_main(spec="allennlp.__main__") is hook
    hook(ConfigurationError, ConfigurationError("no such key"), None)
    assert [record.getMessage() for record in caplog.records] == [MESSAGE + "no such key"]
    assert caplog.records[0].exc_info is None and not logged
    hook(KeyError, KeyError("type"), None)
    assert len(logged) == len(caplog.records) == 1


def test_bad_input_of_one_of_several_processes_is_told_alone(as_main, capsys):
    hook = as_main(spec="allennlp.__main__")

    def of_a_process(last):
        calls = "\n\n-- Process 1 terminated with the following error:\nTraceback (...)\n  call()\n"
        return ProcessRaisedException(calls + last, 1, 17)

    told, other = map(of_a_process, (MESSAGE + "line 51\nis not UTF-8\n", "KeyError: 'type'\n"))
    for error in (told, other):
        with pytest.raises(ProcessRaisedException), errors.errors_are_ours():
            raise error
    assert shown(hook, told, capsys) == MESSAGE + "line 51\nis not UTF-8\n"
    assert "Traceback" in shown(hook, other, capsys)


@pytest.mark.parametrize(
    "command", [{"file": "/home/me/train.py"}, {}, {"file": "x", "spec": "pytest.__main__"}]
)
def test_other_programs_are_left_alone(as_main, command):
    assert as_main(**command) is sys.__excepthook__


@pytest.mark.slow
def test_on_the_command_line(tmp_path, monkeypatch):
    """Once training has set up its log."""
    monkeypatch.delenv("ALLENNLP_DEBUG", raising=False)
    (tmp_path / "x").write_text("the###D dog###N\n")
    paths = {"TAGGER_TRAIN_PATH": "x", "TAGGER_VALIDATION_PATH": "x", "PYTHONPATH": str(ROOT)}
    config = ROOT / "training_config" / "pos_tagger.jsonnet"
    command = f"-m allennlp train --include-package transformer_elmo {config} -s out"
    done = subprocess.run(
        [sys.executable, *command.split(" ")],
        cwd=tmp_path,
        env={**os.environ, **paths, "BIDIRECTIONAL_LM_ARCHIVE_PATH": "nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if MESSAGE in line]
    assert "There is no archive 'nowhere" in message
