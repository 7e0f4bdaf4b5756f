"""`transformer-elmo compare`: two language models on one text."""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transformer_elmo.commands.arguments import (
    MODEL_HELP,
    add,
    add_model_options,
    check_output,
    check_top_k,
    file_of,
    model_options,
)
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import json_text, write_text
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.inference.evaluation import perplexity
from transformer_elmo.inference.scores import SentenceScores
from transformer_elmo.text.corpus import Sentence, find_shards, read_sentences

DESCRIPTION = """
Two language models on one text, whatever their vocabularies: the perplexity over the words that
both know, with a 95 % interval for the difference (paired bootstrap over sentences, Koehn 2004),
the words that differ most, and the bits per character of the whole text with unknown words spelled
out.
"""

SAMPLES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help=MODEL_HELP)
    parser.add_argument("second", metavar="B", help="likewise")
    parser.add_argument(
        "text",
        metavar="TEXT",
        help="a file, directory or glob, a sentence a line; - for the standard input",
    )
    parser.add_argument(
        "--top-k", type=int, default=10, help="words to name on either side (default: 10)"
    )
    parser.add_argument(
        "--output-file", type=Path, help="everything as JSON, all words that both know among it"
    )
    add(parser, "--force")
    add_model_options(parser)


class Word(NamedTuple):
    """
    `times`: predictions of it, of both directions. `gain`: how much likelier the second model finds
    it: the mean difference of its log-probability, in nats.
    """

    word: str
    times: int
    gain: float


class Comparison(NamedTuple):
    """
    `perplexities`: over predictions of words that both vocabularies have. `ratio`: the second one
    over the first one. `interval`: of the ratio: 95 % of the bootstrap's samples.
    `num_shared_words`: how many words the vocabularies share. `words`: by falling `times * gain`:
    what the second model has gained most on comes first. `bits_per_character`: `None` where a
    model's text has no boundary tokens.
    """

    perplexities: tuple[float, float]
    ratio: float
    interval: tuple[float, float]
    num_predictions: int
    num_sentences: int
    num_shared_words: int
    words: list[Word]
    bits_per_character: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """For `json`."""
        return {**self._asdict(), "words": [word._asdict() for word in self.words]}


def run(args: argparse.Namespace) -> None:
    check_top_k(args)
    check_output(args.output_file, args.force)
    options = model_options(args)
    models = [TransformerElmo.open(path, **options) for path in (args.first, args.second)]
    with file_of(args.text) as (text, _):
        found = compare(models[0], models[1], text)
    print(report(found, (args.first, args.second), args.top_k))
    if args.output_file is not None:
        write_text(args.output_file, json_text(found.to_json(), indent=1) + "\n")


def compare(first: TransformerElmo, second: TransformerElmo, text: str) -> Comparison:
    """
    `text`: what :func:`~transformer_elmo.text.corpus.find_shards` takes. Raises
    `ConfigurationError` if they split a line differently, or there is no word that both know.
    """
    shared = set(first.vocab.words) & set(second.vocab.words)
    shared -= {first.vocab.unknown_word, second.vocab.unknown_word}
    sums: list[tuple[float, float, int]] = []
    gains: dict[str, list[float]] = defaultdict(list)
    numbered = enumerate(_sentences(text), start=1)
    streams = (model.score_stream(_sentences(text)) for model in (first, second))
    for (number, line), *scores in zip(numbered, *streams):
        one, two = (_said(model, said) for model, said in zip((first, second), scores))
        if one.words != two.words:
            raise ConfigurationError(
                f"The models split sentence {number} of {text} differently: {one.words!r:.60} and "
                f"{two.words!r:.60} of {line!r:.60}. Only models that read alike can be compared."
            )
        pairs = list(_pairs(one, two, shared))
        for word, before, after in pairs:
            gains[word].append(after - before)
        sums.append((sum(p[1] for p in pairs), sum(p[2] for p in pairs), len(pairs)))
    totals = np.asarray(sums, dtype=np.float64).reshape(-1, 3)
    if not totals[:, 2].sum():
        raise ConfigurationError(
            f"{text} has no word that both models know: their vocabularies share {len(shared):,} "
            "words."
        )
    log_probs = totals.sum(0)
    words = [Word(word, len(found), float(np.mean(found))) for word, found in gains.items()]
    return Comparison(
        (perplexity(log_probs[0], int(log_probs[2])), perplexity(log_probs[1], int(log_probs[2]))),
        _ratio(log_probs),
        _interval(totals),
        int(log_probs[2]),
        len(sums),
        len(shared),
        sorted(words, key=lambda word: -word.times * word.gain),
        _bits(first, second, text),
    )


def _sentences(text: str) -> Iterator[Sentence]:
    return (line for shard in find_shards(text) for line in read_sentences(shard))


class _Said(NamedTuple):
    """What a model says of a sentence without its boundary tokens, from one side or from both."""

    words: list[str]
    unknown: list[bool]
    log_probs: list[list[float | None]]


def _said(model: TransformerElmo, scores: SentenceScores) -> _Said:
    start, end = model.num_boundaries
    inside = slice(start, len(scores.tokens) - end)
    views = [view.log_probs[inside] for view in (scores.forward, scores.backward) if view]
    return _Said(scores.tokens[inside], scores.out_of_vocabulary[inside], views)


def _pairs(one: _Said, two: _Said, shared: set[str]) -> Iterator[tuple[str, float, float]]:
    """Words that both know, with what either model says of each, where both say something."""
    for views in zip(one.log_probs, two.log_probs):
        for word, *unknown, before, after in zip(one.words, one.unknown, two.unknown, *views):
            if word in shared and not any(unknown) and before is not None and after is not None:
                yield word, before, after


def _ratio(sums: NDArray[np.float64]) -> float:
    return float(np.exp((sums[0] - sums[1]) / sums[2]))


def _interval(totals: NDArray[np.float64]) -> tuple[float, float]:
    """Sentences are drawn with replacement, the same ones for both models."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(SAMPLES):
        sums = totals[rng.integers(len(totals), size=len(totals))].sum(0)
        if sums[2]:
            ratios.append(_ratio(sums))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def _bits(first: TransformerElmo, second: TransformerElmo, text: str) -> tuple[float, float] | None:
    if not all(model.num_boundaries == (1, 1) for model in (first, second)):
        return None
    found = [model.evaluate(text, bits_per_character=True) for model in (first, second)]
    return found[0]["bits_per_character"], found[1]["bits_per_character"]


def report(found: Comparison, names: Sequence[str], top_k: int) -> str:
    """What the command prints."""
    low, high = found.interval
    clear = "" if low > 1 or high < 1 else ", so that either may be the better one"
    lines = [
        f"A  {names[0]}",
        f"B  {names[1]}",
        f"{found.num_sentences:,} sentences, {found.num_predictions:,} predictions of words that "
        f"both know; their vocabularies share {found.num_shared_words:,}",
        "",
        f"{'':24}{'A':>10}{'B':>10}",
        f"{'perplexity':24}{found.perplexities[0]:10.2f}{found.perplexities[1]:10.2f}",
    ]
    if found.bits_per_character is not None:
        one, two = found.bits_per_character
        lines.append(f"{'bits per character':24}{one:10.4f}{two:10.4f}")
    lines += [
        "",
        f"B's perplexity is {found.ratio:.3f} of A's (95 %: {low:.3f} to {high:.3f}){clear}.",
    ]
    for title, words in (
        ("Better with B", [w for w in found.words if w.gain > 0][:top_k]),
        ("Better with A", [w for w in reversed(found.words) if w.gain < 0][:top_k]),
    ):
        if words:
            lines += ["", f"{title:24}{'times':>10}{'as likely':>10}"]
            lines += [f"{w.word:24}{w.times:10,}{math.exp(w.gain):10.2f}" for w in words]
    return "\n".join(lines)
