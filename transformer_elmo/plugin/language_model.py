"""The language models as AllenNLP's configs name them."""

import logging
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.distributed as dist
from allennlp.data import TextFieldTensors, Vocabulary
from allennlp.models import Model
from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
from allennlp.modules.text_field_embedders import TextFieldEmbedder
from allennlp.nn import InitializerApplicator
from allennlp.nn.util import _check_incompatible_keys, _IncompatibleKeys
from allennlp.training.metrics import Metric
from overrides import overrides
from torch.nn.parallel import DistributedDataParallel

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.evaluation import DIRECTIONS, perplexity
from transformer_elmo.nn.batch import PackedBatch
from transformer_elmo.nn.kernels.dropout import Dropout
from transformer_elmo.nn.kernels.sparse_gradients import several_processes
from transformer_elmo.nn.language_model import EncoderOutput, losses_of_directions, predicted
from transformer_elmo.nn.precision import checked_precision, computing
from transformer_elmo.nn.softmax import (
    FrequencyOrder,
    SampledSoftmaxLoss,
    Softmax,
    SoftmaxLoss,
    making_softmaxes,
    softmaxes,
)
from transformer_elmo.plugin.contextualizer import BidirectionalLanguageModelTransformer
from transformer_elmo.plugin.keys import parameters_of, unknown_keys
from transformer_elmo.plugin.text_fields import embed_text_field, host_lengths, text_field_mask
from transformer_elmo.plugin.vocabulary import word_list

logger = logging.getLogger(__name__)

WITHOUT_IDS = (
    "Probabilities of words need the words' ids, but the text field has entries for {} only. Add a "
    "single_id indexer named tokens to the dataset reader."
)


class TokenPerplexity(Metric):
    """
    `exp(total negative log-likelihood / total number of predicted tokens)`.

    AllenNLP's `Perplexity` averages the losses of batches, whatever their sizes, and so changes
    with the batch size and the order of the data. This one adds up numerators and denominators.
    Under distributed training the processes' totals are added when the metric is read with
    `reset=True`, which all of them do at the end of an epoch; in between, each sees its own.
    """

    supports_distributed = True

    def __init__(self) -> None:
        # Totals stay on the device of the losses, so that adding to them never waits for it.
        self.total: Optional[torch.Tensor] = None
        """Both sums, shape `(2,)`; another tensor each time that something is added."""

    @overrides(check_signature=False)
    def __call__(
        self, negative_log_likelihood: torch.Tensor, num_tokens: Union[torch.Tensor, int]
    ) -> None:
        """
        `negative_log_likelihood`: a scalar: the sum over tokens, in nats. `num_tokens`: how many
        tokens it is the sum of.
        """
        total = negative_log_likelihood.detach().double().reshape(())
        if isinstance(num_tokens, int):
            count = torch.full_like(total, num_tokens)
        else:
            count = num_tokens.to(total).reshape(())
        added = torch.stack([total, count])
        self.total = added if self.total is None else self.total.to(added.device) + added

    def loss(self, reset: bool = False) -> Optional[float]:
        """The mean loss of a token, in nats; `None` if there was none."""
        total = self.total
        if reset:
            self.reset()
            if several_processes():
                # A process without data takes part all the same, or the others would wait forever.
                device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
                total = torch.zeros(2, dtype=torch.float64) if total is None else total
                total = total.to(device)
                dist.all_reduce(total)
        if total is None:
            return None
        negative_log_likelihood, num_tokens = total.tolist()
        return negative_log_likelihood / num_tokens if num_tokens else None

    @overrides
    def get_metric(self, reset: bool = False) -> float:
        """The perplexity; 0 if there was no token, as AllenNLP's metric has it."""
        loss = self.loss(reset)
        return 0.0 if loss is None else perplexity(-loss, 1)

    @overrides
    def reset(self) -> None:
        self.total = None


@Model.register("language_model", exist_ok=True)
class LanguageModel(Model):
    """
    A language model over a `Seq2SeqEncoder` ("contextualizer"), trained to predict each next word
    of a sentence and, if bidirectional, each previous one.

    The contextualizer must not peek: what it says about a position may depend, in its forward half,
    on nothing after it, and in its backward half on nothing before it.

    Registered as a `Model` with name "language_model".

    - `text_field_embedder`: Turns words into vectors. A character CNN (`character_encoding` over
      `cnn-highway`) is run once for each distinct word of a batch.
    - `contextualizer`: Its input dimension is the text field embedder's output dimension.
    - `dropout`: On the contextual embeddings as the softmax sees them; those returned are without
      it.
    - `num_samples`: Train on this many sampled words instead of the full softmax. Evaluation is
      always exact.
    - `sparse_embeddings`: With `num_samples`: sparse gradients for the softmax weights.
    - `bidirectional`: Must match the contextualizer.
    - `precision`: `"bfloat16"` runs the matrix products in bfloat16. Parameters, statistics and
      losses stay in float32.
    - `compile`: Whether `torch.compile` makes the exact softmax, on a GPU.

    Raises `ConfigurationError` if dimensions, directions, samples and vocabulary don't fit
    together.
    """

    default_predictor = "language_model"
    _always_bidirectional = False

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
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        known = [*parameters_of(LanguageModel.__init__), *parameters_of(Model.__init__)]
        unknown = kwargs.keys() - {*known, "serialization_dir"}
        if unknown:
            raise unknown_keys(sorted(unknown), known, "model.")
        super().__init__(vocab, **kwargs)
        bidirectional = bidirectional or self._always_bidirectional
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
        self._text_field_embedder = text_field_embedder
        self._contextualizer = contextualizer
        self._bidirectional = bidirectional
        self.precision = checked_precision(precision)
        self.compiles = compile
        self._forward_dim = contextualizer.get_output_dim() // (2 if bidirectional else 1)
        self._dropout = Dropout(dropout or 0.0)

        self._softmax_loss: Optional[Softmax] = None
        if making_softmaxes() != "left out":
            # The vocabulary counts its padding entry too: one row more than there are words, as in
            # every archive written so far.
            num_words = vocab.get_vocab_size()
            if num_samples is None:
                self._softmax_loss = SoftmaxLoss(num_words, self._forward_dim)
            else:
                self._softmax_loss = SampledSoftmaxLoss(
                    num_words, self._forward_dim, num_samples, sparse=sparse_embeddings
                )
        self._loads_softmax = making_softmaxes() == "to be loaded"
        self.first_targets: Optional[torch.Tensor] = None
        """The rows of the softmax that training has predicted first."""
        self._order: Optional[FrequencyOrder] = None
        if isinstance(self._softmax_loss, SampledSoftmaxLoss):
            self._order = FrequencyOrder(word_list(vocab))

        if self._softmax_loss is not None and num_samples is not None and sparse_embeddings:
            # The loss averages its own rows over processes, where this one would send every word's.
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                self, [f"_softmax_loss.{name}" for name, _ in self._softmax_loss.named_parameters()]
            )

        # Nothing reads it, but every archive has it.
        self.register_buffer("_last_average_loss", torch.zeros(1))
        self._perplexity = TokenPerplexity()
        self._direction_perplexities = (
            {name: TokenPerplexity() for name in DIRECTIONS} if bidirectional else {}
        )
        if initializer is not None:
            initializer(self)

    @property
    def is_bidirectional(self) -> bool:
        return self._bidirectional

    @property
    def word_dim(self) -> int:
        """The dimension of a word's vector without context."""
        return self._text_field_embedder.get_output_dim()

    @property
    def output_dim(self) -> int:
        """The dimension of a word's vector in context: of both directions, if there are two."""
        return self._contextualizer.get_output_dim()

    @property
    def softmax(self) -> Optional[Softmax]:
        return self._softmax_loss

    def delete_softmax(self) -> None:
        """Drops the softmax weights, for uses without probabilities. `forward` has no loss then."""
        self._softmax_loss = None

    @overrides(check_signature=False)
    def extend_embedder_vocab(self, *args: Any, **kwargs: Any) -> None:
        """
        AllenNLP's function of this name. The softmax can't follow: what a new word's chance
        would be, training hasn't said.

        Raises `ConfigurationError` if the vocabulary has words now that the softmax doesn't know.
        """
        if self._softmax_loss is not None:
            num_words = self._softmax_loss.word_weights()[0].size(0)
            if self.vocab.get_vocab_size() > num_words:
                raise ConfigurationError(
                    f"The language model was trained to predict {num_words} words, and its "
                    f"vocabulary now has {self.vocab.get_vocab_size()}: it can't be extended. To "
                    'go on with other words, take the model "from_pretrained_lm". Elsewhere '
                    "leave out what extends the vocabulary (--extend-vocab, or a vocabulary of "
                    'type "extend"); words that it doesn\'t know count as the unknown one.'
                )
        super().extend_embedder_vocab(*args, **kwargs)

    def num_layers(self) -> int:
        """
        The contextualizer's layers, and one more for the word vectors beneath them.

        Raises `NotImplementedError` if the contextualizer doesn't say.
        """
        layers = getattr(self._contextualizer, "num_layers", None)
        if layers is None:
            raise NotImplementedError(
                f"A contextualizer of type {type(self._contextualizer).__name__} does not report "
                "how many layers it has (as an attribute num_layers)."
            )
        return layers + 1

    @overrides(check_signature=False)
    def load_state_dict(self, state_dict: Dict[str, torch.Tensor], strict: bool = True) -> Any:
        """AllenNLP's function of this name. Rows of a softmax without numbers aren't copied."""
        if self._softmax_loss is None and making_softmaxes() == "left out":
            state_dict = {n: t for n, t in state_dict.items() if not n.startswith("_softmax_loss.")}
        if not self._loads_softmax:
            return super().load_state_dict(state_dict, strict)
        self._loads_softmax = False
        own = self.state_dict()
        state_dict = {n: t.to(own[n].dtype) if n in own else t for n, t in state_dict.items()}
        # AllenNLP's takes no `assign`.
        found = torch.nn.Module.load_state_dict(self, state_dict, strict=False, assign=True)
        missing, unexpected = self._post_load_state_dict(*found)
        _check_incompatible_keys(self, missing, unexpected, strict)
        return _IncompatibleKeys(missing, unexpected)

    @classmethod
    @overrides(check_signature=False)
    def _load(cls, *args: Any, **kwargs: Any) -> Model:
        """AllenNLP's function of this name, at half the memory."""
        making = making_softmaxes()
        with softmaxes("to be loaded" if making == "new" else making):
            return super()._load(*args, **kwargs)

    @overrides(check_signature=False)
    def forward(self, source: TextFieldTensors) -> Dict[str, Any]:
        """
        - `source`: A batch of sentences. The entry `tokens`, from a `single_id` indexer, holds the
          words to predict; without it there is no loss.

        Returns `Dict[str, torch.Tensor]` with

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
        encoded = self.encode(source)
        contextual: Any = encoded.layers
        if not self.has_all_layers:
            (contextual,) = encoded.layers
        output: Dict[str, Any] = {
            "lm_embeddings": contextual,
            "noncontextual_token_embeddings": encoded.word_vectors,
            "mask": encoded.mask,
        }
        if self._softmax_loss is None or "tokens" not in source:
            return output
        return {**self._losses(self.losses(encoded, self.token_ids(source))), **output}

    @property
    def has_all_layers(self) -> bool:
        """Whether the contextualizer gives all its layers, or its top one only."""
        return bool(getattr(self._contextualizer, "_return_all_layers", False))

    def word_vectors(self, source: TextFieldTensors) -> torch.Tensor:
        """What `encode` gives of words alone. Shape `(batch_size, timesteps, word_dim)`."""
        with computing(self.precision, self.compiles, text_field_mask(source).device):
            return embed_text_field(self._text_field_embedder, source)

    def encode(self, source: TextFieldTensors) -> EncoderOutput:
        """
        All that the contextualizer gives of a batch, without the softmax. It changes nothing in the
        model, so that threads may share it.
        """
        mask, facts = text_field_mask(source), host_lengths(source)
        top_rows: Optional[Tuple[torch.Tensor, torch.Tensor]] = None
        with computing(self.precision, self.compiles, mask.device):
            vectors = embed_text_field(self._text_field_embedder, source)
            if vectors.shape[:2] != mask.shape:
                raise ConfigurationError(
                    f"A batch has {vectors.size(1)} words by the token indexer that is embedded "
                    f"and {mask.size(1)} by another. Give start_tokens and end_tokens to all token "
                    "indexers alike, or to the dataset reader instead."
                )
            packing = PackedBatch(mask, None if facts is None else facts.lengths)
            if isinstance(self._contextualizer, BidirectionalLanguageModelTransformer):
                layers, top_rows = self._contextualizer.layers(vectors, packing)
            else:
                if packing.tokens.numel():
                    contextual = self._contextualizer(vectors, mask)
                else:
                    # AllenNLP's recurrent encoders can't take a batch without a word.
                    contextual = vectors.new_zeros(*mask.shape, self.output_dim)
                layers = contextual if isinstance(contextual, list) else [contextual]
        return EncoderOutput(vectors, layers, mask, packing, top_rows)

    def token_ids(self, source: TextFieldTensors) -> torch.Tensor:
        """
        The words to predict. Shape `(batch_size, timesteps)`.

        Raises `ConfigurationError` if the text field has none.
        """
        if "tokens" not in source or "tokens" not in source["tokens"]:
            raise ConfigurationError(WITHOUT_IDS.format(sorted(source)))
        ids = source["tokens"]["tokens"]
        if host_lengths(source) is not None:
            return ids
        # AllenNLP numbers a word "@@PADDING@@" as padding; our own loader doesn't.
        unknown = self.vocab.get_token_to_index_vocabulary().get(self.vocab._oov_token, 0)
        return torch.where(text_field_mask(source) & (ids == 0), unknown, ids)

    def losses(self, encoded: EncoderOutput, token_ids: torch.Tensor) -> List[torch.Tensor]:
        """
        The loss of each prediction, for each direction.

        - `token_ids`: Shape `(batch_size, timesteps)`.

        Returns shapes `(num_pairs,)`, float32, in nats.
        """
        assert self._softmax_loss is not None
        embeddings = [self._dropout(rows) for rows in encoded.predicting(self._bidirectional)]
        targets = predicted(encoded.packing, token_ids, self._bidirectional)
        if self.training and self.first_targets is None:
            self.first_targets = targets[0]
        if self.training and self._order is not None:
            problem = self._order.problem(targets[0])
            if problem is not None:
                logger.warning("%s", problem)
        with computing(self.precision, self.compiles, token_ids.device):
            return losses_of_directions(self._softmax_loss, embeddings, targets)

    def _losses(self, token_losses: List[torch.Tensor]) -> Dict[str, torch.Tensor]:
        # The same words for both directions, but for the sentence's ends.
        num_targets = token_losses[0].numel()
        totals = [losses.sum() for losses in token_losses]
        total = torch.stack(totals).mean()
        # A sum of thousands in float32 would show in the sixth digit of the perplexity.
        exact = torch.stack([losses.detach().sum(dtype=torch.float64) for losses in token_losses])
        counted = torch.full_like(exact[0], num_targets)
        if self.training:
            # A step whose loss isn't finite is skipped, and one of them would be all that an
            # epoch's perplexity tells.
            finite = exact.isfinite().all()
            exact, counted = exact.where(finite, 0.0), counted.where(finite, 0.0)
        self._perplexity(exact.mean(), counted)
        for metric, direction_total in zip(self._direction_perplexities.values(), exact):
            metric(direction_total, counted)

        count = torch.full_like(total.detach(), float(num_targets))
        divisor = self._mean_over_processes(count).clamp(min=1)
        output = {"loss": total / divisor, "batch_weight": count}
        for name, direction_total in zip(DIRECTIONS, totals):
            output[f"{name}_loss"] = direction_total / divisor
        return output

    def _mean_over_processes(self, count: torch.Tensor) -> torch.Tensor:
        """
        Distributed training averages gradients over processes, however many words each one has.
        Divided by the mean number of words instead of its own, each process's loss weighs its words
        as one process with all of them would.
        """
        if not (self.training and several_processes()):
            return count
        total = count.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @property
    def counted(self) -> List[Optional[torch.Tensor]]:
        """What the metrics have counted since the last reset. May be set to an earlier value."""
        return [metric.total for metric in self._metrics()]

    @counted.setter
    def counted(self, totals: List[Optional[torch.Tensor]]) -> None:
        for metric, total in zip(self._metrics(), totals):
            metric.total = total

    def _metrics(self) -> List[TokenPerplexity]:
        return [self._perplexity, *self._direction_perplexities.values()]

    @overrides
    def get_metrics(self, reset: bool = False) -> Dict[str, float]:
        """
        `perplexity` over all words since the last reset, and for bidirectional models
        `forward_perplexity` and `backward_perplexity`.
        """
        metrics = {"perplexity": self._perplexity.get_metric(reset)}
        for name, metric in self._direction_perplexities.items():
            metrics[f"{name}_perplexity"] = metric.get_metric(reset)
        return metrics


@Model.register("bidirectional-language-model", exist_ok=True)
@Model.register("bidirectional_language_model", exist_ok=True)
class BidirectionalLanguageModel(LanguageModel):
    """
    A `LanguageModel` that is always bidirectional.

    Registered as a `Model` with names "bidirectional_language_model" and
    "bidirectional-language-model". Its parameters are those of `LanguageModel`.
    """

    _always_bidirectional = True
