"""Runs that go on with another number of processes."""

import random

import pytest
import torch.distributed as dist

from tests.plugin.test_data_loader import make_loader, own_words
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import data_loader
from transformer_elmo.plugin.runs import run_guard
from transformer_elmo.text.steps import Step

EPOCHS = 3


def write_corpus(path, generator):
    """Sentences of many lengths, each with a number of its own."""
    count = generator.randint(8, 60)
    path.write_text(
        "".join(f"{'the ' * generator.choice([0, 1, 2, 5, 20])}n{i}\n" for i in range(count))
    )


def train(monkeypatch, path, options, processes, accumulation, begun=None, state=None, done=(0, 0)):
    """
    For each epoch, the steps from where it goes on: their rounds of (sentences, weight), one for
    each process; and the states between them.
    """
    monkeypatch.setattr(data_loader, "several_processes", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: processes)
    of_ranks, states = [], []
    for rank in range(processes):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        loader = make_loader(path, **options)
        if state is not None:
            loader.resume(state, done[0], done[1] * accumulation)
        if begun is not None:
            loader.share_steps(begun, accumulation)
        epochs, states = [], [((0, 0), loader.state_dict())]
        for epoch in range(EPOCHS):
            steps, taken = [], []
            for batch in loader:
                taken.append((own_words(batch), getattr(batch, "weight", 1.0)) if batch else None)
                if len(taken) == accumulation:
                    steps.append(taken)
                    taken = []
                    states.append(((epoch, len(steps)), loader.state_dict()))
            if taken:
                steps.append(taken)
            states.append(((epoch + 1, 0), loader.state_dict()))
            epochs.append([step for step in steps if step[0] is not None])
        of_ranks.append(epochs)
    return [[list(zip(*step)) for step in zip(*ranks)] for ranks in zip(*of_ranks)], states


def sentences(step):
    """Each once, for some processes have a copy of one that counts nothing."""
    return sorted({s for of_round in step for words, _ in of_round for s in words})


def loss(step, num_words):
    """Of the step, if each sentence's words have a loss that no other sentence's have."""
    total = 0.0
    for of_round in step:
        mean = sum(num_words[s] for words, _ in of_round for s in words) / len(of_round)
        for words, weight in of_round:
            own = sum(num_words[s] * (1 + s % 7) ** 2 for s in words)
            total += weight * own / mean / len(of_round) / len(step)
    return total


@pytest.mark.parametrize("seed", range(25))
def test_the_same_steps(tmp_path, monkeypatch, seed):
    generator = random.Random(seed)
    path = tmp_path / "text"
    write_corpus(path, generator)
    num_words = [len(line.split()) + 1 for line in path.read_text().splitlines()]
    begun = Step(
        generator.randint(1, 4), generator.randint(1, 3), generator.choice([None, None, 5, 8])
    )
    options = {
        "max_tokens": generator.choice([30, 60]),
        "max_instances_in_memory": generator.choice([11, 100]),
        "batches_per_epoch": begun.batches_per_epoch,
    }
    whole, states = train(monkeypatch, path, options, begun.processes, begun.accumulation)
    processes = generator.choice([1, 2, 3, 4])
    accumulation = -(-begun.num_batches() // processes) + generator.choice([0, 0, 1])
    done, state = generator.choice(states)
    again, later = train(monkeypatch, path, options, processes, accumulation, begun, state, done)
    expected = [steps[done[1] :] if e == done[0] else steps for e, steps in enumerate(whole)]
    expected[: done[0]] = [[]] * done[0]
    for steps, steps_before in zip(again, expected, strict=True):
        assert [sentences(step) for step in steps] == [sentences(step) for step in steps_before]
        for step, before in zip(steps, steps_before):
            assert loss(step, num_words) == pytest.approx(loss(before, num_words), rel=1e-9)
    # Back on as many as it was begun with, or by way of those, it ends as if nothing had been.
    done, state = generator.choice([s for s in later if s[0] >= done])
    back, _ = train(
        monkeypatch, path, options, begun.processes, begun.accumulation, None, state, done
    )
    for epoch, steps in enumerate(back):
        first = done[1] if epoch == done[0] else 0
        assert steps == (whole[epoch][first:] if epoch >= done[0] else [])


def test_more_batches_are_uncut_and_in_order(tmp_path, monkeypatch):
    path = tmp_path / "text"
    write_corpus(path, random.Random(1))
    options = {"max_tokens": 30}
    whole, states = train(monkeypatch, path, options, 2, 1)
    (alone, *_), _ = train(monkeypatch, path, options, 1, 2, Step(2, 1), states[0][1])
    for step, before in zip(alone[:-1], whole[0]):
        assert [words for ((words, _),) in step] == [words for words, _ in before[0]]


def test_between_two_rounds_that_share_their_sentences(tmp_path, monkeypatch):
    # 9 batches for 4 processes, the last of one sentence.
    path = tmp_path / "text"
    path.write_text("".join(f"the n{i}\n" for i in range(17)))
    options = {"max_tokens": 100, "batch_size": 2}
    whole, states = train(monkeypatch, path, options, 4, 1)
    assert len(whole[0]) == 3
    done, state = states[2]
    assert done == (0, 2) and state["position"]["num_skipped"] == 1
    again, _ = train(monkeypatch, path, options, 1, 4, Step(4, 1), state, done)
    assert [sentences(step) for step in again[0]] == [sentences(whole[0][2])]


class TestGuard:
    @pytest.fixture
    def trainer(self):
        class Loader:
            batches_per_epoch = None
            shared = None

            def share_steps(self, step, accumulation):
                self.shared = step, accumulation

        class Trainer:
            data_loader = Loader()
            _num_gradient_accumulation_steps = 1

        return Trainer()

    def test_too_few(self, trainer):
        begun = Step(2, 3).to_json()
        trainer._num_gradient_accumulation_steps = 5
        with pytest.raises(ConfigurationError, match=r"num_gradient_accumulation_steps to 6\."):
            run_guard._share_steps(trainer, begun)
        trainer._num_gradient_accumulation_steps = 6
        assert run_guard._share_steps(trainer, begun) == Step(2, 3)
        assert trainer.data_loader.shared == (Step(2, 3), 6)

    def test_as_it_was_begun(self, trainer):
        assert run_guard._share_steps(trainer, None) == Step(1, 1)
        assert run_guard._share_steps(trainer, Step(1, 1).to_json()) == Step(1, 1)
        assert trainer.data_loader.shared is None

    def test_another_loader(self, trainer):
        trainer.data_loader = object()
        trainer._num_gradient_accumulation_steps = 2
        assert run_guard._share_steps(trainer, Step(2, 1).to_json()) == Step(2, 1)
        with pytest.raises(ConfigurationError, match="Only the data loader language_modeling"):
            run_guard._share_steps(trainer, Step(3, 1).to_json())
