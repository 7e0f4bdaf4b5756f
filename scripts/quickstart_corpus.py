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
from collections import Counter
from pathlib import Path
from typing import Iterable, List

from transformer_elmo.data.corpus import find_shards, read_sentences

NUM_SHARDS = 4
HELDOUT_SHARE = 0.1
# Rarer words become the unknown word in what is predicted; their characters are read all the same.
MIN_COUNT = 2


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
        yield from read_sentences(shard)


def words(sentence: str) -> List[str]:
    return re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", sentence)


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

    raw = own_text(arguments.corpus) if arguments.corpus else python_documentation()
    # A sentence twice could stand on both sides of the split.
    sentences = list(dict.fromkeys(" ".join(words(sentence)) for sentence in raw))
    sentences = [sentence for sentence in sentences if len(sentence.split()) > 3]
    if len(sentences) < 100:
        raise SystemExit(
            f"quickstart needs at least 100 different sentences of four words or more, one a line; "
            f"found {len(sentences)} in {arguments.corpus or 'pydoc_data.topics'}."
        )
    random.Random(0).shuffle(sentences)
    split = int(len(sentences) * HELDOUT_SHARE)
    heldout, train = sentences[:split], sentences[split:]

    shutil.rmtree(arguments.output, ignore_errors=True)
    for shard in range(NUM_SHARDS):
        write_lines(arguments.output / "train" / f"shard-{shard}.txt", train[shard::NUM_SHARDS])
    write_lines(arguments.output / "heldout.txt", heldout)

    counts = Counter(word for sentence in train for word in sentence.split())
    kept = sorted((w for w, n in counts.items() if n >= MIN_COUNT), key=lambda w: (-counts[w], w))
    folder = arguments.output / "vocabulary"
    write_lines(folder / "tokens.txt", ["</S>", "<S>", "@@UNKNOWN@@", *kept])
    write_lines(folder / "non_padded_namespaces.txt", ["*labels", "*tags"])

    for name, part in (("train", train), ("heldout", heldout)):
        write_lines(
            arguments.output / "truecase" / f"{name}.txt",
            (" ".join(f"{w.lower()}###{case_of(w)}" for w in line.split()) for line in part),
        )
    num_words = sum(counts.values())
    print(
        f"{len(train)} sentences of {num_words} words to train on, {len(heldout)} held out, "
        f"a vocabulary of {len(kept) + 3}."
    )


if __name__ == "__main__":
    main()
