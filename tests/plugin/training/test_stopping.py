import logging
import os
import shlex
import signal
import sys

import pytest
import torch
from allennlp.training.callbacks import TrainerCallback

from tests.plugin.tiny_run import forked, make_trainer, write_corpus
from transformer_elmo.plugin.training import stopping
from transformer_elmo.plugin.training.stopping import RunStopped, command_to_go_on, stopper


class Signal(TrainerCallback):
    """Sends its own process a signal at one batch."""

    def __init__(self, serialization_dir, number, epoch, batch, training):
        super().__init__(serialization_dir)
        self.number, self.at = number, (epoch, batch, training)

    def on_batch(self, *args, is_training=True, **kwargs):
        if (*args[4:6], is_training) == self.at:
            os.kill(os.getpid(), self.number)


def train(corpus, directory, signals, random_seed):
    logging.basicConfig(filename=directory.parent / "log", level="INFO", force=True)
    sys.argv = ["allennlp", "train", "my config.json", "-s", str(directory), "--force"]
    with stopper.listening():
        trainer = make_trainer(corpus, directory)
        trainer._callbacks[0:0] = [Signal(str(directory), *signals)]
        torch.manual_seed(random_seed)
        metrics = trainer.train()
    weights = trainer.model.state_dict()
    torch.save({"weights": weights, "validation": metrics["validation_loss"]}, directory / "result")


NEVER = (signal.SIGTERM, -1, -1, True)


def run(*arguments):
    return forked(train, *arguments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    corpus = write_corpus(folder / "corpus")
    assert run(corpus, folder / "out", NEVER, 1) == 0
    return corpus, torch.load(folder / "out" / "result")


# Between checkpoints, at an epoch's last step, and in validation.
@pytest.mark.parametrize(
    "number, epoch, batch, training",
    [
        (signal.SIGTERM, 0, 2, True),
        (signal.SIGINT, 0, 20, True),
        (signal.SIGTERM, 1, 3, False),
        (signal.SIGTERM, 2, 20, False),
    ],
)
def test_the_run_goes_on_where_it_was_stopped(whole, tmp_path, number, epoch, batch, training):
    corpus, expected = whole
    directory = tmp_path / "out"
    assert run(corpus, directory, (number, epoch, batch, training), 1) == 128 + number
    steps, name = batch if training else 20, signal.Signals(number).name
    log = (tmp_path / "log").read_text().splitlines()
    (line,) = [line for line in log if "Stopped by" in line]
    assert f"Stopped by {name} after {steps} steps of epoch {epoch}." in line
    assert line.endswith(f"allennlp train 'my config.json' -s {directory} --recover")
    assert (directory / f"model_state_e{epoch}_b{steps}.th").exists()
    # It must not depend on the state that its process begins with.
    assert run(corpus, directory, NEVER, 7) == 0
    found = torch.load(directory / "result")
    assert found["validation"] == expected["validation"]
    for key, weight in expected["weights"].items():
        assert torch.equal(weight, found["weights"][key]), key


def test_without_a_checkpointer_it_stops_all_the_same(whole, tmp_path, caplog):
    trainer = make_trainer(whole[0], tmp_path / "out")
    trainer._checkpointer = None
    trainer._callbacks.insert(0, Signal("", signal.SIGTERM, 0, 2, True))
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
    assert shlex.split(command_to_go_on()) == [
        "allennlp",
        *[argument for argument in given if argument != "-f"],
        "--recover",
    ]
    monkeypatch.setattr(sys, "argv", ["script.py"])
    assert command_to_go_on("out") == "allennlp train out/config.json -s out --recover"
