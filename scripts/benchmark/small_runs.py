"""Texts and small models of adaptation.py and recipe.py, and the rows that their runs leave."""

import copy
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# One core: before anything starts threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from allennlp.commands.train import train_model
from allennlp.common import Params

import transformer_elmo.plugin  # noqa: F401

CONFIGS = Path(__file__).parents[2] / "training_config"
HELDOUT, MAX_WORDS = 300, 400_000
TAGGED = {"train": 600, "validation": 150, "test": 1000}
Row = dict[str, Any]

torch.set_num_threads(1)


def tagged_brown(folder: Path) -> Iterator[list[str]]:
    """Sentences of Brown, each word with its tag: "the/at"."""
    paths = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if not paths:
        raise SystemExit(f"There is no file of Brown, such as ca01, in {folder}.")
    for path in paths:
        for line in path.read_text("latin-1").splitlines():
            yield [token for token in line.split() if token.rpartition("/")[0]]


def brown(folder: Path) -> Iterator[list[str]]:
    return ([token.rpartition("/")[0] for token in tokens] for tokens in tagged_brown(folder))


def kjv(path: Path) -> Iterator[list[str]]:
    """Verses, without their numbers."""
    verses = re.findall(r"(?m)^\s*\S+:\d+\s+(.*)", path.read_text("utf-8"))
    return (re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", verse) for verse in verses)


def sentences(path: Path) -> Iterator[list[str]]:
    return map(str.split, path.read_text("utf-8").splitlines())


def drawn(sentences: Iterable[list[str]], max_words: int) -> tuple[list[Any], list[Any]]:
    """As many sentences as are used, and the others, in a random order that is always the same."""
    lines = [words for words in sentences if len(words) > 3]
    random.Random(0).shuffle(lines)
    num_words = 0
    for number, words in enumerate(lines):
        num_words += len(words)
        if num_words > max_words:
            return lines[:number], lines[number:]
    return lines, []


def write_parts(folder: Path, name: str, parts: dict[str, list[list[str]]]) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in parts.items():
        text = "".join(f"{' '.join(words)}\n" for words in lines)
        (folder / f"{name}-{part}.txt").write_text(text, "utf-8")
    return {part: folder / f"{name}-{part}.txt" for part in parts}


def write_split(
    sentences: Iterable[list[str]], folder: Path, name: str, max_words: int = 0
) -> dict[str, Path]:
    """Text to train on and text held out, which is the same whatever the number of words."""
    kept, _ = drawn(sentences, max_words or MAX_WORDS)
    return write_parts(folder, name, {"heldout": kept[:HELDOUT], "train": kept[HELDOUT:]})


def write_tagged(brown_folder: Path, folder: Path) -> dict[str, Path]:
    """Sentences that no language model has seen, with plain tags, for AllenNLP's tagger."""
    _, others = drawn(tagged_brown(brown_folder), MAX_WORDS)
    parts = {}
    for part, count in TAGGED.items():
        parts[part], others = [list(map(plain, words)) for words in others[:count]], others[count:]
    return write_parts(folder, "tagged", parts)


def plain(token: str) -> str:
    """Without the marks of foreign words, headlines, titles and quoted words."""
    word, _, tag = token.rpartition("/")
    return f"{word}###{re.sub(r'^fw-|(-(hl|tl|nc))+$', '', tag)}"


def config_of(name: str, **variables: Any) -> dict[str, Any]:
    """A shipped config, with these environment variables."""
    os.environ.update({key: str(value) for key, value in variables.items()})
    config: dict[str, Any] = Params.from_file(str(CONFIGS / name)).as_dict(quiet=True)
    return config


def quickstart_config(text: dict[str, Path], dim: int, layers: int) -> dict[str, Any]:
    """The quickstart's, with the words of the text, in another size, without checkpoints."""
    names = ("TRAIN_PATH", "HELDOUT_PATH", "VOCAB_PATH")
    paths = (text["train"], text["heldout"], "none")
    variables = {f"BIDIRECTIONAL_LM_{name}": path for name, path in zip(names, paths)}
    config = config_of("quickstart.jsonnet", **variables)
    config["vocabulary"] = {
        **{"type": "from_corpus", "data_path": str(text["train"]), "min_count": {"tokens": 3}},
        "reader": copy.deepcopy(config["dataset_reader"]),
    }
    model, shares = config["model"], ((1, 8), (2, 8), (3, 4), (4, 2), (5, 2))
    encoder = model["text_field_embedder"]["token_embedders"]["token_characters"]["encoder"]
    encoder.update(filters=[[n, dim // part] for n, part in shares], projection_dim=dim)
    model["contextualizer"].update(input_dim=dim, hidden_dim=4 * dim, num_layers=layers)
    config["trainer"].update(checkpointer=None, callbacks=[])
    return config


def tagger_accuracy(
    archive: Path, tagged: dict[str, Path], seed: int, run: Path, dim: int
) -> float:
    """That of `pos_tagger.jsonnet`, smaller, on top of a language model that stays as it is."""
    paths = {"TRAIN_PATH": tagged["train"], "VALIDATION_PATH": tagged["validation"]}
    variables = {f"TAGGER_{name}": path for name, path in paths.items()}
    config = config_of("pos_tagger.jsonnet", BIDIRECTIONAL_LM_ARCHIVE_PATH=archive, **variables)
    config["model"]["encoder"].update(input_size=2 * dim, hidden_size=dim)
    config["trainer"]["num_epochs"] = 8
    # Few sentences make few steps.
    config["trainer"]["optimizer"]["lr"] = 0.01
    config.update(random_seed=seed, numpy_seed=seed, pytorch_seed=seed)
    config.update(test_data_path=str(tagged["test"]), evaluate_on_test=True)
    train_model(Params(config), str(run), force=True)
    return 100 * float(json.loads((run / "metrics.json").read_text())["test_accuracy"])


def lines_of(file: Path) -> list[Row]:
    """What earlier calls have found; the last line may have been cut off."""
    lines = file.read_text("utf-8").split("\n")[:-1] if file.exists() else []
    return list(map(json.loads, lines))


def append(file: Path, row: Row) -> None:
    print(row, flush=True)
    with file.open("a", encoding="utf-8") as output:
        output.write(json.dumps(row) + "\n")


def made(file: Path, wanted: Sequence[Row], make: Callable[[Row], Row]) -> list[Row]:
    """A row for each that is wanted; those of earlier calls aren't made again."""
    found = []
    for row in wanted:
        known = [line for line in lines_of(file) if row.items() <= line.items()]
        if not known:
            known = [{**row, **make(row)}]
            append(file, known[0])
        found.append(known[0])
    return found
