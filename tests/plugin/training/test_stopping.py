import os
import shlex
import signal
import sys

import pytest

from tests.plugin.tiny_run import Signal, forked, make_trainer, write_corpus
from transformer_elmo.plugin.training import stopping
from transformer_elmo.plugin.training.stopping import RunStopped, command_to_go_on, stopper


def test_without_a_checkpointer_it_stops_all_the_same(tmp_path, caplog):
    corpus, others = write_corpus(tmp_path / "corpus"), [Signal("", signal.SIGTERM, 2)]
    trainer = make_trainer(corpus, tmp_path / "out", others=others)
    trainer._checkpointer = None
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunStopped) as stopped, stopper.listening():
        trainer.train()
    assert stopped.value.code == 143 and "no checkpointer" in caplog.text
    assert trainer._batches_in_epoch_completed == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_where_there_is_no_step_to_finish_it_stops_at_once(capfd):
    with pytest.raises(RunStopped) as stopped, stopper.listening():
        os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.code == 130
    # What trains in this process later doesn't stop for it.
    assert stopper.received is None
    assert "Go on with: allennlp train" in capfd.readouterr().err


@pytest.mark.parametrize("seconds, ends", [(0.0, True), (60.0, False)])
def test_the_second_signal_ends_it_if_it_is_meant(monkeypatch, seconds, ends):
    # `timeout` sends a signal twice.
    monkeypatch.setattr(stopping, "SECONDS_OF_ONE_NOTICE", seconds)

    def target():
        with stopper.listening(), stopper.steps():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0 if stopper.agreed() == signal.SIGTERM else 1)

    assert forked(target) == (-signal.SIGTERM if ends else 0)


def test_the_command_to_go_on(monkeypatch):
    given = ["train", "c.json", "-s", "out", "-f", "-o", '{"a": 1}', "--include-package", "p"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/allennlp", *given])
    kept = [argument for argument in given if argument != "-f"]
    assert shlex.split(command_to_go_on()) == ["allennlp", *kept, "--recover"]
    monkeypatch.setattr(sys, "argv", ["script.py"])
    assert command_to_go_on("out") == "allennlp train out/config.json -s out --recover"
