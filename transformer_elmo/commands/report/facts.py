"""A training run in a few lines: how it went, by what it left in its folder, and its config."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from transformer_elmo.files import json_text, read_json

_METRICS_FILE = re.compile(r"metrics_epoch_(\d+)\.json")
_DURATION = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")

BEFORE, AFTER = "given the words before", "given the words after"

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


@dataclass(frozen=True)
class TrainingLog:
    """
    `config`: `config.json`. `epochs`: the files `metrics_epoch_*.json`, in order. `final`:
    `metrics.json`; empty before training ends.
    """

    config: dict[str, Any]
    epochs: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)

    @property
    def latest(self) -> dict[str, Any]:
        """The metrics that count: those of the end, or else of the last epoch so far."""
        return self.final or (self.epochs[-1] if self.epochs else {})

    def number(self, name: str) -> float | None:
        """One of the latest metrics, if it is there and a number."""
        value = self.latest.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number else None

    @property
    def epoch_durations(self) -> list[float]:
        """How long each epoch took, in seconds: what its file says, less what that before says."""
        durations = []
        before = 0.0
        for metrics in self.epochs:
            total = seconds(metrics.get("training_duration"))
            if total is None:
                continue
            # A run that was started again counts from zero.
            durations.append(total - before if total >= before else total)
            before = total
        return durations

    @property
    def was_restarted(self) -> bool:
        """Whether durations count from a later start than the first."""
        totals = [seconds(metrics.get("training_duration")) or 0.0 for metrics in self.epochs]
        return totals != sorted(totals)


def read_training_log(folder: Path) -> TrainingLog:
    """
    `folder`: the `--serialization-dir` of `allennlp train`, or what an archive was unpacked to.
    Raises `ConfigurationError` if a file can't be read, or there is no `config.json`.
    """
    epochs = [
        {**read_json(path), "epoch": int(match[1])}
        for path in folder.iterdir()
        if (match := _METRICS_FILE.fullmatch(path.name))
    ]
    epochs.sort(key=lambda metrics: metrics["epoch"])
    final = folder / "metrics.json"
    return TrainingLog(
        read_json(folder / "config.json"), epochs, read_json(final) if final.exists() else {}
    )


def seconds(duration: Any) -> float | None:
    """A duration as AllenNLP writes it, `1 day, 2:03:04.5`; `None` for anything else."""
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if match is None:
        return None
    days, hours, minutes = (int(part or 0) for part in match.groups()[:3])
    return ((days * 24 + hours) * 60 + minutes) * 60 + float(match[4])


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
