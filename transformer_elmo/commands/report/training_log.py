"""What a training run has left in its folder, read without running anything."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import read_json

_METRICS_FILE = re.compile(r"metrics_epoch_(\d+)\.json")
_DURATION = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


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
    Raises `ConfigurationError` if a file isn't what it should be, or there is no `config.json`.
    """
    epochs = []
    for path in folder.iterdir():
        match = _METRICS_FILE.fullmatch(path.name)
        metrics = _json(path) if match else None
        if match and metrics is not None:
            epochs.append({**metrics, "epoch": int(match[1])})
    epochs.sort(key=lambda metrics: metrics["epoch"])
    config = _json(folder / "config.json")
    if config is None:
        raise ConfigurationError(f"{folder} has no config.json.")
    return TrainingLog(config, epochs, _json(folder / "metrics.json") or {})


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def seconds(duration: Any) -> float | None:
    """A duration as AllenNLP writes it, `1 day, 2:03:04.5`; `None` for anything else."""
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if match is None:
        return None
    days, hours, minutes = (int(part or 0) for part in match.groups()[:3])
    return ((days * 24 + hours) * 60 + minutes) * 60 + float(match[4])
