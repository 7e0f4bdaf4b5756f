"""
Sentences with how surprising each word is, as text: the words stand in their own script and order,
can be copied, and have what else there is to say about them in a note that opens at a touch.
"""

import math
from dataclasses import dataclass

from transformer_elmo.commands.report.style import BITS_PER_SHADE, BY_DAY, shade_of
from transformer_elmo.commands.report.text import (
    code_points,
    cut,
    direction_of,
    escaped,
    is_invisible,
)
from transformer_elmo.inference.scores import SentenceScores, WordScores

MOST_WORDS = 200
"""Of a longer sentence, so many are shown."""

LONGEST_WORD = 60
"""In characters; of a longer word, the beginning is shown."""

BEFORE, AFTER = "given the words before", "given the words after"

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


def scale() -> str:
    """What the shades mean."""
    names = [
        f"{BITS_PER_SHADE * number}–{BITS_PER_SHADE * (number + 1)}"
        for number in range(len(BY_DAY) - 1)
    ]
    names.append(f"{BITS_PER_SHADE * len(names)} +")
    cells = "".join(f'<span class="n b{number}">{name}</span>' for number, name in enumerate(names))
    return f'<div class="scale"><span class="muted">bits</span>{cells}</div>'


def heat_map(passage: Passage, number: int) -> str:
    """`number`: among those of the page, from 1."""
    scores = passage.scores
    words = passage.words
    direction = direction_of(words) or "ltr"
    shown = min(len(words), MOST_WORDS)
    places = [*range(passage.first + shown)]
    notes = []
    if math.isfinite(scores.perplexity):
        notes.append(f"perplexity {scores.perplexity:,.1f}")
    if shown < len(words):
        notes.append(f"the first {shown} of its {len(words):,} words")
    else:
        places += range(passage.end, len(scores.tokens))
    two = "" if scores.backward is None else " two"
    cells = " ".join(_cell(passage, place, direction, f"s{number}w{place}") for place in places)
    return (
        f'<section class="sentence"><header><h3>Sentence {number}</h3>'
        f'<span class="muted">{", ".join(notes)}</span></header>\n'
        # Whose language it is, nobody has said.
        f'<div class="words{two}" dir="{direction}" lang="">{_key(scores)} {cells}</div></section>'
    )


def _views(scores: SentenceScores) -> list[tuple[str, WordScores]]:
    views = [(BEFORE, scores.forward)]
    return views if scores.backward is None else [*views, (AFTER, scores.backward)]


def _key(scores: SentenceScores) -> str:
    """What the rows of numbers are, at the sentence's beginning."""
    rows = _rows([(name, "") for name, _ in _views(scores)])
    return f'<span class="w key" dir="ltr" lang="en"><span class="c">&nbsp;{rows}</span></span>'


def _rows(cells: list[tuple[str, str]]) -> str:
    """What stands under a word, one or two texts and the names of their looks."""
    places = ["upper", "lower"][-len(cells) :]
    return "".join(
        f'<span class="n {place} {look}">{text}</span>'
        for place, (text, look) in zip(places, cells)
    )


def _cell(passage: Passage, place: int, direction: str, name: str) -> str:
    scores = passage.scores
    token = scores.tokens[place]
    inside = passage.first <= place < passage.end
    unknown = inside and scores.out_of_vocabulary[place]
    numbers = _rows([_number(view.log_probs[place]) for _, view in _views(scores)])
    dagger = '<sup class="outside">†</sup>' if unknown else ""
    return (
        f'<span class="w{"" if inside else " edge"}" tabindex="0" role="group" '
        f'aria-describedby="{name}"><span class="c">{_word(token, direction)}{dagger}{numbers}'
        f"</span>{_detail(scores, place, name, unknown)}</span>"
    )


def _word(token: str, direction: str = "ltr", attributes: str = "") -> str:
    """A word within text of a direction, kept apart from it."""
    text = cut(token, LONGEST_WORD)
    if is_invisible(token):
        text = code_points(token[:8]) or "(empty)"
    # A bracket or a number has no direction but that of the sentence around it.
    own = "" if direction_of([text]) or direction == "ltr" else f' dir="{direction}"'
    return f"<bdi{own}{attributes}>{escaped(text)}{_rest(token)}</bdi>"


def _quoted(token: str) -> str:
    """A word within English."""
    return _word(token, attributes=' lang=""')


def _rest(token: str) -> str:
    return "…" if len(cut(token, LONGEST_WORD)) < len(token) else ""


def _number(log_prob: float | None) -> tuple[str, str]:
    """A surprisal, and its shade."""
    if log_prob is None:
        return "–", "none"
    # No minus before a zero.
    bits = abs(log_prob) / math.log(2)
    if math.isnan(bits):
        # A model that has come to nothing.
        return "NaN", "none"
    return "∞" if math.isinf(bits) else f"{bits:.1f}", f"b{shade_of(bits)}"


def _detail(scores: SentenceScores, place: int, name: str, unknown: bool) -> str:
    token = scores.tokens[place]
    lines = [f'<span class="title">{_quoted(token)}</span>']
    if _rest(token):
        lines.append(f"<span>The beginning of a word of {len(token):,} characters.</span>")
    if unknown:
        lines.append("<span>Outside the vocabulary: the numbers are those of any such word.</span>")
    views = " ".join(
        f'<span class="view"><span>{label}</span> {_view(view, place, token)}</span>'
        for label, view in _views(scores)
    )
    return (
        f'<span class="d" role="tooltip" id="{name}" dir="ltr" lang="en">{" ".join(lines)} '
        f'<span class="views">{views}</span></span>'
    )


def _view(view: WordScores, place: int, token: str) -> str:
    log_prob, rank = view.log_probs[place], view.ranks[place]
    if log_prob is None:
        return "<span>There are none.</span>"
    numbers = f"{probability_in_words(math.exp(log_prob))}, rank {rank:,}"
    likeliest = " ".join(
        f'<span class="top{" here" if word == token else ""}">{_candidate(word)} '
        f"<span>{probability_in_words(probability)}</span></span>"
        for word, probability in (view.top[place] if view.top else None) or []
    )
    title = ' <span class="muted">likeliest:</span> ' if likeliest else ""
    return f"<span>{numbers}</span>{title}{likeliest}"


def _candidate(word: str) -> str:
    return "<i>an unknown word</i>" if word in _UNKNOWN_WORDS else _quoted(word)


def probability_in_words(probability: float) -> str:
    """A probability as it is read: `12 %`, or `1 in 48,000`."""
    if math.isnan(probability):
        return "NaN"
    if probability >= 0.001:
        return f"{100 * probability:.2g} %" if probability < 0.995 else f"{100 * probability:.3g} %"
    if probability < 1e-12:
        return "less than 1 in 10¹²"
    return f"1 in {float(f'{1 / probability:.3g}'):,.0f}"
