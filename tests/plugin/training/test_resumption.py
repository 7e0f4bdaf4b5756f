import json
import math
import random
import signal

import numpy as np
import pytest
import torch
from allennlp.data.data_loaders import SimpleDataLoader
from allennlp.training.callbacks import ShouldValidateCallback
from allennlp.training.moving_average import ExponentialMovingAverage

from tests.plugin.tiny_run import make_trainer, run, weights_are_the_same, write_corpus
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.training import resuming
from transformer_elmo.plugin.training.trainer import _MetricTracker


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A corpus, and what a run leaves that nothing stops: with batches accumulated, and without."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = write_corpus(folder / "corpus")
    assert [run(corpus, folder / str(n), accumulate=n) for n in (1, 3)] == [0, 0]
    return corpus, {n: torch.load(folder / str(n) / "result") for n in (1, 3)}


KILL, TERM, INT = -signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT


@pytest.mark.parametrize(
    "accumulate, ends",
    [
        # Before the first checkpoint, within epochs, and at their ends.
        (1, [(KILL, 3), (KILL, 20), (KILL, 47)]),
        # Between checkpoints, at an epoch's last step, and in validation.
        (1, [(TERM, (0, 2, True)), (INT, (0, 20, True)), (TERM, (2, 20, False))]),
        (3, [(KILL, 6), (KILL, 12), (TERM, (2, 3, False))]),
    ],
)
def test_ended_again_and_again_it_ends_with_the_same_bits(whole, tmp_path, accumulate, ends):
    corpus, expected = whole[0], whole[1][accumulate]
    out, log = tmp_path / "out", tmp_path / "log"
    for code, at in ends:
        number = abs(code) % 128
        assert run(corpus, out, number, at, accumulate=accumulate) == code
        if code != KILL:
            epoch, batch, is_training = at
            steps = batch if is_training else math.ceil(20 / accumulate)
            name = signal.Signals(number).name
            said = f"Stopped by {name} after {steps} steps of epoch {epoch}. Go on with: allennlp"
            assert f"{said} train 'my config.json' -s {out} --recover" in log.read_text()
            assert (out / f"model_state_e{epoch}_b{steps}.th").exists()
    assert run(corpus, out, accumulate=accumulate) == 0
    found = torch.load(out / "result")
    assert found["steps"] == expected["steps"]
    assert found["seen"] == expected["seen"][len(expected["seen"]) - len(found["seen"]) :]
    assert len(found["seen"]) < len(expected["seen"])
    assert found["validation"] == expected["validation"]
    weights_are_the_same(found["weights"], expected["weights"])


def test_killed_before_it_wrote_its_best_weights_it_ends_with_them(corpus, tmp_path):
    # The highest loss is that of the first epoch.
    assert run(corpus, tmp_path / "whole", metric="+loss") == 0
    whole = torch.load(tmp_path / "whole" / "result")
    steps = whole["steps"] // 3 + 1
    assert run(corpus, tmp_path / "killed", at=steps, metric="+loss") == KILL
    best = tmp_path / "killed" / "best.th"
    best.unlink()
    assert run(corpus, tmp_path / "killed", metric="+loss") == 0
    weights_are_the_same(torch.load(tmp_path / "killed" / "result")["weights"], whole["weights"])
    weights_are_the_same(torch.load(best), whole["weights"])


def test_a_moving_average_goes_on_too_and_no_callback_need_be_named(corpus, tmp_path):
    def train():
        trainer = make_trainer(corpus, tmp_path / "out", callback=None)
        trainer._moving_average = ExponentialMovingAverage(
            trainer.model.named_parameters(), decay=0.9
        )
        return trainer, trainer.train(), torch.load(tmp_path / "out" / "best.th")

    whole, metrics, best = train()
    for checkpoint in whole._checkpointer._find_all_checkpoints():
        if checkpoint > (1, 8):
            whole._checkpointer._remove_checkpoint(*checkpoint)
    again, metrics_again, best_again = train()
    assert 0 < len(again.model.seen) < len(whole.model.seen)
    assert again.model.seen == whole.model.seen[-len(again.model.seen) :]
    assert metrics_again["validation_loss"] == metrics["validation_loss"]
    weights_are_the_same(again.model.state_dict(), whole.model.state_dict())
    weights_are_the_same(best_again, best)
    weights_are_the_same(again._moving_average._shadows, whole._moving_average._shadows)


def test_processes_that_are_more_than_before_have_random_numbers_of_their_own():
    cpu = torch.device("cpu")
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(resuming._get_random_state(cpu))

    def drawn(rank):
        resuming._go_on_with(states, rank, cpu)
        return torch.rand(()).item(), np.random.rand(), random.random()

    assert [drawn(rank) for rank in range(6)] == [drawn(rank) for rank in range(6)]
    assert len({drawn(rank)[0] for rank in range(6)}) == 6
    assert drawn(2)[1:] != drawn(0)[1:]


def test_needs_a_loader_that_can_be_told_where_to_go_on(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path / "out")
    trainer.data_loader = SimpleDataLoader([], 1)
    with pytest.raises(ConfigurationError, match="language_modeling"):
        trainer.train()


def test_other_data_is_noticed(corpus, tmp_path):
    make_trainer(corpus, tmp_path / "out", num_epochs=1).train()
    again = make_trainer(corpus, tmp_path / "out", callback=None)
    words = again.model.vocab._index_to_token["tokens"]
    words[3], words[4] = words[4], words[3]
    said = r"vocabulary.* is now 52 words .* and was 52 words"
    with pytest.raises(ConfigurationError, match=said):
        again.train()
    # Of the same size.
    shard = corpus / "1"
    shard.write_text("\n".join(shard.read_text().split("\n")[::-1]))
    with pytest.raises(ConfigurationError, match=r"the corpus's content is now .* and was"):
        make_trainer(corpus, tmp_path / "out").train()


def test_metrics_of_earlier_epochs_stay(corpus, tmp_path):
    """Of four epochs, the first and the third are validated."""
    found = []
    for name, stops in (("whole", [4]), ("parts", [2, 3, 4])):
        for num_epochs in stops:
            trainer = make_trainer(corpus, tmp_path / name, num_epochs=num_epochs)
            trainer._callbacks.insert(0, ShouldValidateCallback("", validation_interval=2))
            metrics = trainer.train()
        assert {"validation_loss", "training_loss"} <= metrics.keys() and metrics["epoch"] == 3
        files = [tmp_path / name / f"metrics_epoch_{epoch}.json" for epoch in range(4)]
        found.append([json.loads(path.read_text()) for path in files])
    for whole, parts in zip(*found):
        differing = {name for name in {*whole, *parts} if whole.get(name) != parts.get(name)}
        assert all("duration" in name or "memory" in name for name in differing)


def test_killed_after_its_last_epoch_it_tells_of_it(corpus, tmp_path):
    """The loss falls, so that patience with "+loss" is at an end after the second epoch."""
    options = {"metric": "+loss", "patience": 1}
    metrics = make_trainer(corpus, tmp_path / "out", **options).train()
    assert metrics["epoch"] == 1 and metrics["best_epoch"] == 0
    again = make_trainer(corpus, tmp_path / "out", **options)
    assert again.train() == metrics and not again.model.seen


def test_no_epoch_is_the_best_by_a_nan():
    tracker = _MetricTracker("-loss", patience=2)
    for loss, best in [(float("nan"), None), (3.0, 1), (float("nan"), 1)]:
        tracker.add_metrics({"loss": loss})
        assert tracker.best_epoch == best
        assert tracker.is_best_so_far() == (loss == 3.0)
    assert not tracker.should_stop_early()
    tracker.add_metrics({"loss": float("nan")})
    assert tracker.should_stop_early()
