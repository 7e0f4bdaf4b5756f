"""Prints what the quickstart learned beside what counting words alone would give."""

import argparse
import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Dict, List, Tuple

import torch
from allennlp.data import Token
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer

from transformer_elmo import BidirectionalLanguageModelTokenEmbedder

SENTENCE = "The statement is executed when the condition is true ."


def lines(path: Path) -> List[str]:
    return path.read_text(encoding="utf-8").splitlines()


def unigram_perplexity(data: Path) -> float:
    """
    Each word by its frequency in the training text, over the same vocabulary and the same predicted
    words as the language model: every word of a sentence and, at one end of it, a boundary.
    """
    vocabulary = lines(data / "vocabulary" / "tokens.txt")
    known = set(vocabulary)

    def predicted(sentence: str) -> List[str]:
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


def tagged(data: Path, name: str) -> List[Tuple[str, str]]:
    return [
        (word, tag)
        for line in lines(data / "truecase" / name)
        for word, tag in (pair.rsplit("###", 1) for pair in line.split())
    ]


def most_frequent_case(data: Path) -> float:
    """Tagging accuracy of giving each word the case it has most often; "lower" if it is new."""
    seen: Dict[str, Counter] = defaultdict(Counter)
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
    embedder = BidirectionalLanguageModelTokenEmbedder(archive_file=str(archive)).eval()
    tokens = [Token(word) for word in sentence.split()]
    indexed = ELMoTokenCharactersIndexer().tokens_to_indices(tokens, embedder.vocab)
    with torch.no_grad():
        vectors = embedder(torch.tensor([indexed["elmo_tokens"]]))[0]
    print(f"\nEmbedded: {sentence}\n  {len(tokens)} words, {vectors.size(-1)} numbers each.")
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    similarity = (vectors @ vectors.t()).fill_diagonal_(-1)
    nearest = similarity.argmax(-1).tolist()
    print("  " + ", ".join(f"{t.text} ~ {tokens[n].text}" for t, n in zip(tokens, nearest)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the quickstart's folder")
    run = parser.parse_args().run

    metrics = json.loads((run / "evaluation.json").read_text())
    tagger = json.loads((run / "tagger" / "metrics.json").read_text())
    nearest_words(run / "lm" / "model.tar.gz", sentence_to_embed(run / "data"))

    rows = [
        ("perplexity, held-out text", unigram_perplexity(run / "data"), metrics["perplexity"]),
        ("  left to right", None, metrics["forward_perplexity"]),
        ("  right to left", None, metrics["backward_perplexity"]),
        (
            "truecasing accuracy, held out",
            most_frequent_case(run / "data"),
            tagger["best_validation_accuracy"],
        ),
    ]
    print(f"\n{'':32}{'word counts':>14}{'Transformer ELMo':>20}")
    for name, baseline, learned in rows:
        places = 4 if learned <= 1 else 1
        shown = "" if baseline is None else f"{baseline:.{places}f}"
        print(f"{name:32}{shown:>14}{learned:>20.{places}f}")
    if len({tag for _, tag in tagged(run / "data", "train.txt")}) == 1:
        print("\nThis text has no upper and lower case, so there was nothing to tag.")


if __name__ == "__main__":
    main()
