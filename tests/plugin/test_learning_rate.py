import pytest
import torch
from allennlp.common import Params
from allennlp.training.learning_rate_schedulers import LearningRateScheduler

from transformer_elmo.errors import ConfigurationError


def scheduler(rate=0.5, **options):
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (rate, 2 * rate)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    epochs = {key: options.pop(key, None) for key in ("num_epochs", "num_steps_per_epoch")}
    params = Params({"type": "warmup_stable_decay", **options})
    return LearningRateScheduler.from_params(params, optimizer=optimizer, **epochs)


def rates(made, number, first=0):
    """Those that each step is made with."""
    found = []
    for step in range(first, first + number):
        found.append([group["lr"] for group in made.optimizer.param_groups])
        made.step_batch(step + 1)
    return found


def test_a_rise_a_plateau_and_a_fall_to_zero():
    made = scheduler(warmup=2, decay=4, num_steps=8)
    first, second = zip(*rates(made, 9))
    assert first == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125, 0.0])
    assert second == pytest.approx([2 * rate for rate in first])
    # Or a plateau alone.
    assert rates(scheduler(warmup=0, decay=0.0, num_steps=5), 5) == [[0.5, 1.0]] * 5


def test_by_shares_of_the_epochs():
    made = scheduler(warmup=0.25, decay=0.5, num_epochs=2, num_steps_per_epoch=4)
    assert (made.num_warmup, made.num_decay, made.num_steps) == (2, 4, 8)
    begun = rates(made, 4)
    made.step(0.1)
    other = scheduler(warmup=2, decay=4, num_steps=8)
    assert begun + rates(made, 4, 4) == rates(other, 8)


def test_taken_up_again_with_more_epochs_or_other_batches():
    """As with another number of processes, which a step's batches are divided among."""
    made = scheduler(warmup=0.25, decay=0.5, num_epochs=2, num_steps_per_epoch=8)
    rates(made, 10)
    other = scheduler(warmup=0.25, decay=0.5, num_epochs=2, num_steps_per_epoch=4)
    other.load_state_dict(made.state_dict())
    longer = scheduler(warmup=0.25, decay=0.5, num_epochs=3, num_steps_per_epoch=4)
    longer.load_state_dict(made.state_dict())
    assert rates(other, 6, 10) == rates(made, 6, 10)
    assert longer.num_steps == 24 and rates(longer, 1, 10) == [[0.5, 1.0]]
    # What earlier versions saved.
    other.load_state_dict({"last_epoch": 10})
    assert other.num_steps == 16


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_epochs": 3}, "Set num_steps here"),
        ({"warmup": 5, "decay": 6, "num_steps": 10}, "rises for 5 steps and falls for 6, but"),
        ({"warmup": -1, "num_steps": 10}, "warmup must be a number of steps"),
        ({"decay": 1.5, "num_steps": 10}, "decay must be a number of steps"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ConfigurationError, match=message):
        scheduler(**options)


def test_the_scheduler_that_waits_for_a_plateau():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    options = {"type": "reduce_on_plateau", "factor": 0.5, "patience": 0, "mode": "max"}
    scheduler = LearningRateScheduler.from_params(Params(options), optimizer=optimizer)
    for metric in (1.0, 0.5, 2.0, 1.0):
        scheduler.step(metric)
    assert optimizer.param_groups[0]["lr"] == 0.25
