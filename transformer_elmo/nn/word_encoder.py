"""
From characters to a vector for each word: character embeddings, convolutions of several widths and
their maxima, highway layers, a projection (Kim et al. 2016; Jozefowicz et al. 2016). A word's
vector depends on its characters alone, so each distinct word of a batch is encoded once, at a width
that fits it.

Word vectors from a table, for models that know words by their numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.batch import WordBatch
from transformer_elmo.nn.caches import Kept, WordVectors, word_hashes
from transformer_elmo.nn.kernels.character_cnn import Convolution, max_over_windows
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
    """`num_embeddings`: the vocabulary's words, and padding."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding = random_embedding(num_embeddings, embedding_dim)
        self.output_dim = embedding_dim

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
    convolutions: Sequence[Convolution]
    activation: Callable[[torch.Tensor], torch.Tensor]
    highways: Sequence[tuple[torch.Tensor, torch.Tensor]]
    projection: tuple[torch.Tensor, torch.Tensor]
    projects_first: bool = False
    norm: tuple[torch.Tensor, torch.Tensor] | None = None

    def prepared(self) -> "CharacterCnn":
        """
        The same function without gradients, with weights that needn't be cast for each batch, on a
        CPU.
        """
        if self.embedding.device.type != "cpu":
            return self
        cast = self._cast()
        return replace(
            cast,
            highways=[(packed(weight), bias) for weight, bias in cast.highways],
            projection=(packed(cast.projection[0]), cast.projection[1]),
        )

    def _cast(self) -> "CharacterCnn":
        """With the weights of products in the products' precision."""
        pairs = [*self.convolutions, *self.highways, self.projection]
        dtype = products_dtype(self.embedding)
        weights = cast_weights(dtype, [[weight] for pair in pairs for weight in pair])
        cast = list(zip(weights[::2], weights[1::2]))
        first = len(self.convolutions)
        return replace(
            self, convolutions=cast[:first], highways=cast[first:-1], projection=cast[-1]
        )

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
        groups = list(width_groups(words, widest, longest))
        pooled = [
            max_over_windows(
                F.embedding((words if rows is None else words[rows])[:, :width], self.embedding).to(
                    dtype
                ),
                cast.convolutions,
            )
            for rows, width in groups
        ]
        vectors = pooled[0]
        if len(groups) > 1:
            order = torch.cat([rows for rows, _ in groups if rows is not None])
            vectors = torch.cat(pooled)[torch.argsort(order)]
        # After the maximum it has a fraction of the work.
        vectors = self.activation(vectors)

        if self.projects_first:
            vectors = _linear(vectors, *cast.projection)
        for weight, bias in cast.highways:
            new, gate = _linear(vectors, weight, bias).chunk(2, dim=-1)
            vectors = torch.lerp(torch.relu(new), vectors, torch.sigmoid(gate))
        if not self.projects_first:
            vectors = _linear(vectors, *cast.projection)
        # A mean and a deviation want more digits than products.
        vectors = vectors.to(self.embedding.dtype)
        return vectors if self.norm is None else layer_norm(vectors, *self.norm)


def _linear(vectors: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    if weight.is_mkldnn:
        return linear(vectors, weight, bias)
    return F.linear(vectors, weight, bias)


def width_groups(
    words: torch.Tensor, widest_filter: int, longest: int | None = None
) -> Iterator[tuple[torch.Tensor | None, int]]:
    """
    Rows of `words` and a width at which the CNN gives exactly what it gives at the full one.
    Trailing columns that repeat the last one (padding) can go as long as one window of the
    widest filter still sees nothing but them: it takes part in the maximum.

    `words`: shape `(num_words, num_characters)`. `longest`: see `CharacterCnn.encode`. Returns
    numbers of words, `None` for all of them, and their width.
    """
    num_words, num_characters = words.shape
    if num_words == 0:
        yield None, num_characters
        return
    widths = sorted({width for width in GROUP_WIDTHS if width < num_characters} | {num_characters})
    on_cpu = words.device.type == "cpu"
    if longest is None or on_cpu:
        changes = words != words[:, -1:]
        columns = torch.arange(1, num_characters + 1, device=words.device)
        needed = (changes * columns).amax(-1)
        longest = int(needed.max())
    if not on_cpu:
        # Elsewhere launches cost more than idle columns: one group, as wide as its longest word.
        yield None, min(longest + widest_filter, num_characters)
        return
    needed += widest_filter
    group = torch.bucketize(needed, torch.tensor(widths[:-1], device=words.device))
    for number, width in enumerate(widths):
        rows = (group == number).nonzero().squeeze(-1)
        if rows.numel() == num_words:
            yield None, width
        elif rows.numel():
            yield rows, width


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
    hashes = word_hashes(characters)
    distinct_hashes, index = torch.unique(hashes, return_inverse=True)
    places = torch.arange(num_words, device=characters.device)
    representative = places.new_zeros(distinct_hashes.numel()).index_copy(0, index, places)
    words = characters[representative]
    if not torch.equal(words[index], characters):
        return torch.unique(characters, dim=0, return_inverse=True)
    return words, index


def word_vectors(
    cnn: CharacterCnn,
    words: torch.Tensor,
    cache: Kept,
    longest: int | None = None,
) -> torch.Tensor:
    """
    `cnn.encode(words)`, from memory where nothing is to be learned.

    `words`: shape `(num_words, num_characters)`, each word once. `longest`: see
    `CharacterCnn.encode`. Returns shape `(num_words, dim)`.
    """
    weights = _weights(cnn)
    learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    if learns or not words.size(0):
        return cnn.encode(words, longest)

    def made() -> tuple[CharacterCnn, WordVectors]:
        return cnn.prepared(), WordVectors()

    # Words of another width than before get a cache of their own.
    setting = (products_dtype(cnn.embedding), onednn_takes(cnn.projection[0]), words.size(1))
    prepared, vectors = cache.get(weights, setting, made)
    return vectors.get(words, lambda new: prepared.encode(new, longest))


def embedded(cnn: CharacterCnn, batch: WordBatch, cache: Kept) -> torch.Tensor:
    """
    The vectors of a batch's words.

    Returns shape `(batch_size, timesteps, dim)`.
    """
    vectors = word_vectors(cnn, batch.characters, cache, batch.longest_word)
    # Not by indexing, whose gradient adds repeats up in an order that depends on the threads: a run
    # that is taken up again is to end as one that never stopped.
    return F.embedding(batch.word_index, vectors)


def _weights(cnn: CharacterCnn) -> list[torch.Tensor]:
    pairs = [*cnn.convolutions, *cnn.highways, cnn.projection, *([cnn.norm] if cnn.norm else [])]
    return [cnn.embedding, *(tensor for pair in pairs for tensor in pair)]


class WordEncoder(torch.nn.Module):
    """
    A `CharacterCnn` with weights of its own.

    `filters`: for each convolution its width and its number of filters. `num_highway`: highway
    layers. `projection_dim`: dimension of the word vectors. `activation`: "relu" or "tanh".
    `projection_location`: or "after_cnn". Raises `ConfigurationError` if a value isn't one of those
    named here.
    """

    def __init__(
        self,
        num_characters: int,
        character_dim: int,
        filters: Sequence[tuple[int, int]],
        num_highway: int,
        projection_dim: int,
        activation: str = "relu",
        projection_location: str = "after_highway",
        do_layer_norm: bool = False,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("activation", activation, ACTIVATIONS),
            ("projection_location", projection_location, ("after_highway", "after_cnn")),
        ):
            if value not in choices:
                raise ConfigurationError(
                    f"{name} must be one of {', '.join(choices)}: got {value!r}."
                )
        self._activation = ACTIVATIONS[activation]
        self._projects_first = projection_location == "after_cnn"
        num_filters = sum(number for _, number in filters)
        highway_dim = projection_dim if self._projects_first else num_filters
        self.embedding = random_embedding(num_characters, character_dim)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv1d(character_dim, number, width) for width, number in filters
        )
        self.highways = torch.nn.ModuleList(
            torch.nn.Linear(highway_dim, 2 * highway_dim) for _ in range(num_highway)
        )
        self.projection = torch.nn.Linear(num_filters, projection_dim)
        self.norm = LayerNorm(projection_dim) if do_layer_norm else None
        self.output_dim = projection_dim
        self.cache = Kept()

    def cnn(self) -> CharacterCnn:
        """The weights as they are now."""

        def pair(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
            return module.weight, module.bias  # type: ignore[return-value]

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
