"""
The report as one HTML page, which needs nothing beside it: `report.html` and `report.css`, filled
in. Words stand in their own script and order, can be copied, and have what else there is to say
about them in a note that opens at a touch.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from transformer_elmo.commands.report.curves import Chart, Table
from transformer_elmo.commands.report.facts import AFTER, BEFORE, Fact
from transformer_elmo.commands.report.text import (
    code_points,
    direction_of,
    is_invisible,
    visible,
)
from transformer_elmo.inference.scores import SentenceScores, WordScores

# The style sheet has as many: for 0 to 2 bits, 2 to 4 bits, ..., and everything beyond.
SHADES, BITS_PER_SHADE = 9, 2

MOST_WORDS = 200
"""Of a longer sentence, so many are shown."""

LONGEST_WORD = 60
"""In characters; of a longer word, the beginning is shown."""

# What stands in a vocabulary for all the words that aren't in it.
_UNKNOWN_WORDS = ("@@UNKNOWN@@", "<UNK>")


@dataclass(frozen=True)
class Passage:
    """
    A sentence to show.

    `scores`: with the likeliest words of each place. `first`, `end`: where its words are among the
    tokens; those around them are boundary tokens.
    """

    scores: SentenceScores
    first: int
    end: int

    @property
    def words(self) -> list[str]:
        return self.scores.tokens[self.first : self.end]

    @property
    def views(self) -> list[tuple[str, WordScores]]:
        """What is said of each word, from one side or from both."""
        views = [(BEFORE, self.scores.forward)]
        return views if self.scores.backward is None else [*views, (AFTER, self.scores.backward)]

    @property
    def places_shown(self) -> range:
        if len(self.words) > MOST_WORDS:
            return range(self.first + MOST_WORDS)
        return range(len(self.scores.tokens))

    @property
    def notes(self) -> list[str]:
        notes = []
        if math.isfinite(self.scores.perplexity):
            notes.append(f"perplexity {self.scores.perplexity:,.1f}")
        if len(self.words) > MOST_WORDS:
            notes.append(f"the first {MOST_WORDS} of its {len(self.words):,} words")
        return notes

    def bits_at(self, place: int) -> list[tuple[str, str]]:
        """The surprisals of a word, and their shades."""
        return [_bits(view.log_probs[place]) for _, view in self.views]


@dataclass(frozen=True)
class Mixture:
    """
    A weighted sum of layers.

    `name`: of the module that has it. `weights`: one a layer, from the word vectors to the top;
    they add up to one. `factor`: what the sum is multiplied by.
    """

    name: str
    weights: list[float]
    factor: float

    @property
    def layers(self) -> list[tuple[str, float]]:
        """The weights with the layers' names: the words, those between, and the top."""
        names = ["words", *(f"layer {number}" for number in range(1, len(self.weights)))]
        return list(zip([*names[:-1], "top"] if names[1:] else names, self.weights))


@dataclass(frozen=True)
class Report:
    """
    `remarks`: what can't be shown, and why. `comparison`: of several runs. `charts`, `epochs`: a
    run's course, and the numbers behind it. `passages`: sentences and what a language model says of
    them. `passages_from`: where these were found. `mixtures`: the learned layer weights.
    """

    title: str
    results: list[Fact] = field(default_factory=list)
    config: list[Fact] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    passages_from: str = ""
    mixtures: list[Mixture] = field(default_factory=list)
    comparison: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    epochs: list[Table] = field(default_factory=list)


def page(report: Report) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_finalized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        direction=direction_of,
        exp=math.exp,
        is_cut=lambda token: len(token) > LONGEST_WORD,
        place="{:.2f}".format,
        probability=probability_in_words,
        shown=_shown,
    )
    text = environment.get_template("report.html").render(
        report=report, shades=SHADES, bits_per_shade=BITS_PER_SHADE, unknown_words=_UNKNOWN_WORDS
    )
    return f"{text.strip()}\n"


def _finalized(value: Any) -> Any:
    """Of whatever the template fills in; it is escaped afterwards."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _shown(token: str) -> str:
    text = token[:LONGEST_WORD]
    rest = "" if text == token else "…"
    return (code_points(token[:8]) or "(empty)" if is_invisible(token) else text) + rest


def _bits(log_prob: float | None) -> tuple[str, str]:
    if log_prob is None:
        return "–", "none"
    # No minus before a zero.
    bits = abs(log_prob) / math.log(2)
    if math.isnan(bits):
        # A model that has come to nothing.
        return "NaN", "none"
    return "∞" if math.isinf(bits) else f"{bits:.1f}", f"b{shade_of(bits)}"


def shade_of(bits: float) -> int:
    """The number of a surprisal's shade."""
    return int(min(bits / BITS_PER_SHADE, SHADES - 1))


def probability_in_words(probability: float) -> str:
    """A probability as it is read: `12 %`, or `1 in 48,000`."""
    if math.isnan(probability):
        return "NaN"
    if probability >= 0.001:
        return f"{100 * probability:.2g} %" if probability < 0.995 else f"{100 * probability:.3g} %"
    if probability < 1e-12:
        return "less than 1 in 10¹²"
    return f"1 in {float(f'{1 / probability:.3g}'):,.0f}"
