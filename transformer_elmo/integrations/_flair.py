"""What `transformer_elmo.integrations.flair` gives. It needs flair."""

import hashlib
import os
from pathlib import Path
from typing import Any, Union

import flair
import torch
from flair.data import Sentence
from flair.embeddings.base import ScalarMix, TokenEmbeddings, register_embeddings

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.inference.vectors import Layers
from transformer_elmo.pretrained.config import ModelConfig
from transformer_elmo.pretrained.folder import check_vocabulary, reader_of
from transformer_elmo.text.vocabulary import WordList

# What messages call the source of a model that isn't in a folder.
SAVED = "The embeddings that flair saved"


@register_embeddings
class TransformerElmoEmbeddings(TokenEmbeddings):
    """
    A vector for each token of a `flair.data.Sentence`. The tokens are the model's words, as they
    are.

    What flair saves of a tagger with these embeddings has the whole language model in it, but for
    the softmax: it is loaded where the folder isn't, and without importing this module first.

    - `folder`: A model folder, a `model.tar.gz`, the folder of a training run, or a URL.
    - `layers`: "mix" is a weighted sum of all layers, times a factor; weights and factor are
      learned with the tagger. "top" is the last layer, "all" each of them, side by side; a number
      is that layer: 0 is the word vectors, -1 the top.
    - `fine_tune`: Whether the language model is trained, too, with its dropout. By default it stays
      as it is.
    - `name`: Under which tokens keep their vectors; by default from the folder's name, the layers
      and the weights.
    - `max_tokens`: Tokens in a batch of the language model, padding included. A longer sentence
      goes alone.

    Raises `ConfigurationError` or `ValueError` if there is no model, or it has no such layer.
    """

    def __init__(
        self,
        folder: Union[str, "os.PathLike[str]", TransformerElmo],
        layers: Layers = "mix",
        fine_tune: bool = False,
        *,
        name: str = "",
        max_tokens: int = 2000,
    ) -> None:
        super().__init__()
        if not isinstance(folder, TransformerElmo):  # which `from_params` has
            folder = TransformerElmo.open(folder, "cpu", softmax=False, max_tokens=max_tokens)
        self.elmo = folder
        # A module of this one, so that flair moves it, saves it and hands it to the optimizer.
        self.model = self.elmo.model.requires_grad_(fine_tune)
        if getattr(self.model, "config", None) is None:
            raise ConfigurationError(
                f"{folder.name} has parts that a model folder has no place for, and flair neither."
            )
        self.layers = self.elmo.checked_layers(layers)
        self.mix = ScalarMix(self.elmo.num_layers, trainable=True) if layers == "mix" else None
        self.fine_tune = fine_tune
        self.static_embeddings = not fine_tune and self.mix is None
        self.name = name or _name(Path(folder.name).name, self.layers, self.model)
        self.to(flair.device)
        self.eval()

    @property
    def embedding_length(self) -> int:
        return self.elmo.dim * (self.elmo.num_layers if self.layers == "all" else 1)

    def train(self, mode: bool = True) -> "TransformerElmoEmbeddings":
        super().train(mode)
        if not self.fine_tune:
            # Without dropout: what isn't trained is as it will be in use.
            self.model.eval()
        return self

    def _everything_embedded(self, data_points: Any) -> bool:
        for found in data_points:
            if not isinstance(found, Sentence):
                what = f"{type(found).__name__} {found!r:.80}"
                raise TypeError(f"Expected a flair.data.Sentence or a list of them, got {what}.")
        # flair keeps vectors from one epoch to the next, and knows by their gradients which of them
        # will be others then. The development set's have none, and would stay those of epoch 1.
        return self.static_embeddings and super()._everything_embedded(data_points)

    def _add_embeddings_internal(self, sentences: list[Sentence]) -> list[Sentence]:
        vectors = self.elmo.embed_tensors(
            [[token.text for token in sentence.tokens] for sentence in sentences],
            "all" if self.mix is not None else self.layers,
            track_gradients=self.fine_tune and torch.is_grad_enabled(),
        )
        for sentence, rows in zip(sentences, vectors):
            if self.mix is not None:
                rows = self.mix(list(rows))
            elif self.layers == "all":
                rows = torch.cat(tuple(rows), -1)
            for token, vector in zip(sentence.tokens, rows):
                token.set_embedding(self.name, vector)
        return sentences

    def __str__(self) -> str:
        return self.name

    def to_params(self) -> dict[str, Any]:
        """All but the weights, which flair saves as a part of the tagger's."""
        return {
            # Unpickling a class imports its module, which makes it known to flair.
            "class": type(self),
            "config": self.model.config.to_json(),
            "card": self.model.card,
            "vocabulary": self.elmo.vocab.words,
            "layers": self.layers,
            "fine_tune": self.fine_tune,
            "name": self.name,
            "max_tokens": self.elmo.max_tokens,
        }

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> "TransformerElmoEmbeddings":
        """
        The embeddings that :meth:`to_params` describes; their weights are to be loaded. Raises
        `ConfigurationError` if it doesn't describe any.
        """
        options = {k: v for k, v in params.items() if k != "class"}
        try:
            config = ModelConfig.from_json(options.pop("config"), f"{SAVED}: config")
            config = config.without_softmax()
            vocabulary = WordList(options.pop("vocabulary"))
            card, layers, most = map(options.pop, ("card", "layers", "max_tokens"))
        except KeyError as error:
            raise ConfigurationError(f"{SAVED} have no {error}: they are damaged.") from None
        check_vocabulary(config, vocabulary, SAVED)
        # Whatever torch's default type is now: the weights that come into it are of float32.
        model = config.build().float()
        model.card = card
        elmo = TransformerElmo(model, reader_of(config, vocabulary), max_tokens=most)
        return cls(elmo, layers, **options)


def _name(folder: str, layers: Layers, model: torch.nn.Module) -> str:
    """Different for different models, since flair takes vectors of one name for the same."""
    weights = hashlib.sha256()
    for parameter in model.parameters():
        # The small ones are enough: norms and biases.
        if parameter.dim() == 1:
            weights.update(parameter.detach().cpu().numpy().tobytes())
    return f"transformer-elmo-{folder}-{layers}-{weights.hexdigest()[:8]}"
