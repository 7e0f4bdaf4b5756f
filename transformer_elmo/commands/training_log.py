"""What a training run has left in its folder, read without running anything."""

import json
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from allennlp.common.checks import ConfigurationError

_METRICS_FILE = re.compile(r"metrics_epoch_(\d+)\.json")


class Point(NamedTuple):
    """A number that was logged."""

    step: int
    value: float
    time: float


@dataclass(frozen=True)
class TrainingLog:
    """
    # Attributes

    folder : `Path`
    config : `Dict[str, Any]`
        `config.json`.
    epochs : `List[Dict[str, Any]]`
        The files `metrics_epoch_*.json`, in order.
    final : `Dict[str, Any]`
        `metrics.json`; empty before training ends.
    scalars : `Dict[str, List[Point]]`
        What was logged for TensorBoard, by name ("train/batch_loss"), in the order of steps.
    """

    folder: Path
    config: Dict[str, Any]
    epochs: List[Dict[str, Any]] = field(default_factory=list)
    final: Dict[str, Any] = field(default_factory=dict)
    scalars: Dict[str, List[Point]] = field(default_factory=dict)

    def by_epoch(self, name: str) -> List[Point]:
        """A metric of the epochs that have it; the step is the epoch's number, from 1."""
        return [
            Point(epoch["epoch"] + 1, float(epoch[name]), 0.0)
            for epoch in self.epochs
            if isinstance(epoch.get(name), (int, float))
        ]

    @property
    def best_epoch(self) -> Optional[int]:
        """Counted from 1."""
        for metrics in (self.final, *self.epochs[-1:]):
            if "best_epoch" in metrics:
                return int(metrics["best_epoch"]) + 1
        return None


def read_training_log(folder: Path) -> TrainingLog:
    """
    # Parameters

    folder : `Path`
        The `--serialization-dir` of `allennlp train`.

    # Raises

    `ConfigurationError`
        If it isn't one.
    """
    if not folder.is_dir():
        raise ConfigurationError(
            f"There is no folder {folder}. Expected the --serialization-dir of allennlp train."
        )
    config = _json(folder / "config.json")
    if config is None:
        raise ConfigurationError(
            f"{folder} has no config.json, so it is not the --serialization-dir of allennlp train."
        )
    epochs = []
    for path in folder.iterdir():
        match = _METRICS_FILE.fullmatch(path.name)
        metrics = _json(path) if match else None
        if match and metrics is not None:
            epochs.append({**metrics, "epoch": int(match[1])})
    epochs.sort(key=lambda metrics: metrics["epoch"])
    scalars: Dict[str, List[Point]] = {}
    for path in sorted((folder / "log").glob("*/events.out.tfevents.*")):
        for name, point in read_events(path):
            scalars.setdefault(name, []).append(point)
    for points in scalars.values():
        # A run that was recovered has logged some steps twice: the later one counts.
        latest = {point.step: point for point in sorted(points, key=lambda point: point.time)}
        points[:] = [latest[step] for step in sorted(latest)]
    return TrainingLog(folder, config, epochs, _json(folder / "metrics.json") or {}, scalars)


def _json(path: Path) -> Optional[Dict[str, Any]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from None


def read_events(path: Path) -> Iterator[Any]:
    """
    The scalars of a TensorBoard file: pairs of a name and a `Point`. The file is a sequence of
    records: eight bytes of length, four of checksum, the record, four of checksum (TensorFlow's
    TFRecord format). A record that is only half there, as in a run that goes on, ends it.
    """
    from tensorboardX.proto.event_pb2 import Event

    content = path.read_bytes()
    begin = 0
    while begin + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, begin)
        end = begin + 12 + length
        if end + 4 > len(content):
            return
        event = Event.FromString(content[begin + 12 : end])
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield value.tag, Point(event.step, value.simple_value, event.wall_time)
        begin = end + 4
