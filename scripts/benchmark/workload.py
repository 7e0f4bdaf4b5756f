"""The texts that the benchmarks run on: real English, or the billion-word benchmark's likeness."""

import json
import pydoc_data.topics
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[2] / "training_config" / "bidirectional_language_model.jsonnet"
BILLION_WORDS = 793_471
SPECIAL = ["</S>", "<S>", "@@UNKNOWN@@"]


def experiment(small: bool = False) -> dict[str, Any]:
    """The billion-word run's config, nothing shrunk unless this is a rehearsal."""
    import _jsonnet

    variables = {"BIDIRECTIONAL_LM_TRAIN_PATH": "text", "BIDIRECTIONAL_LM_VOCAB_PATH": "vocabulary"}
    config: dict[str, Any] = json.loads(_jsonnet.evaluate_file(str(CONFIG), ext_vars=variables))
    if small:
        model = config["model"]
        model["num_samples"] = 64
        model["contextualizer"].update(input_dim=32, hidden_dim=64, num_layers=2)
        characters = model["text_field_embedder"]["token_embedders"]["token_characters"]
        characters["encoder"].update(filters=[[1, 8], [2, 8], [3, 16]], projection_dim=32)
    return config


def describe(device: Any) -> str:
    """The machine, with PyTorch's and Python's versions."""
    import torch

    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if gpu else torch.backends.cpu.get_cpu_capability()
    versions = f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    return f"{name}, {torch.get_num_threads()} threads, {versions}"


def python_help() -> list[str]:
    """Sentences of the prose that every Python carries, tokenized."""
    found = []
    for topic in pydoc_data.topics.topics.values():
        for paragraph in re.split(r"\n\s*\n", topic):
            for sentence in re.split(r"(?<=[.!?:])\s+", " ".join(paragraph.split())):
                words = re.findall(r"\w+(?:'\w+)?|[^\w\s]", sentence)
                # What is longer is a table or a grammar.
                if 2 < len(words) <= 100:
                    found.append(" ".join(words))
    return found


def write_vocabulary(folder: Path, words: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokens.txt").write_text("".join(f"{w}\n" for w in SPECIAL + words), "utf-8")
    (folder / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")


def write_real(folder: Path, corpus: Path | None, size: int) -> None:
    """`text` and `vocabulary`: its words by falling frequency, filled up with made-up ones."""
    lines = python_help() if corpus is None else corpus.read_text("utf-8").splitlines()
    (folder / "text").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    known = [word for word, _ in Counter(" ".join(lines).split()).most_common(size - 4)]
    fillers = [f"filler{number}" for number in range(size - 4 - len(known))]
    write_vocabulary(folder / "vocabulary", known + fillers)


def _words(rng: Any, number: int) -> list[str]:
    """Distinct pronounceable words, the short ones first on the whole."""
    import numpy as np

    consonants, vowels = list("bcdfghjklmnprstvwz"), list("aeiou")
    words: dict[str, None] = dict.fromkeys([".", ",", "the", "'s", '"'])
    while len(words) < number:
        # The more words there are, the longer the next ones.
        syllables = 1 + rng.poisson(0.9 + 0.18 * np.log1p(len(words)), size=20_000)
        first, last = rng.integers(len(consonants), size=(2, syllables.sum()))
        vowel = rng.integers(len(vowels), size=syllables.sum())
        begin = 0
        for end in np.cumsum(syllables).tolist():
            word = "".join(consonants[first[i]] + vowels[vowel[i]] for i in range(begin, end))
            words[word + consonants[last[begin]] * (last[begin] % 2)] = None
            begin = end
    return list(words)[:number]


def write_synthetic(folder: Path, shards: int, sentences: int, size: int = BILLION_WORDS) -> None:
    """
    `shards` and `vocabulary`, with the billion-word benchmark's number of distinct words, Zipf's
    frequencies, word lengths that grow as words get rarer, 25 words a sentence, and 0.4 % of words
    outside the vocabulary.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    known = size - 3
    words = np.array(_words(rng, known + 20_000), dtype=object)
    write_vocabulary(folder / "vocabulary", words[:known].tolist())
    # After the first 8,000 words, frequencies fall so that the last word of the vocabulary comes 3
    # times in 768 million.
    ranks = np.arange(1, known + 1)
    frequencies = 1 / (ranks + 2.7)
    frequencies[8000:] *= (8000 / ranks[8000:]) ** 0.75
    cumulative = np.cumsum(frequencies) / frequencies.sum()
    (folder / "shards").mkdir()
    for shard in range(shards):
        lengths = np.clip(rng.gamma(3.2, 25 / 3.2, size=sentences), 1, 300).astype(int)
        ids = np.searchsorted(cumulative, rng.random(lengths.sum()))
        rare = rng.random(len(ids)) < 0.004
        ids[rare] = known + rng.integers(20_000, size=int(rare.sum()))
        lines = np.split(words[ids], np.cumsum(lengths)[:-1])
        text = "".join(f"{' '.join(line)}\n" for line in lines)
        (folder / "shards" / f"shard-{shard:03d}").write_text(text, "utf-8")
