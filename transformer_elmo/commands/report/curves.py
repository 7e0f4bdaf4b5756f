"""Training runs by epoch: curves, as places in a drawing, and the tables behind them."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from transformer_elmo.commands.report.facts import (
    TrainingLog,
    duration_in_words,
    leaves,
    numbers_in,
    results_of,
)

# The height of a name at the end of a line, in hundredths of the drawing's.
_NAME = 10

Series = dict[int, float]
"""A number by epoch."""


class Line(NamedTuple):
    """
    `style`: its number. `points`: in hundredths of a drawing, from its top left. `top`: where its
    name stands.
    """

    style: int
    name: str
    points: list[tuple[float, float]]
    top: float


class Chart(NamedTuple):
    """`x_ticks`, `y_ticks`: a place in hundredths, and what it says there."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


class Table(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]


def series_of(log: TrainingLog) -> dict[str, Series]:
    """What is known of each epoch, by name. Where there are perplexities, losses are left out."""
    found: dict[str, Series] = {}
    for metrics, duration in zip(log.epochs, log.epoch_durations):
        numbers = {**numbers_in(metrics), "time": duration}
        for kind in ("perplexity", "loss", "learning_rate", "time"):
            for name in (f"validation_{kind}", f"training_{kind}", kind):
                if math.isfinite(number := numbers.get(name, math.nan)):
                    series = found.setdefault(kind if kind == "learning_rate" else name, {})
                    series[int(numbers["epoch"])] = number
    skipped = "loss" if any("perplexity" in name for name in found) else "none"
    return {name: series for name, series in found.items() if skipped not in name}


def charts_of(logs: Mapping[str, TrainingLog]) -> list[Chart]:
    """
    Of one run, training and validation are in one chart. Of several, validation is compared, or
    training if none has another text.
    """
    charts: dict[str, dict[str, Series]] = {}
    known = {run: series_of(log) for run, log in logs.items()}
    is_validated = any(name.startswith("validation_") for found in known.values() for name in found)
    for run, found in known.items():
        for name, series in found.items():
            side, _, kind = name.partition("_")
            is_compared = side in ("training", "validation")
            if len(logs) == 1:
                title, line = (kind, side) if is_compared else (name, "")
                charts.setdefault(title, {})[line] = series
            elif side != "training" or not is_validated:
                charts.setdefault(name, {})[run] = series
    styles = {"training": 1} if len(logs) == 1 else {run: n for n, run in enumerate(logs)}
    return [chart(title.replace("_", " "), lines, styles) for title, lines in charts.items()]


def chart(title: str, lines: Mapping[str, Series], styles: Mapping[str, int] = {}) -> Chart:
    """A drawing of lines, by name. Perplexities are on a logarithmic scale."""
    values = [value for series in lines.values() for value in series.values()]
    epochs = sorted({epoch for series in lines.values() for epoch in series})
    low, high = min(values), max(values)
    is_log = title.endswith("perplexity") and low > 0
    scale = math.log if is_log else float
    if not is_log:
        low = min(low, 0.0)
    if low == high:
        low, high = (low / 2, low * 2) if is_log else (low, low + 1)

    def x(epoch: int) -> float:
        return 3 + 94 * (epoch - epochs[0]) / max(epochs[-1] - epochs[0], 1)

    def y(value: float) -> float:
        return 4 + 92 * (scale(high) - scale(value)) / (scale(high) - scale(low))

    drawn: list[Line] = []
    lowest = 4.0 - _NAME
    # From the top, so that names move out of one another's way.
    for name, series in sorted(lines.items(), key=lambda line: -line[1][max(line[1])]):
        last = series[max(series)]
        lowest = max(y(last), lowest + _NAME)
        points = [(x(epoch), y(value)) for epoch, value in sorted(series.items())]
        text = f"{name} {shown(title, last)}".strip()
        drawn.append(Line(styles.get(name, 0), text, points, lowest))
    too_low = max(0.0, lowest - 96)
    unit = (3600 if high >= 7200 else 60 if high >= 120 else 1) if title == "time" else 1
    round_numbers = [unit * value for value in ticks(low / unit, high / unit, is_log)]
    return Chart(
        f"{title.capitalize()} by epoch",
        [line._replace(top=line.top - too_low) for line in sorted(drawn)],
        [(x(epoch), str(epoch)) for epoch in epochs[:: math.ceil(len(epochs) / 8)]],
        [(y(value), shown(title, value)) for value in round_numbers],
    )


def ticks(low: float, high: float, is_log: bool) -> list[float]:
    """Some round numbers in a range."""
    if is_log:
        orders = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**n for n in orders for m in (1, 2, 5) if low <= m * 10.0**n <= high]
        if len(found) > 2:
            return found[:: math.ceil(len(found) / 7)]
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def shown(name: str, number: float, digits: int = 3) -> str:
    """A number of a series of this name, in so many digits."""
    if name == "time":
        return duration_in_words(number)
    return f"{number:,.0f}" if 1000 <= number < 10**7 else f"{number:.{digits}g}"


def epochs_table(title: str, log: TrainingLog) -> Table:
    """What the curves of a run are drawn from."""
    found = series_of(log)
    rows = [
        [str(n), *(shown(name, each[n], 4) if n in each else "–" for name, each in found.items())]
        for n in sorted({n for each in found.values() for n in each})
    ]
    return Table(title, ["epoch", *(name.replace("_", " ") for name in found)], rows)


def compared(logs: Mapping[str, TrainingLog]) -> list[Table]:
    """The results of several runs side by side, and the keys of their configs that differ."""
    results = {run: {f.name: f.value for f in results_of(log)} for run, log in logs.items()}
    configs = {run: leaves(log.config) for run, log in logs.items()}
    tables = []
    for title, found in (("Results", results), ("What the configs differ in", configs)):
        keys = dict.fromkeys(key for each in found.values() for key in each)
        rows = [[key, *(each.get(key, "–") for each in found.values())] for key in keys]
        rows = [row for row in rows if found is results or len({*row[1:]}) > 1]
        tables.append(Table(title, ["", *found], rows))
    return [table for table in tables if table.rows]
