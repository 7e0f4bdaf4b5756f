"""The commands, run in this process."""

import io

import pytest

from transformer_elmo.commands.cli import main


@pytest.fixture
def command(capsys, monkeypatch):
    """What a command prints; or, if it fails, what it says, one message of it."""

    def run(*arguments, stdin=None, status=0):
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), "ascii"))
        capsys.readouterr()
        assert main(list(map(str, arguments))) == status
        out, error = capsys.readouterr()
        # Bars end where the message begins.
        messages = [line for line in error.splitlines() if "transformer-elmo" in line]
        assert len(messages) == bool(status) and "Traceback" not in error
        return error if status else out

    return run
