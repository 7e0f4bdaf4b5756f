"""
A language model as a folder that needs no AllenNLP to be opened:

    config.json         what the model is: `ModelConfig`, and what is known of it
    model.safetensors   its weights, which are mapped into memory and not copied
    vocabulary.txt      the words it predicts, one a line, most frequent first
    README.md           a model card
    model.onnx          if wanted, its vectors for ONNX's runtimes: `onnx_graph`
"""

import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Union

import torch
from safetensors.torch import save_file

from transformer_elmo import with_allennlp
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import folder_written_whole, json_text, read_json
from transformer_elmo.nn.batch import BatchReader
from transformer_elmo.nn.language_model import LanguageModel
from transformer_elmo.nn.softmax import softmaxes
from transformer_elmo.pretrained.config import (
    CharactersConfig,
    ModelConfig,
    WordIdsConfig,
    archive_name,
    check_sizes,
    core_name,
)
from transformer_elmo.pretrained.weights import (
    Weights,
    damaged,
    is_finite,
    metadata_of,
    read_weights,
    recorded_sums,
    shapes_of,
)
from transformer_elmo.text.vocabulary import WordList

CONFIG, WEIGHTS, VOCABULARY = "config.json", "model.safetensors", "vocabulary.txt"
CARD = "README.md"
FORMAT = "transformer-elmo model folder"
VERSION = 1

# What the Hub shows of a model and sorts models by, in the card's first lines.
METADATA = ("library_name", "license", "language", "tags")
TAGS = ["elmo", "word-embeddings", "language-model"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Opened(NamedTuple):
    """A model in evaluation mode, with its config and its card, and how it reads."""

    model: LanguageModel
    reader: BatchReader


def is_model_folder(path: Union[str, "os.PathLike[str]"]) -> bool:
    """Whether a path is such a folder, to all appearances."""
    path = Path(path)
    if (path / WEIGHTS).exists():
        return True
    with suppress(ConfigurationError):
        return read_json(path / CONFIG).get("format") == FORMAT
    return False


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """
    Returns the model's config and its card, what is known of it: corpus, perplexity, ... Raises
    `ConfigurationError` if the folder has no such config.
    """
    path = folder / CONFIG
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise ConfigurationError(
            f'{path} is not the config of a model folder: expected "format": "{FORMAT}".'
        )
    version = content.get("format_version")
    if not isinstance(version, int) or version > VERSION:
        raise ConfigurationError(
            f"{path} has format_version {version!r}, and this version of transformer-elmo reads up "
            f"to {VERSION}: upgrade transformer-elmo."
        )
    card = content.get("card")
    config = ModelConfig.from_json(content.get("model"), f"{path}: model")
    return config, card if isinstance(card, dict) else {}


def open_folder(folder: Union[str, "os.PathLike[str]"], with_softmax: bool = True) -> Opened:
    """
    `with_softmax`: its rows are read from the disk when they are used, if ever. Raises
    `ConfigurationError` if it isn't a model folder, or its parts don't fit together.
    """
    folder = Path(folder)
    config, card = read_config(folder)
    if not with_softmax:
        config = config.without_softmax()
    weights = read_weights(folder / WEIGHTS, with_softmax)
    vocabulary = read_vocabulary(folder, config)
    model = model_of(config, weights, str(folder))
    model.card = card
    return Opened(model, reader_of(config, vocabulary))


def read_vocabulary(folder: Path, config: ModelConfig) -> WordList:
    """A `ConfigurationError` if there is none, or it isn't the one that weights were saved with."""
    path = folder / VOCABULARY
    vocabulary = WordList.read(path)
    check_vocabulary(config, vocabulary, str(folder))
    expected = recorded_sums(folder / WEIGHTS).get(VOCABULARY)
    if expected is not None and zlib.crc32(_text_of(vocabulary)) != expected:
        raise damaged(
            str(path), f"these {len(vocabulary):,} words aren't those that the model was saved with"
        )
    return vocabulary


def _text_of(vocabulary: WordList) -> bytes:
    return "".join(vocabulary.lines()).encode("utf-8")


def model_of(
    config: ModelConfig, weights: Mapping[str, torch.Tensor], source: str
) -> LanguageModel:
    """
    The model with these weights, which are not copied where their type is float32.

    `weights`: by their names in archives. `source`: what messages call it. Raises
    `ConfigurationError` if these are the weights of another model.
    """
    state: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        core = core_name(name, config)
        if core is not None and not core.startswith("softmax."):
            state[core] = tensor.float()
        elif core is not None and config.softmax is not None:
            # Its rows stay as they are: they are many, and few of them are used.
            state[core] = tensor
    check_sizes(asdict(config), shapes_of(state), source)
    with torch.device("meta"), softmaxes("to be loaded"):
        model = config.build()
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        # The first line only announces the others.
        differences = [line.strip() for line in str(error).splitlines()[1:]]
        raise ConfigurationError(
            f"{source}: the weights aren't those of the config. {[*differences, error][0]}"
        ) from None
    if missing or unexpected:
        wrong = ((missing, "are missing"), (unexpected, "have no place"))
        raise ConfigurationError(
            f"{source}: the weights aren't those of the config. "
            + " ".join(
                f"{len(names)} {what}, such as {names[0]}." for names, what in wrong if names
            )
        )
    if isinstance(weights, Weights):
        model.unchecked = weights.unchecked
    return model.eval()


def reader_of(config: ModelConfig, vocabulary: WordList) -> BatchReader:
    """What reads sentences as the model's config has it."""
    own = config.words.own_characters if isinstance(config.words, CharactersConfig) else None
    text = config.text
    split = tokenizer_of(text.tokenizer)
    return BatchReader(vocabulary, text.start_tokens, text.end_tokens, split, own, text.lowercase)


def tokenizer_of(tokenizer: Any) -> Callable[[str], list[str]]:
    """Returns from a text to its words."""
    kind = tokenizer.get("type") if isinstance(tokenizer, dict) else tokenizer
    if kind in ("just_spaces", "whitespace"):
        return str.split
    return tokenizer if callable(tokenizer) else with_allennlp.tokenizer_of(tokenizer)


def check_vocabulary(config: ModelConfig, vocabulary: WordList, source: str) -> None:
    """Raises `ConfigurationError` if the vocabulary has more or fewer words than the model."""
    rows = []
    if config.softmax is not None:
        rows.append(config.softmax.num_words)
    if isinstance(config.words, WordIdsConfig):
        rows.append(config.words.num_embeddings)
    for number in rows:
        check_number_of_words(len(vocabulary), number - 1, source)


def check_number_of_words(in_vocabulary: int, in_weights: int, source: str) -> None:
    """Raises `ConfigurationError` if these aren't the same."""
    if in_vocabulary != in_weights:
        raise ConfigurationError(
            f"{source}: the vocabulary has {in_vocabulary:,} words, the weights {in_weights:,}. "
            "Every word has its place: a line too many or too few moves all after it."
        )


def save_folder(
    model: LanguageModel,
    reader: BatchReader,
    folder: Union[str, "os.PathLike[str]"],
    *,
    with_softmax: bool = True,
    dtype: str = "float32",
    replace_existing: bool = False,
    more: Callable[[Path], None] | None = None,
) -> None:
    """
    Writes a model folder, whole or not at all.

    `with_softmax`: without it the folder is for vectors only, and an eighth as large. `dtype`:
    "float32", "float16" or "bfloat16": how weights are written. `more`: called with the folder when
    all these files are in it, before it gets its name: what it writes there is a part of the whole.
    Raises `ConfigurationError` if there is such a folder already, or it can't be written.
    """
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype must be one of {', '.join(DTYPES)}: got {dtype!r}.")
    config: ModelConfig = model.config
    if not with_softmax or model.softmax is None:
        config = config.without_softmax()
    weights = {
        archive_name(name, config): tensor.detach()
        for name, tensor in model.state_dict().items()
        if config.softmax is not None or not name.startswith("softmax.")
    }
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise ConfigurationError(
                f"The weight {name} has a NaN or an infinity in it: this model is broken. Take an "
                "earlier checkpoint."
            )
    vocabulary = _text_of(reader.vocabulary)
    with folder_written_whole(Path(folder), replace_existing) as target:
        written = {n: t.to("cpu", DTYPES[dtype]).contiguous() for n, t in weights.items()}
        metadata = metadata_of(written, {VOCABULARY: vocabulary})
        save_file(written, target / WEIGHTS, metadata=metadata)
        (target / VOCABULARY).write_bytes(vocabulary)
        content = {
            "format": FORMAT,
            "format_version": VERSION,
            "model": config.to_json(),
            "card": model.card,
        }
        text = json_text(content, indent=2) + "\n"
        (target / CONFIG).write_text(text, encoding="utf-8")
        card = model_card(config, model.card, len(reader.vocabulary), dtype)
        (target / CARD).write_text(card, encoding="utf-8")
        if more is not None:
            more(target)


def model_card(config: ModelConfig, card: dict[str, Any], words: int, dtype: str) -> str:
    """The folder's README.md."""
    layers, dim = config.contextualizer.num_layers, 2 * config.contextualizer.input_dim
    facts = [
        ("layers", f"{layers} transformer layers in each direction"),
        ("vectors", f"{dim} dimensions, all layers or a mix of them"),
        ("vocabulary", f"{words:,} words" if config.softmax else f"{words:,} words, no softmax"),
        ("weights", dtype),
        *((k.replace("_", " "), str(v)) for k, v in card.items() if k not in METADATA),
    ]
    uses = ['vectors = elmo.embed(["It is raining ."])  # a list of arrays, one row a word']
    if config.softmax is not None:
        uses += [
            'elmo.score(["It is raining ."])  # the probability of each word',
            'elmo.fill("It is ___ .")  # the likeliest words for a gap',
        ]
    table = "\n".join(f"| {name} | {value} |" for name, value in facts)
    code = "\n".join(uses)
    tags = [*TAGS, *(tag for tag in card.get("tags", ()) if tag not in TAGS)]
    metadata = {"library_name": "transformer-elmo", **card, "tags": tags}
    # JSON is YAML.
    front = "\n".join(f"{k}: {json_text(metadata[k])}" for k in METADATA if k in metadata)
    return f"""---
{front}
---

# Transformer ELMo

A bidirectional transformer language model over character-CNN word vectors (Peters et al. 2018,
"Dissecting Contextual Word Embeddings").

| | |
| --- | --- |
{table}

```python
from transformer_elmo import TransformerElmo

elmo = TransformerElmo.open("path/of/this/folder")
{code}
```

Needs the Python package transformer-elmo: `pip install PATH`, where PATH is a checkout of its
repository, or `git+` and the repository's address.
"""
