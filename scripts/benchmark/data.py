"""
Measures the data path: text on disk to padded tensors with character ids, on one core, beside the
pipeline of allennlp-models (if it is installed), on the same text with the same vocabulary.

    python scripts/benchmark/data.py                            # synthetic text, 793,471 words
    python scripts/benchmark/data.py --corpus 'shards/*' --vocabulary VOCABULARY_FOLDER

The synthetic text has the billion-word benchmark's number of distinct words, with Zipf's
frequencies, word lengths that grow as words get rarer, 25 words a sentence, and 0.4 % of words
outside the vocabulary.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import numpy as np

# This repository's package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

VOCABULARY_SIZE = 793_471
MAX_TOKENS = 2000
# Four shards of the billion-word benchmark have 31 million words; these are a tenth, which is
# enough for the rate to settle, and the pipeline of allennlp-models gets one hundredth of that.
SENTENCES_A_SHARD = 30_000
PEER_SENTENCES = 5_000
# What one H100 can train this model at, in tokens a second: the loader must keep up with it.
STEP_RATE = 1_000_000


def make_words(rng: np.random.Generator, number: int) -> List[str]:
    """
    Distinct pronounceable words, the short ones first on the whole.
    """
    consonants, vowels = list("bcdfghjklmnprstvwz"), list("aeiou")
    words: Dict[str, None] = dict.fromkeys([".", ",", "the", "'s", '"'])
    while len(words) < number:
        # The more words there are, the longer the next ones.
        syllables = 1 + rng.poisson(0.9 + 0.18 * np.log1p(len(words)), size=20_000)
        first, second = rng.integers(len(consonants), size=(2, syllables.sum()))
        vowel = rng.integers(len(vowels), size=syllables.sum())
        position = 0
        for count in syllables.tolist():
            word = "".join(
                consonants[first[i]] + vowels[vowel[i]] for i in range(position, position + count)
            )
            if second[position] % 2:
                word += consonants[second[position]]
            words[word] = None
            position += count
    return list(words)[:number]


def make_corpus(folder: Path, num_shards: int, sentences_a_shard: int) -> None:
    """
    Writes a vocabulary folder and the shards.
    """
    rng = np.random.default_rng(0)
    words = np.array(make_words(rng, VOCABULARY_SIZE - 3 + 20_000), dtype=object)
    known = VOCABULARY_SIZE - 3
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir()
    (vocabulary / "tokens.txt").write_text(
        "\n".join(["</S>", "<S>", "@@UNKNOWN@@", *words[:known]]) + "\n", encoding="utf-8"
    )
    (vocabulary / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")
    # Zipf's law as it is in large corpora, with a steeper tail: after the first 8,000 words,
    # frequencies fall so that the last word of the vocabulary comes 3 times in 768 million, as in
    # the billion-word benchmark.
    ranks = np.arange(1, known + 1)
    frequencies = 1 / (ranks + 2.7)
    frequencies[8000:] *= (8000 / ranks[8000:]) ** 0.75
    cumulative = np.cumsum(frequencies)
    cumulative /= cumulative[-1]
    (folder / "shards").mkdir()
    for shard in range(num_shards):
        lengths = np.clip(rng.gamma(3.2, 25 / 3.2, size=sentences_a_shard), 1, 300).astype(int)
        total = int(lengths.sum())
        ids = np.searchsorted(cumulative, rng.random(total))
        rare = rng.random(total) < 0.004
        ids[rare] = known + rng.integers(20_000, size=int(rare.sum()))
        text, position = words[ids].tolist(), 0
        with open(folder / "shards" / f"shard-{shard:03d}", "w", encoding="utf-8") as file:
            for length in lengths.tolist():
                file.write(" ".join(text[position : position + length]) + "\n")
                position += length


def measure_loader(options: argparse.Namespace) -> Dict[str, Any]:
    """
    The loader of this package.
    """
    from allennlp.data import Vocabulary
    from allennlp.data.token_indexers import ELMoTokenCharactersIndexer, SingleIdTokenIndexer
    from allennlp.data.tokenizers import WhitespaceTokenizer

    from transformer_elmo import LanguageModelingDataLoader, SimpleLanguageModelingDatasetReader

    begin = time.perf_counter()
    vocab = Vocabulary.from_files(options.vocabulary)
    loaded = time.perf_counter() - begin
    reader = SimpleLanguageModelingDatasetReader(
        WhitespaceTokenizer(),
        {"tokens": SingleIdTokenIndexer(), "token_characters": ELMoTokenCharactersIndexer()},
        max_sequence_length=400,
        start_tokens=["<S>"],
        end_tokens=["</S>"],
    )
    loader = LanguageModelingDataLoader(
        reader,
        options.corpus,
        max_tokens=MAX_TOKENS,
        distinct_words=options.distinct_words,
        quiet=True,
    )
    loader.index_with(vocab)
    begin = time.perf_counter()
    next(iter(loader))
    first_batch = time.perf_counter() - begin

    result = {"load vocabulary": loaded, "first batch": first_batch}
    num_tokens = num_padded = num_batches = 0
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for batch in loader:
        if num_batches == 0:
            # The wait for the first batch is a line of its own.
            begin_steps, waited = time.perf_counter(), loader.seconds_waited
        tokens = batch["source"]["tokens"]["tokens"]  # type: ignore[index]
        num_tokens += int(tokens.count_nonzero())
        num_padded += tokens.numel()
        num_batches += 1
        if options.step_rate:
            # A model on a device leaves this thread idle while it computes.
            time.sleep(tokens.numel() / options.step_rate)
    result["seconds"] = time.perf_counter() - begin
    result["cpu seconds"] = time.process_time() - begin_cpu
    result["waited"] = loader.seconds_waited - waited
    result["seconds of steps"] = time.perf_counter() - begin_steps
    result["tokens"] = num_tokens
    result["batches"] = num_batches
    result["padding"] = 1 - num_tokens / num_padded
    return result


def measure_peer(options: argparse.Namespace) -> Dict[str, Any]:
    """
    The reader of allennlp-models with AllenNLP's loader.
    """
    from allennlp.data import Vocabulary
    from allennlp.data.data_loaders import MultiProcessDataLoader
    from allennlp.data.samplers import MaxTokensBatchSampler
    from allennlp.data.token_indexers import ELMoTokenCharactersIndexer, SingleIdTokenIndexer
    from allennlp.data.tokenizers import WhitespaceTokenizer
    from allennlp_models.lm.dataset_readers import SimpleLanguageModelingDatasetReader

    vocab = Vocabulary.from_files(options.vocabulary)
    loader = MultiProcessDataLoader(
        SimpleLanguageModelingDatasetReader(
            WhitespaceTokenizer(),
            {"tokens": SingleIdTokenIndexer(), "token_characters": ELMoTokenCharactersIndexer()},
            max_sequence_length=400,
            start_tokens=["<S>"],
            end_tokens=["</S>"],
        ),
        options.corpus,
        batch_sampler=MaxTokensBatchSampler(MAX_TOKENS),
        max_instances_in_memory=16384,
        quiet=True,
    )
    loader.index_with(vocab)
    num_tokens = 0
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for batch in loader:
        num_tokens += int(batch["source"]["tokens"]["tokens"].count_nonzero())  # type: ignore
    return {
        "seconds": time.perf_counter() - begin,
        "cpu seconds": time.process_time() - begin_cpu,
        "tokens": num_tokens,
    }


def measure_vocabulary(options: argparse.Namespace) -> Dict[str, Any]:
    """
    Counting words.
    """
    from transformer_elmo.text.vocabulary import count_words

    begin, begin_cpu = time.perf_counter(), time.process_time()
    counts = count_words(options.corpus, quiet=True)
    return {
        "seconds": time.perf_counter() - begin,
        "cpu seconds": time.process_time() - begin_cpu,
        "tokens": sum(counts.values()),
    }


MEASUREMENTS = {
    "loader": measure_loader,
    "peer": measure_peer,
    "vocabulary": measure_vocabulary,
}


def run(measurement: str, *arguments: Any) -> Dict[str, Any]:
    """
    Runs a measurement in a process of its own, on one core, so that none has what another left
    behind.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, __file__, "--measure", measurement, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        return {"error": process.stderr.strip().splitlines()[-1]}
    result: Dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def main() -> None:
    """
    Prints the table.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", help="text of your own: a file, a directory or a glob")
    parser.add_argument("--vocabulary", help="its vocabulary folder")
    parser.add_argument("--shards", type=int, default=4, help="synthetic shards (default: 4)")
    parser.add_argument(
        "--many-shards", type=int, default=100, help="synthetic shards for memory (default: 100)"
    )
    parser.add_argument("--distinct-words", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--step-rate", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        result = MEASUREMENTS[options.measure](options)
        result["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return
    if bool(options.corpus) != bool(options.vocabulary):
        parser.error("--corpus and --vocabulary go together")
    with tempfile.TemporaryDirectory() as folder:
        report(options, Path(folder))


def report(options: argparse.Namespace, folder: Path) -> None:
    """
    Measures everything and prints the table.
    """
    many: List[Any] = []
    if options.corpus:
        corpus, vocabulary = options.corpus, options.vocabulary
    else:
        print("writing synthetic text ...", file=sys.stderr)
        make_corpus(folder, options.shards, SENTENCES_A_SHARD)
        corpus, vocabulary = folder / "shards", folder / "vocabulary"
        # Links to the same few files are as good as so many files, and take no space.
        many_folder = folder / "many"
        many_folder.mkdir()
        shards = sorted(corpus.iterdir())
        for i in range(options.many_shards):
            os.link(shards[i % len(shards)], many_folder / f"shard-{i:03d}")
        many = ["--corpus", many_folder, "--vocabulary", vocabulary]
    few = ["--corpus", corpus, "--vocabulary", vocabulary]
    sample = folder / "sample"
    copy_sentences(corpus, sample, PEER_SENTENCES)

    ours = run("loader", *few)
    distinct = run("loader", *few, "--distinct-words")
    peer = run("peer", "--corpus", sample, "--vocabulary", vocabulary)
    trained = run("loader", *few, "--step-rate", STEP_RATE)
    counted = run("vocabulary", *few)
    for result in (ours, distinct, trained, counted):
        if "error" in result:
            sys.exit(f"error: {result['error']}")

    # By the processor's time, which other programs on the machine change less than the clock's. The
    # loader's threads share the one core, so on an idle machine the two are the same.
    def rate(result: Dict[str, Any]) -> float:
        return float(result["tokens"] / result["cpu seconds"])

    rows = [
        ("this loader", f"{rate(ours):,.0f} tokens/s", f"peak {ours['peak MB']:,.0f} MB"),
        (
            "this loader, distinct words",
            f"{rate(distinct):,.0f} tokens/s",
            f"peak {distinct['peak MB']:,.0f} MB",
        ),
        (
            "counting a vocabulary",
            f"{rate(counted):,.0f} tokens/s",
            f"peak {counted['peak MB']:,.0f} MB",
        ),
    ]
    if "error" in peer:
        rows.append(("allennlp-models 2.10.1", "not measured", peer["error"]))
    else:
        rows.append(
            (
                "allennlp-models 2.10.1",
                f"{rate(peer):,.0f} tokens/s",
                f"this loader is {rate(ours) / rate(peer):,.0f} times as fast",
            )
        )
    rows += [
        (
            "vocabulary from its folder",
            f"{ours['load vocabulary']:.2f} s",
            "by AllenNLP's Vocabulary",
        ),
        ("first batch", f"{ours['first batch']:.2f} s", "with the table of words"),
        (
            f"waits at {STEP_RATE:,} tokens/s",
            f"{trained['waited'] / trained['seconds of steps']:.2%}",
            f"after the first batch, beside steps of {MAX_TOKENS / STEP_RATE * 1000:.0f} ms",
        ),
        (
            "padding",
            f"{ours['padding']:.1%}",
            f"{ours['batches']:,} batches of {MAX_TOKENS} tokens",
        ),
    ]
    if many:
        large = run("loader", *many)
        rows.append(
            (
                f"{options.many_shards} shards instead of {options.shards}",
                f"{rate(large):,.0f} tokens/s",
                f"peak {large['peak MB']:,.0f} MB, {large['peak MB'] / ours['peak MB']:.2f} times",
            )
        )
    print("| | | |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def copy_sentences(corpus: Any, target: Path, number: int) -> None:
    """
    Copies the first sentences of a corpus.
    """
    from itertools import islice

    from transformer_elmo.text.corpus import is_blank, read_lines

    sentences = (line for line in read_lines(corpus) if not is_blank(line))
    with open(target, "w", encoding="utf-8") as file:
        file.writelines(f"{sentence}\n" for sentence in islice(sentences, number))


if __name__ == "__main__":
    main()
