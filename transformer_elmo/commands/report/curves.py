"""Training runs by epoch: curves, as places in a drawing, and the tables behind them."""

import math
from collections.abc import Iterable, Mapping
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
    """`points`: in hundredths of a drawing, from its top left. `top`: where its name stands."""

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
    """What is known of each epoch, by name. Without perplexities, there are losses."""
    epochs = {metrics["epoch"]: numbers_in(metrics) for metrics in log.epochs}
    names = " ".join(name for numbers in epochs.values() for name in numbers)
    kind = "perplexity" if "perplexity" in names else "loss"
    found: dict[str, Series] = {
        f"{side} {kind}": {n: m.get(f"{side}_{kind}", math.nan) for n, m in epochs.items()}
        for side in ("validation", "training")
    }
    rates = {n: m.get("training_learning_rate", math.nan) for n, m in epochs.items()}
    found |= {"learning rate": rates, "time": dict(zip(epochs, log.epoch_durations))}
    # A perplexity of zero is none.
    least = dict.fromkeys((f"{side} perplexity" for side in ("validation", "training")), 0.0)
    return {
        name: known
        for name, series in found.items()
        if (known := {n: v for n, v in series.items() if least.get(name, -math.inf) < v < math.inf})
    }


def charts_of(logs: Mapping[str, TrainingLog]) -> list[Chart]:
    """Of one run, training and validation are in one chart. Of several, validation is compared."""
    charts: dict[str, dict[str, Series]] = {}
    for run, log in logs.items():
        for name, series in series_of(log).items():
            side, _, kind = name.partition(" ")
            if len(logs) > 1 and side != "training":
                charts.setdefault(name, {})[run] = series
            elif len(logs) == 1:
                is_one_of_two = side in ("training", "validation")
                title, line = (kind, side) if is_one_of_two else (name, "")
                charts.setdefault(title, {})[line] = series
    return [chart(title, lines) for title, lines in charts.items()]


def chart(title: str, lines: Mapping[str, Series]) -> Chart:
    """A drawing of lines, by name. Perplexities are on a logarithmic scale."""
    is_log = title.endswith("perplexity")
    values = [value for series in lines.values() for value in series.values()]
    epochs = sorted({epoch for series in lines.values() for epoch in series})
    low, high = (min(values), max(values)) if is_log else (min(0.0, *values), max(values))
    if low == high:
        low, high = (low / 2, low * 2) if is_log else (low, low + 1)

    def x(epoch: int) -> float:
        return 3 + 94 * (epoch - epochs[0]) / (epochs[-1] - epochs[0]) if epochs[1:] else 50

    def y(value: float) -> float:
        scale = math.log if is_log else float
        return 4 + 92 * (scale(high) - scale(value)) / (scale(high) - scale(low))

    named = sorted((y(series[max(series)]), name) for name, series in lines.items())
    tops: dict[str, float] = {}
    lowest = 4.0 - _NAME
    for top, name in named:
        tops[name] = lowest = max(top, lowest + _NAME)
    drawn = [
        Line(
            f"{name} {shown(title, series[max(series)])}".strip(),
            [(x(epoch), y(value)) for epoch, value in sorted(series.items())],
            tops[name] - max(0.0, lowest - 96),
        )
        for name, series in lines.items()
    ]
    step = math.ceil(len(epochs) / 8)
    x_ticks = [(x(epoch), str(epoch)) for epoch in epochs[::step]]
    unit = (3600 if high >= 7200 else 60 if high >= 120 else 1) if title == "time" else 1
    round_numbers = [unit * value for value in ticks(low / unit, high / unit, is_log)]
    y_ticks = [(y(value), shown(title, value)) for value in round_numbers]
    return Chart(f"{title[0].upper()}{title[1:]} by epoch", drawn, x_ticks, y_ticks)


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
    series = series_of(log)
    rows = [
        [str(n), *(shown(name, each[n], 4) if n in each else "–" for name, each in series.items())]
        for n in sorted({n for each in series.values() for n in each})
    ]
    return Table(title, ["epoch", *series], rows)


def compared(logs: Mapping[str, TrainingLog]) -> list[Table]:
    """The results of several runs side by side, and the keys of their configs that differ."""
    results = {run: {f.name: f.value for f in results_of(log)} for run, log in logs.items()}
    configs = {run: leaves(log.config) for run, log in logs.items()}
    differing = [k for k in _all(configs) if len({each.get(k) for each in configs.values()}) > 1]
    tables = []
    for title, keys, found in (
        ("Results", _all(results), results),
        ("What the configs differ in", differing, configs),
    ):
        rows = [[key, *(each.get(key, "–") for each in found.values())] for key in keys]
        tables.append(Table(title, ["", *found], rows))
    return [table for table in tables if table.rows]


def _all(mappings: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    return dict.fromkeys(key for each in mappings.values() for key in each)
