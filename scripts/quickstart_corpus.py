"""
Makes the quickstart's data out of text that every Python ships, or out of one's own.

Writes, under OUTPUT: `train/` (shards, one tokenized sentence a line), `heldout.txt`, `vocabulary/`
(as AllenNLP keeps one), and `truecase/{train,heldout}.txt`, lower-cased words with the case they
had as their tag.
"""

import argparse
import random
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text.corpus import find_shards, read_sentences
from transformer_elmo.text.vocabulary import write_vocabulary

NUM_SHARDS = 4
HELDOUT_SHARE = 0.1
# Rarer words become the unknown word in what is predicted; their characters are read all the same.
MIN_COUNT = 2
# About what Python's documentation has. More would take longer than a quickstart should.
MAX_WORDS = 65_000

# Vowel signs and accents that follow a letter, and the invisible joiners, are parts of a word.
_MARKS = "".join(
    c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] == "M"
)
_LETTER = rf"[\w{_MARKS}\u200c\u200d]"
_WORDS = re.compile(rf"{_LETTER}+(?:['-]{_LETTER}+)*|[^\w\s]")
_CHARACTERS = re.compile(rf"[A-Za-zÀ-ɏ]+|\d+|\w[{_MARKS}\u200c\u200d]*|[^\w\s]")


def python_documentation() -> Iterable[str]:
    """The prose of Python's language reference, sentence by sentence."""
    from pydoc_data.topics import topics

    for _, text in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", text):
            # Grammar, tables and code aren't prose.
            if re.search(r"::=|={4,}|-{4,}|>>>", paragraph) or paragraph.startswith("    "):
                continue
            yield from re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", " ".join(paragraph.split()))


def own_text(corpus: str) -> Iterable[str]:
    """One sentence a line, tokenized or not."""
    for shard in find_shards(corpus):
        for sentence in read_sentences(shard):
            yield sentence if isinstance(sentence, str) else " ".join(sentence)


def words(sentence: str) -> list[str]:
    """Words and marks of a language that puts spaces between words."""
    return _WORDS.findall(sentence)


def characters(sentence: str) -> list[str]:
    """Of one that doesn't, such as Chinese: each character, but whole numbers and Latin words."""
    return _CHARACTERS.findall(sentence)


def splitter(sentences: list[str]) -> Callable[[str], list[str]]:
    """How to split these sentences: by whether most of them have a space within."""
    spaced = sum(bool(re.search(r"\w\s+\w", sentence)) for sentence in sentences)
    return words if 2 * spaced >= len(sentences) else characters


def limited(sentences: Iterable[list[str]]) -> list[str]:
    """Different sentences of four words or more, up to about `MAX_WORDS`; the rest isn't read."""
    kept: dict = {}
    num_words = 0
    for sentence in sentences:
        # A sentence twice could stand on both sides of the split.
        line = " ".join(sentence)
        if len(sentence) > 3 and line not in kept:
            kept[line] = None
            num_words += len(sentence)
            if num_words >= MAX_WORDS:
                print(f"The first {num_words} words of the text are used; the config takes any.")
                break
    return list(kept)


def case_of(word: str) -> str:
    if word == word.lower():
        return "lower"
    if word == word.upper():
        return "UPPER"
    return "Title" if word == word.capitalize() else "miXed"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--corpus", help="file, folder or glob: one sentence a line")
    arguments = parser.parse_args()

    try:
        raw = iter(own_text(arguments.corpus) if arguments.corpus else python_documentation())
        first = list(islice(raw, 200))
        sentences = limited(map(splitter(first), chain(first, raw)))
    except ConfigurationError as error:
        raise SystemExit(f"quickstart: {error}") from None
    if len(sentences) < 100:
        raise SystemExit(
            "quickstart: expected at least 100 different sentences of four words or more, one a "
            f"line; found {len(sentences)} in {arguments.corpus or 'pydoc_data.topics'}."
        )
    random.Random(0).shuffle(sentences)
    split = int(len(sentences) * HELDOUT_SHARE)
    heldout, train = sentences[:split], sentences[split:]

    shutil.rmtree(arguments.output, ignore_errors=True)
    for shard in range(NUM_SHARDS):
        write_lines(arguments.output / "train" / f"shard-{shard}.txt", train[shard::NUM_SHARDS])
    write_lines(arguments.output / "heldout.txt", heldout)

    num_words = sum(len(line.split()) for line in train)
    vocabulary = arguments.output / "vocabulary"
    size = write_vocabulary(arguments.output / "train", vocabulary, MIN_COUNT, quiet=True)

    for name, part in (("train", train), ("heldout", heldout)):
        write_lines(
            arguments.output / "truecase" / f"{name}.txt",
            (" ".join(f"{w.lower()}###{case_of(w)}" for w in line.split()) for line in part),
        )
    print(
        f"{len(train)} sentences of {num_words} words to train on, {len(heldout)} held out, "
        f"a vocabulary of {size}."
    )


if __name__ == "__main__":
    main()
