"""
From characters to a vector for each word: character embeddings, convolutions of several widths and
their maxima, highway layers, a projection (Kim et al. 2016; Jozefowicz et al. 2016). A word's
vector depends on its characters alone, so each distinct word of a batch is encoded once, at a width
that fits it.

Word vectors from a table, for models that know words by their numbers.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from transformer_elmo.nn.batch import WordBatch
from transformer_elmo.nn.caches import Kept, WordVectors
from transformer_elmo.nn.config import CharactersConfig, WordIdsConfig, check_choice
from transformer_elmo.nn.kernels.character_cnn import Pair, max_over_windows
from transformer_elmo.nn.kernels.layer_norm import layer_norm
from transformer_elmo.nn.kernels.linear import linear, onednn_takes, packed
from transformer_elmo.nn.kernels.weight_casts import cast_weights, products_dtype
from transformer_elmo.nn.transformer import LayerNorm


def random_embedding(num_embeddings: int, embedding_dim: int) -> torch.nn.Embedding:
    """
    `torch.nn.Embedding` with its own initial values, but none on the meta device: torch would first
    import its compiler there, which takes longer than opening a model.
    """
    weight = torch.empty(num_embeddings, embedding_dim)
    if not weight.is_meta:
        torch.nn.init.normal_(weight)
    return torch.nn.Embedding(num_embeddings, embedding_dim, _weight=weight)


class WordEmbedding(torch.nn.Module):
    """Vectors from a table, for words known by their numbers."""

    def __init__(self, config: WordIdsConfig) -> None:
        super().__init__()
        self.embedding = random_embedding(config.num_embeddings, config.embedding_dim)
        self.output_dim = config.embedding_dim

    def forward(self, batch: WordBatch) -> torch.Tensor:
        """Returns shape `(batch_size, timesteps, embedding_dim)`."""
        assert batch.token_ids is not None
        return F.embedding(batch.token_ids, self.embedding.weight)


# Distinct words are encoded in groups of similar width; each group costs a few small kernels.
GROUP_WIDTHS = (12, 16, 24)

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


@dataclass(frozen=True)
class CharacterCnn:
    """
    The weights that make a word's vector, whoever owns them.

    `embedding`: shape `(num_characters, character_dim)`. `activation`: must not fall anywhere: it
    is applied after the maximum. `highways`: weight, shape `(2 * dim, dim)`, and bias of each
    highway layer (Srivastava et al. 2015): one half makes the new values, the other one the gates.
    `projects_first`: whether the projection comes before the highway layers. `norm`: gamma and beta
    of a layer normalization at the end.
    """

    embedding: torch.Tensor
    convolutions: Sequence[Pair]
    activation: Callable[[torch.Tensor], torch.Tensor]
    highways: Sequence[Pair]
    projection: Pair
    projects_first: bool = False
    norm: Pair | None = None

    def _products(self) -> list[torch.Tensor]:
        pairs = [*self.convolutions, *self.highways, self.projection]
        return [tensor for pair in pairs for tensor in pair]

    def weights(self) -> list[torch.Tensor]:
        return [self.embedding, *self._products(), *(self.norm or ())]

    def _cast(self) -> "CharacterCnn":
        """With the weights of products in the products' precision."""
        dtype = products_dtype(self.embedding)
        weights = cast_weights(dtype, [[weight] for weight in self._products()])
        *pairs, projection = zip(weights[::2], weights[1::2])
        first = len(self.convolutions)
        return replace(
            self, convolutions=pairs[:first], highways=pairs[first:], projection=projection
        )

    def prepared(self) -> "CharacterCnn":
        """
        The same function without gradients, with weights that needn't be cast for each batch, on a
        CPU.
        """
        if self.embedding.device.type != "cpu":
            return self
        cast = self._cast()
        *highways, projection = ((packed(w), b) for w, b in (*cast.highways, cast.projection))
        return replace(cast, highways=highways, projection=projection)

    def encode(self, words: torch.Tensor, longest: int | None = None) -> torch.Tensor:
        """
        `words`: shape `(num_words, num_characters)`: character ids. `longest`: how many characters
        the longest word has, with the marks around it, where the host knows. Returns shape
        `(num_words, projection_dim)`.
        """
        dtype = products_dtype(self.embedding)
        cast = self._cast()
        widest = max(weight.size(2) for weight, _ in cast.convolutions)
        # Every filter has a window, whatever the words of a batch are padded to.
        words = F.pad(words, (0, max(widest - words.size(1), 0)))
        groups = width_groups(words, widest, longest)
        pooled = [
            max_over_windows(
                F.embedding(words[rows, :width], self.embedding).to(dtype), cast.convolutions
            )
            for rows, width in groups
        ]
        vectors = pooled[0]
        if len(groups) > 1:
            order = torch.cat([rows for rows, _ in groups])
            vectors = torch.cat(pooled)[torch.argsort(order)]
        # After the maximum it has a fraction of the work.
        vectors = self.activation(vectors)

        if self.projects_first:
            vectors = linear(vectors, *cast.projection)
        for weight, bias in cast.highways:
            new, gate = linear(vectors, weight, bias).chunk(2, dim=-1)
            vectors = torch.lerp(torch.relu(new), vectors, torch.sigmoid(gate))
        if not self.projects_first:
            vectors = linear(vectors, *cast.projection)
        # A mean and a deviation want more digits than products.
        vectors = vectors.to(self.embedding.dtype)
        return vectors if self.norm is None else layer_norm(vectors, *self.norm)


def width_groups(
    words: torch.Tensor, widest_filter: int, longest: int | None = None
) -> list[tuple[Any, int]]:
    """
    Rows of `words` and a width at which the CNN gives exactly what it gives at the full one.
    Trailing columns that repeat the last one (padding) can go as long as one window of the
    widest filter still sees nothing but them: it takes part in the maximum.

    `words`: shape `(num_words, num_characters)`. `longest`: see `CharacterCnn.encode`. Returns
    numbers of words, or a slice for all of them, and their width.
    """
    num_words, num_characters = words.shape
    if num_words == 0:
        return [(slice(None), num_characters)]
    on_cpu = words.device.type == "cpu"
    if longest is None or on_cpu:
        columns = torch.arange(1, num_characters + 1, device=words.device)
        lengths = ((words != words[:, -1:]) * columns).amax(-1)
        longest = int(lengths.max())
    if not on_cpu:
        # Elsewhere launches cost more than idle columns: one group, as wide as its longest word.
        return [(slice(None), min(longest + widest_filter, num_characters))]
    widths = [*(width for width in GROUP_WIDTHS if width < num_characters), num_characters]
    group = torch.bucketize(lengths + widest_filter, torch.tensor(widths[:-1]))
    rows = [(group == number).nonzero().squeeze(-1) for number in range(len(widths))]
    return [
        (slice(None) if of_width.numel() == num_words else of_width, width)
        for of_width, width in zip(rows, widths)
        if of_width.numel()
    ]


def distinct_words(characters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `characters`: shape `(num_words, num_characters)`, ids not negative. Returns the distinct rows,
    shape `(num_distinct, num_characters)`, and for each row the place of its like among them, shape
    `(num_words,)`.
    """
    num_words, width = characters.shape
    if num_words == 0 or width == 0:
        return characters, torch.arange(num_words, device=characters.device)
    # Sorting one number a word is far cheaper than sorting rows. Two words may share that number,
    # so what it says is checked, and a clash is resolved by sorting rows after all.
    hashes = (characters * _factors(width, characters.device)).sum(-1)
    distinct_hashes, index = torch.unique(hashes, return_inverse=True)
    places = torch.arange(num_words, device=characters.device)
    representative = places.new_zeros(distinct_hashes.numel()).index_copy(0, index, places)
    words = characters[representative]
    if not torch.equal(words[index], characters):
        return torch.unique(characters, dim=0, return_inverse=True)
    return words, index


@functools.lru_cache(maxsize=16)
def _factors(width: int, device: torch.device) -> torch.Tensor:
    """Odd numbers, one for each character of a word."""
    generator = torch.Generator().manual_seed(width)
    factors = torch.randint(-(2**62), 2**62, (width,), generator=generator) * 2 + 1
    return factors.to(device)


def embedded(cnn: CharacterCnn, batch: WordBatch, cache: Kept) -> torch.Tensor:
    """Shape `(batch_size, timesteps, dim)`, from memory where nothing is to be learned."""
    words, longest, weights = batch.characters, batch.facts.longest_word, cnn.weights()
    learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    if learns or not words.size(0):
        vectors = cnn.encode(words, longest)
    else:
        # Words of another width than before get a cache of their own.
        setting = (products_dtype(cnn.embedding), onednn_takes(cnn.projection[0]), words.size(1))
        prepared, kept = cache.get(weights, setting, lambda: (cnn.prepared(), WordVectors()))
        vectors = kept.get(words, lambda new: prepared.encode(new, longest))
    # Not by indexing, whose gradient adds repeats up in an order that depends on the threads: a run
    # that is taken up again is to end as one that never stopped.
    return F.embedding(batch.word_index, vectors)


class WordEncoder(torch.nn.Module):
    """
    A `CharacterCnn` with weights of its own. Raises `ConfigurationError` if the config has a value
    that isn't possible.
    """

    def __init__(self, config: CharactersConfig) -> None:
        super().__init__()
        check_choice("activation", config.activation, ACTIVATIONS)
        places = ("after_highway", "after_cnn")
        check_choice("projection_location", config.projection_location, places)
        self._activation = ACTIVATIONS[config.activation]
        self._projects_first = config.projection_location == "after_cnn"
        num_filters, dim = sum(number for _, number in config.filters), config.projection_dim
        highway_dim = dim if self._projects_first else num_filters
        self.embedding = random_embedding(config.num_characters, config.character_dim)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv1d(config.character_dim, number, width) for width, number in config.filters
        )
        self.highways = torch.nn.ModuleList(
            torch.nn.Linear(highway_dim, 2 * highway_dim) for _ in range(config.num_highway)
        )
        self.projection = torch.nn.Linear(num_filters, dim)
        self.norm = LayerNorm(dim) if config.do_layer_norm else None
        self.output_dim = dim
        self.cache = Kept()

    def cnn(self) -> CharacterCnn:
        """The weights as they are now."""

        def pair(module: Any) -> Pair:
            return module.weight, module.bias

        return CharacterCnn(
            self.embedding.weight,
            [pair(convolution) for convolution in self.convolutions],
            self._activation,
            [pair(highway) for highway in self.highways],
            pair(self.projection),
            self._projects_first,
            None if self.norm is None else (self.norm.gamma, self.norm.beta),
        )

    def forward(self, batch: WordBatch) -> torch.Tensor:
        """Returns shape `(batch_size, timesteps, output_dim)`."""
        return embedded(self.cnn(), batch, self.cache)
