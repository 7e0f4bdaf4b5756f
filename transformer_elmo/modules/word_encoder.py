"""
From a batch's characters to a vector for each word, at the cost of its distinct words only.

AllenNLP's `TokenCharactersEncoder` runs its character CNN over every occurrence of every word, at
the full width of 50 characters. A word's vector depends on its characters alone, so here each
distinct word goes through the same modules once, at a width that fits it.
"""

from typing import Dict, Iterator, List, Optional, Tuple, cast
from weakref import WeakKeyDictionary

import torch
from allennlp.data import TextFieldTensors
from allennlp.modules.seq2vec_encoders import CnnHighwayEncoder
from allennlp.modules.text_field_embedders import BasicTextFieldEmbedder, TextFieldEmbedder
from allennlp.modules.token_embedders import EmptyEmbedder, TokenCharactersEncoder
from allennlp.nn.util import get_text_field_mask
from torch.nn import functional as F

from transformer_elmo.modules.word_vector_cache import WordVectorCache, word_hashes

# Distinct words are encoded in groups of similar width; each group costs a few small kernels.
GROUP_WIDTHS = (12, 16, 24)

# Beside the modules, so that no archive holds them and no copy of a model shares them.
_caches: "WeakKeyDictionary[TokenCharactersEncoder, WordVectorCache]" = WeakKeyDictionary()


def text_field_mask(source: TextFieldTensors) -> torch.Tensor:
    """
    # Parameters

    source : `TextFieldTensors`
        As AllenNLP makes them, or with distinct words: see `embed_text_field`.

    # Returns

    `torch.BoolTensor`
        Shape `(batch_size, timesteps)`; `False` at padding.
    """
    for tensors in source.values():
        if "word_index" in tensors:
            return tensors["word_index"] > 0
    return get_text_field_mask(source)


def embed_text_field(embedder: TextFieldEmbedder, source: TextFieldTensors) -> torch.Tensor:
    """
    The function that `embedder(source)` computes, with the character CNN run once for each distinct
    word. An embedder that isn't AllenNLP's basic one is simply called.

    # Parameters

    embedder : `TextFieldEmbedder`
    source : `TextFieldTensors`
        A text field's tensors. Characters come as AllenNLP's indexer gives them, shape
        `(batch_size, timesteps, num_characters)`, or already told apart by the data loader: a
        dictionary with the distinct words' characters, shape `(num_distinct + 1, num_characters)`,
        row 0 of which is all zero and stands for padding, and with `word_index`, shape
        `(batch_size, timesteps)`, the row of each word.

    # Returns

    `torch.Tensor`
        Shape `(batch_size, timesteps, embedder.get_output_dim())`.
    """
    if type(embedder) is not BasicTextFieldEmbedder or not any(
        _is_character_cnn(module) for module in embedder._token_embedders.values()
    ):
        return embedder({name: _occurrences(tensors) for name, tensors in source.items()})

    vectors: List[torch.Tensor] = []
    for name, module in sorted(embedder._token_embedders.items()):
        if isinstance(module, EmptyEmbedder):
            continue
        if name in source and _is_character_cnn(module):
            vectors.append(_embed_characters(cast(TokenCharactersEncoder, module), source[name]))
        else:
            # The basic embedder matches tensors with arguments; one over this entry alone does it
            # here.
            single = BasicTextFieldEmbedder({name: module})
            vectors.append(
                single({key: _occurrences(value) for key, value in source.items() if key == name})
            )
    return torch.cat(vectors, dim=-1)


def _is_character_cnn(module: torch.nn.Module) -> bool:
    return isinstance(module, TokenCharactersEncoder) and isinstance(
        module._encoder._module, CnnHighwayEncoder
    )


def _occurrences(tensors: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Undoes the data loader's distinct words, for embedders that don't know about them."""
    if "word_index" not in tensors:
        return tensors
    index = tensors["word_index"]
    return {name: rows[index] for name, rows in tensors.items() if name != "word_index"}


def _embed_characters(
    module: TokenCharactersEncoder, tensors: Dict[str, torch.Tensor]
) -> torch.Tensor:
    if "word_index" in tensors:
        index = tensors["word_index"]
        (words,) = (rows for name, rows in tensors.items() if name != "word_index")
    else:
        (characters,) = tensors.values()
        words, index = distinct_words(characters.flatten(0, -2))
        index = index.view(characters.shape[:-1])
    # Not by indexing, whose gradient adds repeats up in an order that depends on the threads: a run
    # that is taken up again is to end as one that never stopped.
    vectors = F.embedding(index, _word_vectors(module, words))
    # AllenNLP's dropout, if any, falls on each occurrence of a word separately.
    return module._dropout(vectors)


def _word_vectors(module: TokenCharactersEncoder, words: torch.Tensor) -> torch.Tensor:
    """`encode_words`, from memory where nothing is to be learned. Shape `(num_words, dim)`."""
    if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
        return encode_words(module, words)
    if module not in _caches:
        _caches[module] = WordVectorCache()
    device_type = words.device.type
    autocast = torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type)
    return _caches[module].vectors(
        words,
        dict(module.named_parameters()),
        lambda missing: encode_words(module, missing),
        setting=(autocast,),
    )


def distinct_words(characters: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """
    # Parameters

    characters : `torch.Tensor`
        Shape `(num_words, num_characters)`, ids not negative.

    # Returns

    `Tuple[torch.Tensor, torch.Tensor]`
        The distinct rows, shape `(num_distinct, num_characters)`, and for each row the place of its
        like among them, shape `(num_words,)`.
    """
    num_words, width = characters.shape
    if num_words == 0 or width == 0:
        return characters, torch.arange(num_words, device=characters.device)
    # Sorting one number a word is far cheaper than sorting rows. Two words may share that number,
    # so what it says is checked, and a clash is resolved by sorting rows after all.
    hashes = word_hashes(characters)
    distinct_hashes, index = torch.unique(hashes, return_inverse=True)
    places = torch.arange(num_words, device=characters.device)
    representative = places.new_zeros(distinct_hashes.numel()).index_copy(0, index, places)
    words = characters[representative]
    if not torch.equal(words[index], characters):
        return torch.unique(characters, dim=0, return_inverse=True)
    return words, index


def encode_words(module: TokenCharactersEncoder, words: torch.Tensor) -> torch.Tensor:
    """
    Character embedding, CNN, highway layers and projection, with `module`'s own weights.

    # Parameters

    module : `TokenCharactersEncoder`
        Over a `CnnHighwayEncoder`.
    words : `torch.Tensor`
        Shape `(num_words, num_characters)`: character ids.

    # Returns

    `torch.Tensor`
        Shape `(num_words, module.get_output_dim())`.
    """
    embedding = module._embedding._module
    encoder: CnnHighwayEncoder = module._encoder._module
    convolutions = cast(List[torch.nn.Conv1d], encoder._convolutions)
    widest = max(convolution.kernel_size[0] for convolution in convolutions)

    groups = list(_width_groups(words, widest))
    features = [
        _max_pooled(encoder, embedding((words if rows is None else words[rows])[:, :width]))
        for rows, width in groups
    ]
    pooled = features[0]
    if len(groups) > 1:
        order = torch.cat([rows for rows, _ in groups if rows is not None])
        pooled = torch.cat(features)[torch.argsort(order)]

    if encoder._projection_location == "after_cnn":
        pooled = encoder._projection(pooled)
    vectors = encoder._highways(pooled)
    if encoder._projection_location == "after_highway":
        vectors = encoder._projection(vectors)
    if vectors.dtype in (torch.float16, torch.bfloat16):
        # A mean and a deviation want more digits, and AllenNLP's layer norm refuses the latter
        # type.
        vectors = vectors.float()
    return encoder._layer_norm(vectors)


def _max_pooled(encoder: CnnHighwayEncoder, characters: torch.Tensor) -> torch.Tensor:
    """From shape `(num_words, width, embedding_dim)` to `(num_words, num_filters)`."""
    num_words, width, embedding_dim = characters.shape
    rows = characters.reshape(num_words, width * embedding_dim)
    features = []
    for convolution in cast(List[torch.nn.Conv1d], encoder._convolutions):
        # A window is a stretch of its row. One product over all windows, filter by filter in
        # memory, is faster than PyTorch's convolution, and so is the maximum over its result.
        num_filters, _, window = convolution.weight.shape
        windows = rows.unfold(1, window * embedding_dim, embedding_dim)
        weight = convolution.weight.transpose(1, 2).reshape(num_filters, -1)
        # The activation is monotonous: after the maximum it has a fraction of the work.
        pooled = F.linear(windows, weight, convolution.bias).amax(1)
        features.append(encoder._activation(pooled))
    return torch.cat(features, dim=-1)


def _width_groups(
    words: torch.Tensor, widest_filter: int
) -> Iterator[Tuple[Optional[torch.Tensor], int]]:
    """
    Rows of `words` and a width at which the CNN gives exactly what it gives at the full one.
    Trailing columns that repeat the last one (padding) can go as long as one window of the
    widest filter still sees nothing but them: it takes part in the maximum.
    """
    num_words, num_characters = words.shape
    if num_words == 0:
        yield None, num_characters
        return
    changes = words != words[:, -1:]
    columns = torch.arange(1, num_characters + 1, device=words.device)
    needed = (changes * columns).amax(-1) + widest_filter
    widths = sorted({width for width in GROUP_WIDTHS if width < num_characters} | {num_characters})
    group = torch.bucketize(needed, torch.tensor(widths[:-1], device=words.device))
    for number, width in enumerate(widths):
        rows = (group == number).nonzero().squeeze(-1)
        if rows.numel() == num_words:
            yield None, width
        elif rows.numel():
            yield rows, width
