"""The language models: what a sentence's words say about the word after, and the word before."""

import contextlib
from typing import Any, ContextManager, Dict, List, Optional, Union

import torch
import torch.distributed as dist
from allennlp.common.checks import ConfigurationError
from allennlp.common.util import is_distributed
from allennlp.data import TextFieldTensors, Vocabulary
from allennlp.models import Model
from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
from allennlp.modules.text_field_embedders import TextFieldEmbedder
from allennlp.nn import InitializerApplicator
from overrides import overrides
from torch.nn.parallel import DistributedDataParallel

from transformer_elmo.models.perplexity import TokenPerplexity
from transformer_elmo.modules.dropout import Dropout
from transformer_elmo.modules.softmax import (
    SampledSoftmaxLoss,
    SoftmaxLoss,
    concatenated_token_losses,
)
from transformer_elmo.modules.word_encoder import embed_text_field, text_field_mask

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


@Model.register("language_model", exist_ok=True)
class LanguageModel(Model):
    """
    A language model over a `Seq2SeqEncoder` ("contextualizer"), trained to predict each next word
    of a sentence and, if bidirectional, each previous one.

    The contextualizer must not peek: what it says about a position may depend, in its forward half,
    on nothing after it, and in its backward half on nothing before it.

    Registered as a `Model` with name "language_model".

    # Parameters

    vocab : `Vocabulary`
    text_field_embedder : `TextFieldEmbedder`
        Turns words into vectors. A character CNN (`character_encoding` over `cnn-highway`) is run
        once for each distinct word of a batch.
    contextualizer : `Seq2SeqEncoder`
        Its input dimension is the text field embedder's output dimension.
    dropout : `float`, optional (default = `None`)
        On the contextual embeddings as the softmax sees them; those returned are without it.
    num_samples : `int`, optional (default = `None`)
        Train on this many sampled words instead of the full softmax. Evaluation is always exact.
    sparse_embeddings : `bool`, optional (default = `False`)
        With `num_samples`: sparse gradients for the softmax weights.
    bidirectional : `bool`, optional (default = `False`)
        Must match the contextualizer.
    initializer : `InitializerApplicator`, optional (default = `None`)
    precision : `str`, optional (default = `"float32"`)
        `"bfloat16"` runs the matrix products in bfloat16. Parameters, statistics and losses
        stay in float32.

    # Raises

    `ConfigurationError`
        If dimensions, directions, samples and vocabulary don't fit together.
    """

    default_predictor = "language_model"

    def __init__(
        self,
        vocab: Vocabulary,
        text_field_embedder: TextFieldEmbedder,
        contextualizer: Seq2SeqEncoder,
        dropout: Optional[float] = None,
        num_samples: Optional[int] = None,
        sparse_embeddings: bool = False,
        bidirectional: bool = False,
        initializer: Optional[InitializerApplicator] = None,
        precision: str = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(vocab, **kwargs)
        if contextualizer.is_bidirectional() is not bidirectional:
            raise ConfigurationError(
                "The language model and its contextualizer must both be bidirectional or both not: "
                f"the model has bidirectional = {bidirectional}, its "
                f"{type(contextualizer).__name__} has {contextualizer.is_bidirectional()}."
            )
        embedding_dim, input_dim = (
            text_field_embedder.get_output_dim(),
            contextualizer.get_input_dim(),
        )
        if embedding_dim != input_dim:
            raise ConfigurationError(
                f"The text field embedder makes vectors of dimension {embedding_dim}, but the "
                f"contextualizer expects an input dimension of {input_dim}."
            )
        if precision not in PRECISIONS:
            raise ConfigurationError(
                f"precision must be one of {sorted(PRECISIONS)}, got {precision!r}."
            )
        self._text_field_embedder = text_field_embedder
        self._contextualizer = contextualizer
        self._bidirectional = bidirectional
        self._precision = precision
        self._forward_dim = contextualizer.get_output_dim() // (2 if bidirectional else 1)
        self._dropout = Dropout(dropout or 0.0)

        # The vocabulary counts its padding entry too: one row more than there are words, as in
        # every archive written so far.
        num_words = vocab.get_vocab_size()
        self._softmax_loss: Optional[Union[SampledSoftmaxLoss, SoftmaxLoss]]
        if num_samples is not None:
            self._softmax_loss = SampledSoftmaxLoss(
                num_words, self._forward_dim, num_samples, sparse=sparse_embeddings
            )
        else:
            self._softmax_loss = SoftmaxLoss(num_words, self._forward_dim)

        if num_samples is not None and sparse_embeddings:
            # The loss averages its own rows over processes, where this one would send every word's.
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                self, [f"_softmax_loss.{name}" for name, _ in self._softmax_loss.named_parameters()]
            )

        # Nothing reads it, but every archive has it.
        self.register_buffer("_last_average_loss", torch.zeros(1))
        self._perplexity = TokenPerplexity()
        self._direction_perplexities = (
            {"forward": TokenPerplexity(), "backward": TokenPerplexity()} if bidirectional else {}
        )
        if initializer is not None:
            initializer(self)

    @property
    def is_bidirectional(self) -> bool:
        return self._bidirectional

    def delete_softmax(self) -> None:
        """Drops the softmax weights, for uses without probabilities. `forward` has no loss then."""
        self._softmax_loss = None

    @overrides(check_signature=False)
    def extend_embedder_vocab(self, *args: Any, **kwargs: Any) -> None:
        """
        AllenNLP's function of this name. The softmax can't follow: what a new word's chance
        would be, training hasn't said.

        # Raises

        `ConfigurationError`
            If the vocabulary has words now that the softmax doesn't know.
        """
        if self._softmax_loss is not None:
            num_words = self._softmax_loss.word_weights()[0].size(0)
            if self.vocab.get_vocab_size() > num_words:
                raise ConfigurationError(
                    f"The language model was trained to predict {num_words} words, and its "
                    f"vocabulary now has {self.vocab.get_vocab_size()}: it can't be extended. "
                    "Leave --extend-vocab out; words that it doesn't know count as the unknown one."
                )
        super().extend_embedder_vocab(*args, **kwargs)

    def num_layers(self) -> int:
        """
        The contextualizer's layers, and one more for the word vectors beneath them.

        # Raises

        `NotImplementedError`
            If the contextualizer doesn't say.
        """
        layers = getattr(self._contextualizer, "num_layers", None)
        if layers is None:
            raise NotImplementedError(
                f"A contextualizer of type {type(self._contextualizer).__name__} does not report "
                "how many layers it has (as an attribute num_layers)."
            )
        return layers + 1

    def _autocast(self, device: torch.device) -> ContextManager[Any]:
        dtype = PRECISIONS[self._precision]
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=dtype)

    @overrides(check_signature=False)
    def forward(self, source: TextFieldTensors) -> Dict[str, Any]:
        """
        # Parameters

        source : `TextFieldTensors`
            A batch of sentences. The entry `tokens`, from a `single_id` indexer, holds the words
            to predict; without it there is no loss.

        # Returns

        `Dict[str, torch.Tensor]` with

        - `loss`: a scalar, the mean negative log-likelihood of a predicted word, in nats, over
          both directions if there are two. In distributed training it is scaled such that the mean
          over processes is the mean over all words of all processes.
        - `forward_loss`, `backward_loss`: scalars, the mean for each direction; the latter only for
          bidirectional models.
        - `batch_weight`: a scalar, the number of words predicted in each direction.
        - `lm_embeddings`: shape `(batch_size, timesteps, contextualizer.get_output_dim())`, without
          dropout; or a list of such if the contextualizer returns all layers.
        - `noncontextual_token_embeddings`: shape `(batch_size, timesteps, embedding_dim)`.
        - `mask`: shape `(batch_size, timesteps)`, boolean.

        `loss` and its fellows are missing where there is no `tokens` entry or no softmax any more.
        """
        read = self.read(source)
        output: Dict[str, Any] = {}
        if self._softmax_loss is not None and "tokens" in source:
            contextual = read["lm_embeddings"]
            top = contextual[-1] if isinstance(contextual, list) else contextual
            with self._autocast(read["mask"].device):
                output.update(self._losses(top, source["tokens"]["tokens"]))
        return {**output, **read}

    def read(self, source: TextFieldTensors) -> Dict[str, Any]:
        """
        `lm_embeddings`, `noncontextual_token_embeddings` and `mask` of `forward`, without the
        softmax. It changes nothing in the model, so that threads may share it.
        """
        mask = text_field_mask(source)
        with self._autocast(mask.device):
            embeddings = embed_text_field(self._text_field_embedder, source)
            if embeddings.shape[:2] != mask.shape:
                raise ConfigurationError(
                    f"A batch has {embeddings.size(1)} words by the token indexer that is embedded "
                    f"and {mask.size(1)} by another. Give start_tokens and end_tokens to all token "
                    "indexers alike, or to the dataset reader instead."
                )
            contextual = self._contextualizer(embeddings, mask)
        return {
            "lm_embeddings": contextual,
            "noncontextual_token_embeddings": embeddings,
            "mask": mask,
        }

    def _losses(self, contextual: torch.Tensor, token_ids: torch.Tensor) -> Dict[str, torch.Tensor]:
        targets = _shifted(token_ids, bidirectional=self._bidirectional)
        # The same words for both directions, but for the sentence's ends.
        num_targets = (targets[0] > 0).sum()
        contextual = self._dropout(contextual)
        directions = []
        for embeddings, ids in zip(contextual.split(self._forward_dim, -1), targets):
            places = (ids > 0).nonzero(as_tuple=True)
            # The vocabulary's id 0 is padding, which the softmax doesn't know.
            directions.append((embeddings[places], ids[places] - 1))
        assert self._softmax_loss is not None
        token_losses = concatenated_token_losses(self._softmax_loss, directions)

        totals = [losses.sum() for losses in token_losses]
        total = torch.stack(totals).mean()
        # A sum of thousands in float32 would show in the sixth digit of the perplexity.
        exact = [losses.detach().sum(dtype=torch.float64) for losses in token_losses]
        self._perplexity(torch.stack(exact).mean(), num_targets)
        for perplexity, direction_total in zip(self._direction_perplexities.values(), exact):
            perplexity(direction_total, num_targets)

        count = num_targets.to(total.dtype)
        divisor = self._mean_over_processes(count).clamp(min=1)
        output = {"loss": total / divisor, "batch_weight": count}
        for name, direction_total in zip(("forward_loss", "backward_loss"), totals):
            output[name] = direction_total / divisor
        return output

    def _mean_over_processes(self, count: torch.Tensor) -> torch.Tensor:
        """
        Distributed training averages gradients over processes, however many words each one has.
        Divided by the mean number of words instead of its own, each process's loss weighs its words
        as one process with all of them would.
        """
        if not (self.training and is_distributed()):
            return count
        total = count.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @overrides
    def get_metrics(self, reset: bool = False) -> Dict[str, float]:
        """
        `perplexity` over all words since the last reset, and for bidirectional models
        `forward_perplexity` and `backward_perplexity`.
        """
        metrics = {"perplexity": self._perplexity.get_metric(reset)}
        for name, perplexity in self._direction_perplexities.items():
            metrics[name + "_perplexity"] = perplexity.get_metric(reset)
        return metrics


@Model.register("bidirectional-language-model", exist_ok=True)
@Model.register("bidirectional_language_model", exist_ok=True)
class BidirectionalLanguageModel(LanguageModel):
    """
    A `LanguageModel` that is always bidirectional.

    Registered as a `Model` with names "bidirectional_language_model" and
    "bidirectional-language-model". Its parameters are those of `LanguageModel`.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        text_field_embedder: TextFieldEmbedder,
        contextualizer: Seq2SeqEncoder,
        dropout: Optional[float] = None,
        num_samples: Optional[int] = None,
        sparse_embeddings: bool = False,
        initializer: Optional[InitializerApplicator] = None,
        precision: str = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            vocab=vocab,
            text_field_embedder=text_field_embedder,
            contextualizer=contextualizer,
            dropout=dropout,
            num_samples=num_samples,
            sparse_embeddings=sparse_embeddings,
            bidirectional=True,
            initializer=initializer,
            precision=precision,
            **kwargs,
        )


def _shifted(token_ids: torch.Tensor, bidirectional: bool) -> List[torch.Tensor]:
    """
    What each position has to predict, in each direction; 0 for nothing. Shapes `(batch_size,
    timesteps)`.

    Only words predict. allennlp-models lets the padding behind a sentence predict the sentence's
    last word, too, so that its backward loss depends on what else is in the batch.
    """
    present = token_ids > 0
    after = torch.zeros_like(token_ids)
    after[:, :-1] = token_ids[:, 1:] * present[:, :-1]
    if not bidirectional:
        return [after]
    before = torch.zeros_like(token_ids)
    before[:, 1:] = token_ids[:, :-1] * present[:, 1:]
    return [after, before]
