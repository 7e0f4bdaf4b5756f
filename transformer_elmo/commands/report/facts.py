"""A training run in a few lines: how it went, by its metrics.json, and its config."""

import math
from collections.abc import Iterator
from datetime import timedelta
from statistics import median
from typing import Any, NamedTuple

from transformer_elmo.commands.report.heat_map import AFTER, BEFORE
from transformer_elmo.commands.report.training_log import TrainingLog
from transformer_elmo.files import json_text

# By dotted path; `*` stands for any key.
_ESSENTIALS = (
    "model.type",
    "model.archive_file",
    "model.num_samples",
    "model.precision",
    "model.contextualizer.type",
    "model.contextualizer.input_dim",
    "model.contextualizer.hidden_dim",
    "model.contextualizer.num_layers",
    "model.contextualizer.dropout",
    "model.text_field_embedder.token_embedders.*.archive_file",
    # As AllenNLP 0.x had it.
    "model.text_field_embedder.*.archive_file",
    "data_loader.type",
    "data_loader.max_tokens",
    "data_loader.batch_size",
    "iterator",
    "trainer.optimizer",
    "trainer.learning_rate_scheduler",
    "trainer.num_epochs",
    "train_data_path",
    "validation_data_path",
    "test_data_path",
    "vocabulary",
    "distributed",
)


class Fact(NamedTuple):
    """`note`: what there is to say about it."""

    name: str
    value: str
    note: str = ""


def results_of(log: TrainingLog) -> list[Fact]:
    """How a run went; nothing of one that has had no epoch yet."""
    facts = []
    epoch, best = log.number("epoch"), log.number("best_epoch")
    if epoch is not None:
        last = int(epoch)
        numbers = f"numbered 0 to {last}" if last else "number 0"
        facts.append(Fact("epochs", f"{last + 1}", f"{numbers}, as in metrics.json"))
    if best is not None:
        facts.append(Fact("best epoch", f"{int(best)}"))
    duration = log.latest.get("training_duration")
    if isinstance(duration, str):
        since = "since the run was last started" if log.was_restarted else ""
        facts.append(Fact("duration", duration.partition(".")[0], since))
    if len(log.epoch_durations) > 1:
        typical = median(log.epoch_durations)
        text = f"{typical:.1f} s" if typical < 60 else str(timedelta(seconds=round(typical)))
        facts.append(Fact("an epoch", text, "the median"))
    facts += _measured(log, "best_validation_", "best validation")
    facts += _measured(log, "test_", "test")
    return facts


def _measured(log: TrainingLog, prefix: str, what: str) -> Iterator[Fact]:
    """
    The metrics of one text. AllenNLP's trainer writes down as `loss` a mean of batches, whatever
    their sizes, which isn't what the perplexity is made of: that is a mean of words.
    """
    metrics = {
        name[len(prefix) :]: number
        for name in log.latest
        if name.startswith(prefix) and (number := log.number(name)) is not None
    }
    perplexity, loss = metrics.get("perplexity", math.nan), metrics.get("loss")
    if perplexity > 0:
        sides = [
            f"{_number(metrics.pop(name))} {side}"
            for name, side in (("forward_perplexity", BEFORE), ("backward_perplexity", AFTER))
            if name in metrics
        ]
        exact = math.log(perplexity)
        yield Fact(f"{what} perplexity", _number(perplexity), ", ".join(["over all words", *sides]))
        yield Fact(f"{what} loss", _number(exact), "in nats a word: the perplexity's logarithm")
        if loss is not None and _number(loss) != _number(exact):
            yield Fact(
                f"{what} loss by batches",
                _number(loss),
                f"{prefix}loss in metrics.json, a mean of batches whatever their sizes",
            )
        metrics = {k: v for k, v in metrics.items() if k not in ("perplexity", "loss")}
    for name, number in metrics.items():
        yield Fact(f"{what} {name.replace('_', ' ')}", _number(number))


def _number(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.4f}"


def config_of(config: dict[str, Any]) -> list[Fact]:
    """The essentials of a config."""
    return [
        Fact(name, value if isinstance(value, str) else json_text(value))
        for path in _ESSENTIALS
        for name, value in _found(config, path.split("."))
        if value is not None
    ]


def _found(value: Any, path: list[str]) -> Iterator[Any]:
    """Pairs of a dotted path and what stands there."""
    if not path:
        yield "", value
        return
    if not isinstance(value, dict):
        return
    for key in list(value) if path[0] == "*" else [path[0]]:
        if key in value:
            for rest, found in _found(value[key], path[1:]):
                yield f"{key}.{rest}".rstrip("."), found
