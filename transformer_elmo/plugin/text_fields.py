"""AllenNLP's text fields as the core takes batches: each distinct word of a character CNN once."""

from typing import Any, Dict, List, Mapping, Optional, Tuple, cast
from weakref import WeakKeyDictionary

import torch
from allennlp.data import TextFieldTensors
from allennlp.modules.seq2vec_encoders import CnnHighwayEncoder
from allennlp.modules.text_field_embedders import BasicTextFieldEmbedder, TextFieldEmbedder
from allennlp.modules.token_embedders import EmptyEmbedder, TokenCharactersEncoder
from allennlp.nn.util import get_text_field_mask

from transformer_elmo.nn.batch import HostLengths, WordBatch
from transformer_elmo.nn.caches import Kept
from transformer_elmo.nn.word_encoder import CharacterCnn, distinct_words, embedded

FACTS = "host_facts"
"""Beside the tensors of an indexer: what the host knows of them, a `HostLengths`."""

_INDEX = "word_index"

# Tensors that have a column for each word, and what comes with them.
_BY_WORDS = {"tokens", "token_characters", "elmo_tokens", _INDEX, FACTS}

# Beside the modules, so that no archive holds them and no copy of a model shares them.
_caches: "WeakKeyDictionary[TokenCharactersEncoder, Kept]" = WeakKeyDictionary()


def host_lengths(source: TextFieldTensors) -> Optional[HostLengths]:
    """What the data loader has said of a batch, if it was ours."""
    for tensors in source.values():
        if FACTS in tensors:
            return cast(HostLengths, tensors[FACTS])
    return None


def text_field_mask(source: TextFieldTensors) -> torch.Tensor:
    """
    `source`: as AllenNLP makes them, or with distinct words: see `embed_text_field`. Returns shape
    `(batch_size, timesteps)`; `False` at padding.
    """
    for tensors in source.values():
        if _INDEX in tensors:
            return tensors[_INDEX] > 0
    return get_text_field_mask({name: _tensors(entry) for name, entry in source.items()})


def _tensors(entry: Mapping[str, Any]) -> Dict[str, torch.Tensor]:
    return {name: value for name, value in entry.items() if name != FACTS}


def rows_of(source: TextFieldTensors, rows: range) -> Dict[str, Dict[str, torch.Tensor]]:
    """
    A part of a batch, as if its sentences had been batched by themselves: without columns that are
    padding to all of them.

    `rows`: the sentences of the part, one after the other.
    """
    place: Tuple[slice, ...] = (slice(rows.start, rows.stop),)
    if all(entry.keys() <= _BY_WORDS for entry in source.values()):
        present = text_field_mask(source)[place].any(0).nonzero()
        place = *place, slice(int(present[-1]) + 1 if present.numel() else 0)
    part: Dict[str, Dict[str, torch.Tensor]] = {}
    for name, entry in source.items():
        tensors = _tensors(entry)
        index = tensors.pop(_INDEX, None)
        part[name] = {
            key: value[place if index is None else index[place]] for key, value in tensors.items()
        }
    return part


def embed_text_field(embedder: TextFieldEmbedder, source: TextFieldTensors) -> torch.Tensor:
    """
    The function that `embedder(source)` computes, with the character CNN run once for each distinct
    word. An embedder that isn't AllenNLP's basic one is simply called.

    `source`: a text field's tensors. Characters come as AllenNLP's indexer gives them, shape
    `(batch_size, timesteps, num_characters)`, or already told apart by the data loader: a
    dictionary with the distinct words' characters, shape `(num_distinct + 1, num_characters)`, row
    0 of which is all zero and stands for padding, and with `word_index`, shape `(batch_size,
    timesteps)`, the row of each word. Returns shape `(batch_size, timesteps,
    embedder.get_output_dim())`.
    """
    if type(embedder) is not BasicTextFieldEmbedder or not any(
        isinstance(module, TokenCharactersEncoder) for module in embedder._token_embedders.values()
    ):
        return embedder({name: _occurrences(tensors) for name, tensors in source.items()})

    vectors: List[torch.Tensor] = []
    for name, module in sorted(embedder._token_embedders.items()):
        if isinstance(module, EmptyEmbedder):
            continue
        encoder = module._encoder._module if isinstance(module, TokenCharactersEncoder) else None
        if name in source and isinstance(encoder, CnnHighwayEncoder):
            vectors.append(_embed_characters(module, source[name]))
            continue
        entries = {key: _occurrences(value) for key, value in source.items() if key == name}
        if encoder is not None:
            for entry in entries.values():
                entry.update({key: _as_wide_as_filters(module, entry[key]) for key in entry})
        # The basic embedder matches tensors with arguments; one over this entry alone does it here.
        vectors.append(BasicTextFieldEmbedder({name: module})(entries))
    return torch.cat(vectors, dim=-1) if len(vectors) > 1 else vectors[0]


def _occurrences(entry: Mapping[str, Any]) -> Dict[str, torch.Tensor]:
    """Undoes the data loader's distinct words, for embedders that don't know about them."""
    tensors = _tensors(entry)
    if _INDEX not in tensors:
        return tensors
    index = tensors.pop(_INDEX)
    return {name: rows[index] for name, rows in tensors.items()}


def _embed_characters(module: Any, entry: Mapping[str, Any]) -> torch.Tensor:
    tensors = _tensors(entry)
    index = tensors.pop(_INDEX, None)
    (characters,) = tensors.values()
    if index is None:
        characters = _as_wide_as_filters(module, with_characters(characters))
        words, places = distinct_words(characters.flatten(0, -2))
        batch = WordBatch(words, places.view(characters.shape[:-1]))
    else:
        batch = WordBatch(characters, index, facts=entry.get(FACTS, HostLengths()))
    if module not in _caches:
        _caches[module] = Kept()
    # AllenNLP's dropout, if any, falls on each occurrence of a word separately.
    return module._dropout(embedded(character_cnn(module), batch, _caches[module]))


def with_characters(characters: torch.Tensor) -> torch.Tensor:
    """Shape `(batch_size, 0, 1)` for AllenNLP's `(batch_size, 0)`, where there are no words."""
    return characters.unsqueeze(-1) if characters.dim() == 2 else characters


def _as_wide_as_filters(module: torch.nn.Module, characters: torch.Tensor) -> torch.Tensor:
    """Character ids, shape `(..., num_characters)`, at least as wide as the widest filter."""
    widths = [m.kernel_size[0] for m in module.modules() if isinstance(m, torch.nn.Conv1d)]
    missing = max(widths, default=0) - characters.size(-1)
    return torch.nn.functional.pad(characters, (0, missing)) if missing > 0 else characters


def character_cnn(module: TokenCharactersEncoder) -> CharacterCnn:
    """`module`: over a `CnnHighwayEncoder`. Returns its weights."""
    encoder: Any = module._encoder._module
    norm: Any = encoder._layer_norm
    return CharacterCnn(
        module._embedding._module.weight,
        [(convolution.weight, convolution.bias) for convolution in encoder._convolutions],
        encoder._activation,
        [(layer.weight, layer.bias) for layer in encoder._highways._layers],
        (encoder._projection.weight, encoder._projection.bias),
        encoder._projection_location == "after_cnn",
        (norm.gamma, norm.beta) if hasattr(norm, "gamma") else None,
    )


def forget_words(module: torch.nn.Module) -> None:
    """Forgets the vectors of words met before by any part of a module."""
    for part in module.modules():
        if isinstance(part, TokenCharactersEncoder) and part in _caches:
            _caches[part].forget()
