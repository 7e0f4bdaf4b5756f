"""Runs that go on with another number of processes, which divides a step's batches."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from tests.plugin.test_data_loader import make_loader, own_words
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import data_loader
from transformer_elmo.plugin.training import resuming

EPOCHS = 3


def write_corpus(path, generator):
    """Sentences of many lengths, each with a number of its own."""
    count = generator.randint(8, 60)
    path.write_text(
        "".join(f"{'the ' * generator.choice([0, 1, 2, 5, 20])}n{i}\n" for i in range(count))
    )


def train(monkeypatch, path, options, step, begun=None, state=None, done=(0, 0)):
    """
    For each epoch, the sentences of each step from where it goes on, and the states between steps.
    `step`: a pair of processes and accumulation.
    """
    processes, accumulation = step
    monkeypatch.setattr(data_loader, "several_processes", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: processes)
    of_ranks, states = [], []
    for rank in range(processes):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        loader = make_loader(path, **options)
        if begun is not None:
            loader.deal_as(begun)
        if state is not None:
            loader.resume(state, done[0], done[1] * accumulation)
        epochs, states = [], [((0, 0), loader.state_dict())]
        for epoch in range(EPOCHS):
            batches = []
            for batch in loader:
                batches.append(own_words(batch) if batch else None)
                if len(batches) % accumulation == 0:
                    states.append(((epoch, len(batches) // accumulation), loader.state_dict()))
            states.append(((epoch + 1, 0), loader.state_dict()))
            steps = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
            epochs.append([step for step in steps if step[0] is not None])
        of_ranks.append(epochs)
    # As many steps for each process.
    together = [
        [sorted(s for taken in step for batch in taken for s in batch) for step in steps]
        for steps in (list(zip(*ranks, strict=True)) for ranks in zip(*of_ranks))
    ]
    return together, states


@pytest.mark.parametrize("seed", range(40))
def test_the_same_steps(tmp_path, monkeypatch, seed):
    generator = random.Random(seed)
    path = tmp_path / "text"
    write_corpus(path, generator)
    begun = generator.randint(1, 4), generator.randint(1, 3)
    num_batches = begun[0] * begun[1]
    per_epoch = generator.choice([None, None, 2 * begun[1], 3 * begun[1]])
    divided = num_batches if per_epoch is None else begun[0]
    processes = generator.choice([n for n in range(1, 5) if divided % n == 0])
    options = {
        "max_tokens": generator.choice([30, 60]),
        "max_instances_in_memory": generator.choice([11, 100]),
        "batches_per_epoch": per_epoch,
    }
    whole, states = train(monkeypatch, path, options, begun)
    done, state = generator.choice(states)
    step = processes, num_batches // processes
    again, later = train(monkeypatch, path, options, step, begun[0], state, done)
    expected = [steps[done[1] :] if e == done[0] else steps for e, steps in enumerate(whole)]
    expected[: done[0]] = [[]] * done[0]
    if any(len(step) < processes for steps in whole for step in steps):
        # The last sentences of a pass, too few for all processes, share the step before.
        def of_epochs(epochs):
            return [sorted(s for step in steps for s in step) for steps in epochs]

        assert of_epochs(again) == of_epochs(expected)
        return
    assert again == expected
    # Back on as many as it was begun with, it ends as if nothing had been.
    done, state = generator.choice([s for s in later if s[0] >= done])
    back, _ = train(monkeypatch, path, options, begun, None, state, done)
    for epoch, steps in enumerate(back):
        first = done[1] if epoch == done[0] else 0
        assert steps == (whole[epoch][first:] if epoch >= done[0] else [])


def test_an_epoch_that_cannot_be_shared(tmp_path, monkeypatch):
    path = tmp_path / "text"
    write_corpus(path, random.Random(1))
    with pytest.raises(ConfigurationError, match=r"divides the 2 .*, and there are 4"):
        train(monkeypatch, path, {"max_tokens": 30, "batches_per_epoch": 1}, (4, 1), 2)


def test_a_loader_that_cannot_share_steps():
    trainer: Any = SimpleNamespace(data_loader=None, _num_gradient_accumulation_steps=6)
    with pytest.raises(ConfigurationError, match="Only the data loader language_modeling"):
        resuming._step_of_run(trainer, {"processes": 2, "accumulation": 3})


def test_a_number_that_does_not_divide_a_step():
    trainer: Any = SimpleNamespace(
        data_loader=SimpleNamespace(), _num_gradient_accumulation_steps=5
    )
    with pytest.raises(ConfigurationError, match="that divides it, 1, 2, 3, 6, and set trainer"):
        resuming._step_of_run(trainer, {"processes": 2, "accumulation": 3})
