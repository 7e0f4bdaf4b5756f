"""
A run that adapts a model and is killed goes on to the bits of one that isn't, without the archive
and the words that it began with.
"""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch._dynamo  # Once, and not in each process.
from allennlp.commands.train import train_model_from_file
from allennlp.training.callbacks import TrainerCallback

from tests.plugin.test_adaptation import CONFIG, work  # noqa: F401
from tests.plugin.tiny_run import Signal, forked, weights_are_the_same
from transformer_elmo import ConfigurationError, TransformerElmo


@TrainerCallback.register("kill_at", exist_ok=True)
class KillAt(Signal):
    """
    Kills the process at a step that isn't in the config: all runs have the same one.
    """

    at = -1

    def __init__(self, serialization_dir):
        super().__init__(serialization_dir, at=self.at)


def train(folder, kill_at, recover, seed):
    KillAt.at = kill_at
    changes = {
        "validation_data_path": "new.txt",
        "data_loader.max_tokens": 60,
        "trainer.num_epochs": 3,
        "trainer.checkpointer.save_every_num_batches": 2,
        "trainer.callbacks": [{"type": "resume_data"}, {"type": "kill_at"}],
    }
    # A run that goes on must not depend on what its process begins with.
    torch.manual_seed(seed)
    train_model_from_file(str(CONFIG), folder, json.dumps(changes), recover=recover)


def test_the_same_bits(work, capfd):  # noqa: F811
    assert forked(train, "whole", -1, False, 0) == 0
    assert forked(train, "out", 3, False, 0) == -signal.SIGKILL
    assert list(Path("out").glob("model_state_*.th")) and not Path("out/model.tar.gz").exists()
    words = Path("out/vocabulary/tokens.txt").read_text()
    shutil.copy("out/config.json", "config.json")
    os.remove("lm.tar.gz")
    # In the first epoch, and in the last one.
    assert forked(train, "out", 8, True, 1) == -signal.SIGKILL, capfd.readouterr().err[-2000:]
    assert forked(train, "out", -1, True, 2) == 0, capfd.readouterr().err[-2000:]
    assert Path("out/vocabulary/tokens.txt").read_text() == words
    assert Path("out/config.json").read_text() == Path("config.json").read_text()
    for name in ("best.th", "model_state_e3_b0.th"):
        weights_are_the_same(torch.load(f"whole/{name}"), torch.load(f"out/{name}"))
    elmo = TransformerElmo.open("out/model.tar.gz")
    assert elmo.perplexity("new.txt") == TransformerElmo.open("whole").perplexity("new.txt")


def test_without_a_checkpoint_it_needs_the_archive(work, capfd):  # noqa: F811
    assert forked(train, "out", 1, False, 0) == -signal.SIGKILL
    assert not list(Path("out").glob("model_state_*.th"))
    # Weights alone are none to go on with.
    Path("out/best.th").write_bytes(b"")
    os.remove("lm.tar.gz")
    with pytest.raises(ConfigurationError, match=r"There is no archive 'lm\.tar\.gz'"):
        train("out", -1, True, 1)
