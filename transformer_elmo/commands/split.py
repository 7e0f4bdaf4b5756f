"""`transformer-elmo split`: raw text, one sentence a line, by spaCy's rules."""

import argparse
import json
from collections.abc import Iterable, Iterator
from typing import Any

from transformer_elmo.commands.arguments import add, check_output, sentences_of
from transformer_elmo.commands.score import write_lines
from transformer_elmo.errors import ConfigurationError, first_line, needed
from transformer_elmo.text.corpus import TextOrWords, has_json, is_blank

DESCRIPTION = """
Split raw text as vocab, training and all other commands want it: one sentence a line, with spaces
between words and punctuation. spaCy's rules for the language do it, without a trained model.
"""

# spaCy takes all of a text into memory, and refuses a million characters.
MOST_CHARACTERS = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    raw = (
        "text in UTF-8, or JSON with a text as text, one a line: a file, directory or glob; may be "
        "compressed; - for the standard input"
    )
    parser.add_argument("raw", metavar="RAW", help=raw)
    language = "a code of spaCy's, such as en or de (default: xx, rules for any language)"
    parser.add_argument("--language", metavar="CODE", default="xx", help=language)
    wrapped = "sentences go on in the next line, and a blank line ends a paragraph"
    parser.add_argument("--wrapped", action="store_true", help=wrapped)
    add(parser, "--input-format", "--output-file", "--force")


def run(args: argparse.Namespace) -> None:
    check_output(args.output_file, args.force)
    rules = rules_of(args.language)
    lines = lines_in(sentences_of(args.raw, args.input_format))
    texts = texts_in(lines, args.wrapped)
    write_lines(args.output_file, (line for text in texts for line in sentences_in(rules(text))))


def rules_of(language: str) -> Any:
    """spaCy's tokenizer and rules for the ends of sentences, from a text to its words."""
    spacy = needed("spacy", "Splitting raw text")
    try:
        rules = spacy.blank(language)
    except ImportError as error:
        raise ConfigurationError(
            f"spaCy has no rules for {language!r}, or they need another package "
            f"({first_line(error)}). Take another --language: xx has rules for any."
        ) from None
    rules.add_pipe("sentencizer")
    tokenizer = rules.tokenizer
    if hasattr(tokenizer, "suffix_search"):
        # Letters that spaCy's rules don't know, such as Georgian ones; and text without spaces.
        suffix = rf"(?<=[^\W\d_{spacy.lang.char_classes.ALPHA}])\."
        suffixes, infixes = rules.Defaults.suffixes or (), rules.Defaults.infixes or ()
        tokenizer.suffix_search = spacy.util.compile_suffix_regex([*suffixes, suffix]).search
        tokenizer.infix_finditer = spacy.util.compile_infix_regex([*infixes, "[。！？]"]).finditer
    return rules


def sentences_in(document: Any) -> Iterator[str]:
    """The sentences of what spaCy makes of a text, words with spaces between them."""
    starts = [sentence.start for sentence in document.sents]
    for number, start in enumerate(starts[1:], start=1):
        # A quotation mark that opens a sentence counts as the end of the one before.
        before, last = document[start - 2], document[start - 1]
        starts[number] -= last.is_punct and bool(before.whitespace_) and not last.whitespace_
    for start, end in zip(starts, [*starts[1:], len(document)]):
        if words := [token.text for token in document[start:end] if not token.is_space]:
            line = " ".join(words)
            # What would be read as JSON is written as such.
            yield json.dumps(words, ensure_ascii=False) if has_json(line) else line


def lines_in(sentences: Iterable[TextOrWords]) -> Iterator[str]:
    """Lines of raw text: a text of JSON may have several."""
    for sentence in sentences:
        text = sentence if isinstance(sentence, str) else " ".join(sentence)
        yield from text.split("\n")


def texts_in(lines: Iterable[str], wrapped: bool) -> Iterator[str]:
    """Lines, or with `wrapped` the paragraphs that they make; long ones in parts."""
    text = ""
    for line in lines:
        if wrapped and text and not is_blank(line) and len(text) < MOST_CHARACTERS:
            text += f" {line}"
        else:
            yield from _parts(text)
            text = line
    yield from _parts(text)


def _parts(text: str) -> Iterator[str]:
    """A text, cut at spaces, if it has any, where it is too long."""
    begin = 0
    while len(text) - begin > MOST_CHARACTERS:
        end = text.rfind(" ", begin + 1, begin + MOST_CHARACTERS)
        end = begin + MOST_CHARACTERS if end < 0 else end
        yield text[begin:end]
        begin = end
    yield text[begin:]
