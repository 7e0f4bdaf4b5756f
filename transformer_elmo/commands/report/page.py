"""The report as one HTML page: functions from what is in it to text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformer_elmo.commands.report.facts import Fact
from transformer_elmo.commands.report.heat_map import Passage, heat_map, scale
from transformer_elmo.commands.report.layers import Mixture
from transformer_elmo.commands.report.style import style
from transformer_elmo.commands.report.text import escaped

# Nothing is loaded and no script is run, whatever got into the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Report:
    """
    `remarks`: what can't be shown, and why. `passages`: sentences and what a language model says of
    them. `passages_from`: where these were found. `mixtures`: the learned layer weights.
    """

    title: str
    results: list[Fact] = field(default_factory=list)
    config: list[Fact] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    passages_from: str = ""
    mixtures: list[Mixture] = field(default_factory=list)


def page(report: Report) -> str:
    """Returns one HTML file, which needs nothing beside it."""
    title = escaped(report.title)
    parts = [
        f"<h1>{title}</h1>",
        _facts(report.results, "results"),
        *(f'<p class="remark">{escaped(remark)}</p>' for remark in report.remarks),
        _passages(report.passages, report.passages_from),
        _mixtures(report.mixtures),
    ]
    if report.config:
        parts += ["<h2>Config</h2>", _facts(report.config, "config")]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main>\n</body>\n</html>\n"
    )


def _facts(facts: Sequence[Fact], kind: str) -> str:
    if not facts:
        return ""
    rows = "\n".join(
        f"<div><dt>{escaped(fact.name)}</dt><dd>{escaped(fact.value)}"
        + (f" <small>{escaped(fact.note)}</small>" if fact.note else "")
        + "</dd></div>"
        for fact in facts
    )
    return f'<dl class="{kind}">\n{rows}\n</dl>'


def _passages(passages: Sequence[Passage], source: str) -> str:
    if not passages:
        return ""
    both = any(passage.scores.backward is not None for passage in passages)
    unknown = any(any(passage.scores.out_of_vocabulary) for passage in passages)
    where = f"The sentences are from <code>{escaped(source)}</code>. " if source else ""
    numbers = (
        "The numbers under each word say how surprising it is, in bits: the upper one given the "
        "words before it, the lower one given the words after it."
        if both
        else "The number under each word says how surprising it is given the words before it, in "
        "bits."
    )
    parts = [
        "<h2>How surprising each word is</h2>",
        f"<p>{where}{numbers} One bit is a chance of one in two, 10 bits are about one in a "
        "thousand. Point at a word, tap it or go to it by the Tab key for its probability, its "
        "rank among all words and the likeliest words in its place.</p>",
    ]
    if unknown:
        parts.append(
            '<p><span class="outside">†</span> marks a word outside the vocabulary. The model '
            "predicts only that some such word comes: that is what its numbers say.</p>"
        )
    parts.append(scale())
    parts += [heat_map(passage, number) for number, passage in enumerate(passages, start=1)]
    return "\n".join(parts)


def _mixtures(mixtures: Sequence[Mixture]) -> str:
    if not mixtures:
        return ""
    return "\n".join(
        [
            "<h2>Layer weights</h2>",
            "<p>How much of each of the language model's layers the model on top of it uses. The "
            "dashed line is where all would stand if they were used alike.</p>",
            *map(_bars, mixtures),
        ]
    )


def _bars(mixture: Mixture) -> str:
    weights = mixture.weights
    # The longest bar, or the line, is as wide as there is room.
    even = 1 / len(weights)
    widest = max(*weights, even)
    rows = "\n".join(
        f'<tr><th scope="row">{name}</th><td class="num">{weight:.3f}</td>'
        f'<td class="track"><span class="bar" style="width:{100 * weight / widest:.2f}%"></span>'
        f'<span class="even" style="left:{100 * even / widest:.2f}%"></span></td></tr>'
        for name, weight in zip(layer_names(len(weights)), weights)
    )
    return (
        f'<section class="mixture"><h3>{escaped(mixture.name)}</h3>\n'
        f'<table>\n{rows}\n</table>\n<p class="muted">The sum is multiplied by '
        f"{mixture.factor:.3f}.</p></section>"
    )


def layer_names(count: int) -> list[str]:
    """What the layers are called: the words, those between, and the top."""
    names = ["words", *(f"layer {number}" for number in range(1, count))]
    return [*names[:-1], "top"] if count > 1 else names
