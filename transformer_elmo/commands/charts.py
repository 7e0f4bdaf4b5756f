"""The report's charts, readable in shades of grey as well: lines differ by their strokes, too."""

import functools
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from allennlp.common.checks import ConfigurationError

from transformer_elmo.commands.training_log import Point
from transformer_elmo.models.scoring import SentenceScores

try:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
    )
except ImportError as error:  # pragma: no cover
    raise ConfigurationError(
        "Charts are drawn by matplotlib, which isn't installed: pip install matplotlib"
    ) from error

Lines = Dict[str, List[Point]]
"""Lines by their labels."""

WIDTH = 9.0
WORDS_PER_ROW = 10
# A picture of more would be too high for a page, and at some size for matplotlib.
MOST_WORDS = 200
LONGEST_WORD = 12

# Fonts with Chinese, Japanese and Korean characters, of several systems.
_WIDE_FONTS = (
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "PingFang SC",
    "Microsoft YaHei",
)

# Dark and light, solid and broken, with marks and without: no two are alike without their colour.
_STROKES: List[Dict[str, Any]] = [
    {"color": "#08306b", "linestyle": "-", "linewidth": 2.0},
    {"color": "#d95f0e", "linestyle": "--", "linewidth": 2.0, "marker": "o", "markersize": 5},
    {"color": "#636363", "linestyle": ":", "linewidth": 1.8, "marker": "^", "markersize": 5},
    {"color": "#969696", "linestyle": "-.", "linewidth": 1.8, "marker": "v", "markersize": 5},
]


def curves(
    lines: Lines,
    x_label: str,
    y_label: str,
    log: bool = False,
    best: Optional[int] = None,
    from_zero: bool = False,
) -> Figure:
    """
    Lines over steps or epochs.

    # Parameters

    lines : `Dict[str, List[Point]]`
        At most four. What can't be drawn, as an infinite perplexity, is left out.
    x_label, y_label : `str`
    log : `bool`, optional (default = `False`)
        Whether the y axis is logarithmic.
    best : `int`, optional (default = `None`)
        An epoch to mark.
    from_zero : `bool`, optional (default = `False`)
        Whether the y axis begins at zero.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    steps = {point.step for points in lines.values() for point in points}
    highest = 0.0
    for stroke, (label, points) in zip(_STROKES, lines.items()):
        stroke = dict(stroke)
        points = [p for p in points if math.isfinite(p.value) and (p.value > 0 or not log)]
        highest = max([highest, *(point.value for point in points)])
        if len(points) > 40:
            stroke.pop("marker", None)
        elif len(points) == 1:
            stroke.setdefault("marker", "s")
        axes.plot([p.step for p in points], [p.value for p in points], label=label, **stroke)
    if best is not None:
        axes.axvline(best, color="#bdbdbd", linewidth=1, zorder=0)
        axes.annotate(
            " best", (best, 1), xycoords=("data", "axes fraction"), va="top", color="#525252"
        )
    if log:
        axes.set_yscale("log")
        # A decade is too much for most runs: marks at 1, 2 and 5 times its powers.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    # A single step would get one mark after the other with the same number.
    axes.xaxis.set_major_locator(
        FixedLocator(sorted(steps)) if len(steps) == 1 else MaxNLocator(integer=True)
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if from_zero:
        axes.set_ylim(0, 1.1 * highest or 1)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y", color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.legend(frameon=False, handlelength=3.5)
    return figure


def surprisal_map(scores: SentenceScores) -> Figure:
    """
    Each word's surprisal from both sides, `-log2` of its probability: the darker, the less
    expected. Of a long text, its first `MOST_WORDS` words.
    """
    num_words = min(len(scores.tokens), MOST_WORDS)
    views = [("from the left", scores.forward)]
    if scores.backward is not None:
        views.append(("from the right", scores.backward))
    bits = np.array(
        [[math.nan if p is None else -p / math.log(2) for p in view.log_probs] for _, view in views]
    )
    # One scale for all sentences, so that they can be compared; few words go beyond.
    darkest = 16.0
    rows = [
        range(begin, min(begin + WORDS_PER_ROW, num_words))
        for begin in range(0, num_words, WORDS_PER_ROW)
    ]
    height = 0.34 * len(views) + 0.5
    figure = Figure(figsize=(WIDTH, height * len(rows) + 0.1), layout="constrained")
    for number, places in enumerate(rows):
        axes = figure.add_subplot(len(rows), 1, number + 1)
        shown = np.full((len(views), WORDS_PER_ROW), math.nan)
        shown[:, : len(places)] = bits[:, places.start : places.stop]
        axes.imshow(shown, cmap="Blues", vmin=0, vmax=darkest, aspect="auto")
        for row, column in np.argwhere(~np.isnan(shown)):
            value = shown[row, column]
            axes.text(
                column,
                row,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if value > 0.6 * darkest else "black",
            )
        for row in range(len(views)):
            for column in range(len(places)):
                if math.isnan(shown[row, column]):
                    axes.text(column, row, "–", ha="center", va="center", color="#969696")
        axes.set_xticks(
            range(len(places)),
            [_label(scores, place) for place in places],
            fontfamily=_font_families(),
        )
        axes.set_yticks(range(len(views)), [name for name, _ in views])
        axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
        axes.tick_params(labelsize=9)
        axes.spines[:].set_visible(False)
    return figure


@functools.cache
def _font_families() -> List[str]:
    """matplotlib's own font, and behind it those of this machine that have more characters."""
    installed = set(get_font_names())
    return ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in installed)]


def _label(scores: SentenceScores, place: int) -> str:
    word = scores.tokens[place]
    if len(word) > LONGEST_WORD:
        word = word[: LONGEST_WORD - 1] + "…"
    if scores.out_of_vocabulary[place]:
        word += "†"
    # A dollar sign would begin a formula.
    return word.replace("$", r"\$")


def layer_weights(mixtures: Sequence[Tuple[str, List[float], float]]) -> Figure:
    """
    # Parameters

    mixtures : `Sequence[Tuple[str, List[float], float]]`
        For each its name, its layers' weights, which add up to one, and its factor.
    """
    figure = Figure(figsize=(WIDTH, 2.8 * len(mixtures)), layout="constrained")
    for number, (name, weights, factor) in enumerate(mixtures):
        axes = figure.add_subplot(len(mixtures), 1, number + 1)
        places = range(len(weights))
        bars = axes.bar(places, weights, color="#6baed6", edgecolor="#08306b")
        axes.bar_label(
            bars,
            [f"{weight:.3f}" for weight in weights],
            padding=3,
            # Readable where the line below crosses it.
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            zorder=3,
        )
        axes.axhline(1 / len(weights), color="#525252", linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            " all the same",
            (1, 1 / len(weights)),
            xycoords=("axes fraction", "data"),
            va="center",
            color="#525252",
            annotation_clip=False,
        )
        names = ["words", *(f"layer {place}" for place in places[1:])]
        if len(names) > 1:
            names[-1] += " (top)"
        axes.set_xticks(places, names)
        axes.set_ylabel("weight")
        axes.set_ylim(0, max(*weights, 1 / len(weights)) * 1.18)
        axes.set_title(f"{name}, factor {factor:.3f}", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
