"""The sentences of the heat maps: found in a text, and scored by the model."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from transformer_elmo.commands.report.page import Passage
from transformer_elmo.errors import ConfigurationError, first_line
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.text.corpus import find_shards, read_sentences

logger = logging.getLogger(__name__)

# Sentences shorter than that say little, longer ones fill a page each.
SHOWN_LENGTHS = range(6, 29)
# So many lines are looked through for them.
LOOKED_THROUGH = 1000

# How many of the likeliest words are named.
TOP_K = 5

_NO_HEAT_MAPS = "There are no heat maps"


class MissingPartError(Exception):
    """A part of the report can't be made. The message says why; the rest of it is all right."""


@contextmanager
def else_missing(reason: str, *errors: type[Exception]) -> Iterator[None]:
    """Has `errors` leave the block as `MissingPartError`, in one line that begins with `reason`."""
    try:
        yield
    except errors as error:
        logger.debug("%s", reason, exc_info=True)
        raise MissingPartError(f"{reason}: {first_line(error)}") from error


def passages_of(
    model: Path, text: Any, is_asked_for: bool, count: int, device: int
) -> list[Passage]:
    """
    `model`: a language model, in an archive or a folder. `text`: a path, or whatever else a config
    names its data by; `None` if there is none. `is_asked_for`: whether the user has named it: then
    its first sentences are shown, whatever they are, and it is an error if it can't be read.
    `device`: a GPU's number, or -1. Raises `MissingPartError` if the model or the text can't be
    opened.
    """
    if not text:
        raise MissingPartError(
            f"{_NO_HEAT_MAPS}: the config has no validation data. Name a text with --sentences."
        )
    text_errors = () if is_asked_for else (ConfigurationError, OSError)
    # Before minutes go into opening a model.
    with else_missing(f"{_NO_HEAT_MAPS}, because the validation data isn't here", *text_errors):
        shards = find_shards(text)
    # AllenNLP and the classes that a config names raise whatever they like.
    with else_missing(f"{_NO_HEAT_MAPS}, because the language model can't be opened", Exception):
        elmo = TransformerElmo.from_archive(model, device=device)
    lines = (line for shard in shards for line in read_sentences(shard))
    sentences = filter(None, map(elmo.words, lines))
    choose = islice if is_asked_for else worth_showing
    with else_missing(f"{_NO_HEAT_MAPS}, because the validation data can't be read", *text_errors):
        chosen = list(choose(sentences, count))
    if not chosen:
        raise MissingPartError(f"{_NO_HEAT_MAPS}: there is no sentence in {text}.")
    with else_missing(f"{_NO_HEAT_MAPS}: the model gives no probabilities", ConfigurationError):
        scored = elmo.score(chosen, top_k=TOP_K)
    first, _ = elmo.num_boundaries
    return [Passage(scores, first, first + len(words)) for scores, words in zip(scored, chosen)]


def worth_showing(sentences: Iterable[list[str]], count: int) -> list[list[str]]:
    """
    `sentences`: their words. Returns the first of middle length. If there are too few, as in a text
    that nobody has split into words, others make up for them.
    """
    looked_at = list(islice(sentences, LOOKED_THROUGH))
    return sorted(looked_at, key=lambda words: len(words) not in SHOWN_LENGTHS)[:count]
