"""A training run in a few lines: how it went, by what it left in its folder, and its config."""

import fnmatch
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from transformer_elmo.files import json_text, read_json

_METRICS_FILE = re.compile(r"metrics_epoch_(\d+)\.json")
_DURATION = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")

BEFORE, AFTER = "given the words before", "given the words after"

# By dotted path; `*` stands for anything.
_ESSENTIALS = """
model.type model.archive_file model.num_samples model.precision
model.contextualizer.type model.contextualizer.input_dim model.contextualizer.hidden_dim
model.contextualizer.num_layers model.contextualizer.dropout model.text_field_embedder.*archive_file
data_loader.type data_loader.max_tokens data_loader.batch_size iterator.*
trainer.optimizer* trainer.learning_rate_scheduler* trainer.num_epochs
train_data_path validation_data_path test_data_path vocabulary.* distributed.*
""".split()


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
    def latest(self) -> dict[str, float]:
        """The numbers that count: those of the end, or else of the last epoch so far."""
        return numbers_in(self.final or (self.epochs[-1] if self.epochs else {}))

    @property
    def epoch_durations(self) -> list[float]:
        """How long each epoch took, in seconds: what its file says, less what that before says."""
        durations = []
        before = 0.0
        for metrics in self.epochs:
            total = seconds(metrics.get("training_duration"))
            # A run that was started again counts from zero.
            durations.append(total - before if total >= before else total)
            before = total if math.isfinite(total) else before
        return durations


def numbers_in(metrics: dict[str, Any]) -> dict[str, float]:
    """Those of some metrics that are numbers."""
    return {name: number for name, number in metrics.items() if type(number) in (int, float)}


def read_training_log(folder: Path, shown: Path) -> TrainingLog:
    """
    `folder`: the `--serialization-dir` of `allennlp train`, or what an archive was unpacked to,
    which messages call `shown`. Raises `ConfigurationError` if a file can't be read.
    """
    epochs = [
        {**read_json(path), "epoch": int(match[1])}
        for path in folder.iterdir()
        if (match := _METRICS_FILE.fullmatch(path.name))
    ]
    epochs.sort(key=lambda metrics: metrics["epoch"])
    final = folder / "metrics.json"
    config = read_json(folder / "config.json", f"The config.json of {shown}")
    return TrainingLog(config, epochs, read_json(final) if final.exists() else {})


def seconds(duration: Any) -> float:
    """Of a duration as AllenNLP writes it, `1 day, 2:03:04.5`; NaN for anything else."""
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if match is None:
        return math.nan
    days, hours, minutes = (int(part or 0) for part in match.groups()[:3])
    return ((days * 24 + hours) * 60 + minutes) * 60 + float(match[4])


def results_of(log: TrainingLog) -> list[Fact]:
    """How a run went; nothing of one that has had no epoch yet."""
    facts = []
    numbers = log.latest
    if "epoch" in numbers:
        last = int(numbers["epoch"])
        note = f"numbered 0 to {last}" if last else "number 0"
        facts.append(Fact("epochs", f"{last + 1}", f"{note}, as in metrics.json"))
    if "best_epoch" in numbers:
        facts.append(Fact("best epoch", f"{int(numbers['best_epoch'])}"))
    if duration := sum(filter(math.isfinite, log.epoch_durations)):
        facts.append(Fact("duration", duration_in_words(duration)))
    for prefix, what in (("best_validation_", "best validation"), ("test_", "test")):
        facts += _measured(numbers, prefix, what)
    return facts


def _measured(numbers: dict[str, float], prefix: str, what: str) -> Iterator[Fact]:
    """
    The metrics of one text. AllenNLP's trainer writes down as `loss` a mean of batches, whatever
    their sizes, which isn't what the perplexity is made of: that is a mean of words.
    """
    found = {k[len(prefix) :]: number for k, number in numbers.items() if k.startswith(prefix)}
    perplexity = found.get("perplexity", math.nan)
    if perplexity > 0:
        sides = [
            f"{_number(found.pop(name))} {side}"
            for name, side in (("forward_perplexity", BEFORE), ("backward_perplexity", AFTER))
            if name in found
        ]
        note = ", ".join(["over all words", *sides])
        yield Fact(f"{what} perplexity", _number(found.pop("perplexity")), note)
        found["loss"] = math.log(perplexity)
    for name, number in found.items():
        is_logarithm = name == "loss" and perplexity > 0
        note = "in nats a word: the perplexity's logarithm" if is_logarithm else ""
        yield Fact(f"{what} {name.replace('_', ' ')}", _number(number), note)


def _number(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.4f}"


def duration_in_words(duration: float) -> str:
    """Seconds as they are read: `9.5 s`, or `1 day, 2:03:04`."""
    return f"{duration:.1f} s" if duration < 60 else str(timedelta(seconds=round(duration)))


def config_of(config: dict[str, Any]) -> list[Fact]:
    """The essentials of a config."""
    found = leaves(config)
    names = (name for essential in _ESSENTIALS for name in fnmatch.filter(found, essential))
    return [Fact(name, found[name]) for name in dict.fromkeys(names)]


def leaves(config: dict[str, Any], path: str = "") -> dict[str, str]:
    """All that a config says, by dotted path."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{path}{key}.")
        elif value is not None:
            found[f"{path}{key}"] = value if isinstance(value, str) else json_text(value)
    return found
