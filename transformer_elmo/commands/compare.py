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
    what = "a file, directory or glob, a sentence a line; - for the standard input"
    parser.add_argument("text", metavar="TEXT", help=what)
    named = "words to name on either side (default: 10)"
    parser.add_argument("--top-k", type=int, default=10, help=named)
    everything = "everything as JSON, all words that both know among it"
    parser.add_argument("--output-file", type=Path, help=everything)
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


def run(args: argparse.Namespace) -> None:
    check_output(args.output_file, args.force)
    options = model_options(args)
    first, second = (TransformerElmo.open(path, **options) for path in (args.first, args.second))
    with file_of(args.text) as (text, _):
        found = compare(first, second, text)
    print(report(found, (args.first, args.second), args.top_k))
    if args.output_file is not None:
        said: dict[str, Any] = {**found._asdict(), "words": [w._asdict() for w in found.words]}
        write_text(args.output_file, json_text(said, indent=1) + "\n")


def compare(first: TransformerElmo, second: TransformerElmo, text: str) -> Comparison:
    """
    `text`: what :func:`~transformer_elmo.text.corpus.find_shards` takes. Raises
    `ConfigurationError` if they split a line differently, or there is no word that both know.
    """
    models = (first, second)
    shared = set(first.vocab.words) & set(second.vocab.words)
    shared -= {model.vocab.unknown_word for model in models}
    sums: list[tuple[float, float, int]] = []
    gains: dict[str, list[float]] = defaultdict(list)
    numbered = enumerate(_sentences(text), start=1)
    streams = (model.score_stream(_sentences(text)) for model in models)
    for (number, line), *scores in zip(numbered, *streams):
        sides = [_words_and_views(*pair) for pair in zip(models, scores)]
        (words, views), (others, other_views) = sides
        if words != others:
            raise ConfigurationError(
                f"The models split sentence {number} of {text} differently: {words!r:.60} and "
                f"{others!r:.60} of {line!r:.60}. Only models that read alike can be compared."
            )
        before = after = 0.0
        count = 0
        for view, other_view in zip(views, other_views):
            for word, one, two in zip(words, view, other_view):
                if word in shared and one is not None and two is not None:
                    gains[word].append(two - one)
                    before, after, count = before + one, after + two, count + 1
        sums.append((before, after, count))
    totals = np.asarray(sums, dtype=np.float64).reshape(-1, 3)
    log_probs = totals.sum(0)
    num_predictions = int(log_probs[2])
    if not num_predictions:
        raise ConfigurationError(
            f"{text} has no word that both models know: their vocabularies share {len(shared):,} "
            "words."
        )
    words_found = [Word(word, len(each), float(np.mean(each))) for word, each in gains.items()]
    bits = None
    if all(model.num_boundaries == (1, 1) for model in models):
        metrics = [model.evaluate(text, bits_per_character=True) for model in models]
        bits = metrics[0]["bits_per_character"], metrics[1]["bits_per_character"]
    return Comparison(
        (perplexity(log_probs[0], num_predictions), perplexity(log_probs[1], num_predictions)),
        _ratio(log_probs),
        _interval(totals),
        num_predictions,
        len(sums),
        len(shared),
        sorted(words_found, key=lambda word: -word.times * word.gain),
        bits,
    )


def _sentences(text: str) -> Iterator[Sentence]:
    return (line for shard in find_shards(text) for line in read_sentences(shard))


def _words_and_views(
    model: TransformerElmo, scores: SentenceScores
) -> tuple[list[str], list[list[float | None]]]:
    """Without boundary tokens: words, and their log-probabilities from each side."""
    start, end = model.num_boundaries
    inside = slice(start, len(scores.tokens) - end)
    views = [view.log_probs[inside] for view in (scores.forward, scores.backward) if view]
    return scores.tokens[inside], views


def _ratio(sums: NDArray[np.float64]) -> float:
    return float(np.exp((sums[0] - sums[1]) / sums[2]))


def _interval(totals: NDArray[np.float64]) -> tuple[float, float]:
    """Sentences are drawn with replacement, the same ones for both models."""
    rng = np.random.default_rng(0)
    samples = (totals[rng.integers(len(totals), size=len(totals))].sum(0) for _ in range(SAMPLES))
    low, high = np.quantile([_ratio(sums) for sums in samples if sums[2]], [0.025, 0.975])
    return float(low), float(high)


def report(found: Comparison, names: Sequence[str], top_k: int) -> str:
    """What the command prints."""
    low, high = found.interval
    clear = "" if low > 1 or high < 1 else ", so that either may be the better one"
    one, two = found.perplexities
    lines = [
        f"A  {names[0]}",
        f"B  {names[1]}",
        f"{found.num_sentences:,} sentences, {found.num_predictions:,} predictions of words that "
        f"both know; their vocabularies share {found.num_shared_words:,}",
        "",
        f"{'':24}{'A':>10}{'B':>10}",
        f"{'perplexity':24}{one:10.2f}{two:10.2f}",
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
