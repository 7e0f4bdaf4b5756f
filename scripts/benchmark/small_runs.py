"""Texts and small models of the programs that train some, and the rows that their runs leave."""

import copy
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

# One core: before anything starts threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from allennlp.common import Params

import transformer_elmo.plugin  # noqa: F401

CONFIGS = Path(__file__).parents[2] / "training_config"
HELDOUT, MAX_WORDS = 300, 400_000
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


def write_split(
    sentences: Iterable[list[str]], folder: Path, name: str, max_words: int = MAX_WORDS
) -> dict[str, Path]:
    """
    Text to train on and text held out, which is the same whatever the number of words: as many
    sentences as have so many words, in a random order that is always the same.
    """
    lines = [" ".join(words) for words in sentences if len(words) > 3]
    random.Random(0).shuffle(lines)
    ends = accumulate(line.count(" ") + 1 for line in lines)
    lines = [line for line, end in zip(lines, ends) if end <= max_words]
    folder.mkdir(parents=True, exist_ok=True)
    paths = {part: folder / f"{name}-{part}.txt" for part in ("heldout", "train")}
    for path, part in zip(paths.values(), (lines[:HELDOUT], lines[HELDOUT:])):
        path.write_text("".join(f"{line}\n" for line in part), "utf-8")
    return paths


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
