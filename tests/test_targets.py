"""What can't be written is found out before the work, and told in one message."""

import sys

import pytest
from allennlp.commands import main

from transformer_elmo.commands import cli
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.plugin.compat.shown_errors import message_of

# Nobody, root included, can make a file or a folder in the first.
TARGETS = ["/proc/{}", "a-file/{}", "no-folder/{}"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The message that a command ends with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    (tmp_path / "text.txt").write_text("the cat\n")
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["allennlp", *map(str, arguments)])
        with pytest.raises((Exception, SystemExit)) as error:
            main()
        if isinstance(error.value, SystemExit):
            return str(error.value.code)
        return message_of(error.value)

    return run


def no_work(*_, **__):
    raise AssertionError("The work began.")


@pytest.mark.parametrize("target", TARGETS)
def test_evaluate_and_predict(run, lm_archive, tmp_path, target):
    text = tmp_path / "text.txt"
    text.write_text("the cat\n")
    for command, option in (
        ("evaluate", "--output-file"),
        ("evaluate", "--predictions-output-file"),
        ("predict", "--output-file"),
    ):
        message = run(command, lm_archive, text, option, target.format("out.json"))
        assert message is not None and "\n" not in message and "out.json" in message


@pytest.mark.parametrize("target", TARGETS)
def test_embed_and_export(run, lm_archive, monkeypatch, capsys, target):
    monkeypatch.setattr(TransformerElmo, "open", no_work)
    message = run("embed", lm_archive, "text.txt", target.format("out.npy"), "--top")
    assert "out.npy" in message and "\n" not in message
    if "no-folder" not in target:
        assert cli.main(["export", str(lm_archive), target.format("out")]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "can't be written" in error


@pytest.mark.parametrize("recover", [[], ["--recover"]])
@pytest.mark.parametrize("target", TARGETS[:2])
def test_train(run, target, recover, tmp_path):
    (tmp_path / "config.json").write_text('{"model": {}, "trainer": {}}')
    message = run("train", "config.json", "-s", target.format("run"), *recover)
    assert message is not None and "\n" not in message and "run" in message
