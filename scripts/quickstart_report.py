"""Prints what the quickstart learned beside what counting words alone would give."""

import argparse
import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from transformer_elmo import TransformerElmo

SENTENCE = "The statement is executed when the condition is true ."


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def unigram_perplexity(data: Path) -> float:
    """
    Each word by its frequency in the training text, over the same vocabulary and the same predicted
    words as the language model: every word of a sentence and, at one end of it, a boundary.
    """
    vocabulary = lines(data / "vocabulary" / "tokens.txt")
    known = set(vocabulary)

    def predicted(sentence: str) -> list[str]:
        return [w if w in known else "@@UNKNOWN@@" for w in sentence.split()] + ["</S>"]

    counts: Counter = Counter()
    for shard in sorted((data / "train").iterdir()):
        for sentence in lines(shard):
            counts.update(predicted(sentence))
    # Add one, or a word that is in the vocabulary without being counted would have no chance.
    total = sum(counts.values()) + len(vocabulary)
    log_probabilities = [
        math.log((counts[word] + 1) / total)
        for sentence in lines(data / "heldout.txt")
        for word in predicted(sentence)
    ]
    return math.exp(-sum(log_probabilities) / len(log_probabilities))


def tagged(data: Path, name: str) -> list[tuple[str, str]]:
    return [
        (word, tag)
        for line in lines(data / "truecase" / name)
        for word, tag in (pair.rsplit("###", 1) for pair in line.split())
    ]


def most_frequent_case(data: Path) -> float:
    """Tagging accuracy of giving each word the case it has most often; "lower" if it is new."""
    seen: dict[str, Counter] = defaultdict(Counter)
    for word, tag in tagged(data, "train.txt"):
        seen[word][tag] += 1
    usual = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    heldout = tagged(data, "heldout.txt")
    return sum(usual.get(word, "lower") == tag for word, tag in heldout) / len(heldout)


def sentence_to_embed(data: Path) -> str:
    """One of ours if the language model has seen all its words, else one that was held out."""
    known = set(lines(data / "vocabulary" / "tokens.txt"))
    if known.issuperset(SENTENCE.split()):
        return SENTENCE
    heldout = lines(data / "heldout.txt")
    return next((line for line in heldout if 6 <= len(line.split()) <= 12), heldout[0])


def nearest_words(archive: Path, sentence: str) -> None:
    """Embeds a sentence, and for each of its words names the other one that is nearest to it."""
    words = sentence.split()
    (vectors,) = TransformerElmo.open(archive).embed([words])
    print(f"\nEmbedded: {sentence}\n  {len(words)} words, {vectors.shape[-1]} numbers each.")
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    nearest = similarity.argmax(-1)
    print("  " + ", ".join(f"{word} ~ {words[other]}" for word, other in zip(words, nearest)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the quickstart's folder")
    run = parser.parse_args().run

    metrics = json.loads((run / "evaluation.json").read_text())
    tagger = json.loads((run / "tagger" / "metrics.json").read_text())
    nearest_words(run / "lm" / "model.tar.gz", sentence_to_embed(run / "data"))

    accuracy, usual = tagger["best_validation_accuracy"], most_frequent_case(run / "data")
    print(f"\n{'':32}{'word counts':>14}{'Transformer ELMo':>20}")
    counted = unigram_perplexity(run / "data")
    print(f"{'perplexity, held-out text':32}{counted:14.1f}{metrics['perplexity']:20.1f}")
    print(f"{'  left to right':46}{metrics['forward_perplexity']:20.1f}")
    print(f"{'  right to left':46}{metrics['backward_perplexity']:20.1f}")
    print(f"{'truecasing accuracy, held out':32}{usual:14.4f}{accuracy:20.4f}")
    if len({tag for _, tag in tagged(run / "data", "train.txt")}) == 1:
        print("\nThis text has no upper and lower case, so there was nothing to tag.")


if __name__ == "__main__":
    main()
