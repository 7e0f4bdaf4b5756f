"""The language models as AllenNLP's configs name them."""

import logging
from typing import Any, Dict, List, Optional, Tuple

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


class TokenPerplexity(Metric):
    """
    `exp(total negative log-likelihood / total number of predicted tokens)`, of both directions and
    of each.

    AllenNLP's `Perplexity` averages the losses of batches, whatever their sizes, and so changes
    with the batch size and the order of the data. This one adds up numerators and denominators.
    Under distributed training the processes' totals are added when the metric is read with
    `reset=True`, which all of them do at the end of an epoch; in between, each sees its own.
    """

    supports_distributed = True

    def __init__(self, num_directions: int) -> None:
        self.num_directions = num_directions
        # Totals of the directions, and the number of tokens that each predicted: float64, and on
        # the device of the losses, so that adding to them never waits for it.
        self.totals: Optional[torch.Tensor] = None

    @overrides(check_signature=False)
    def __call__(self, losses: List[torch.Tensor], training: bool = False) -> None:
        """`losses`: for each direction those of its predictions, shape `(num_pairs,)`, in nats."""
        # A sum of thousands in float32 would show in the sixth digit of the perplexity.
        sums = [direction.detach().sum(dtype=torch.float64) for direction in losses]
        added = torch.stack([*sums, torch.full_like(sums[0], losses[0].numel())])
        if training:
            # A step whose loss isn't finite is skipped, and one of them would be all that an
            # epoch's perplexity tells.
            added = added.where(added.isfinite().all(), 0.0)
        self.totals = added if self.totals is None else self.totals.to(added.device) + added

    @overrides
    def get_metric(self, reset: bool = False) -> Dict[str, float]:
        """`perplexity` and those of directions, if there are two; 0 if there was no token."""
        totals = self.totals
        if totals is None:
            totals = torch.zeros(self.num_directions + 1, dtype=torch.float64)
        if reset:
            self.reset()
            if several_processes():
                # A process without data takes part all the same, or the others would wait forever.
                totals = totals.to("cuda" if dist.get_backend() == "nccl" else "cpu")
                dist.all_reduce(totals)
        *losses, count = totals.tolist()
        found = {"perplexity": sum(losses) / len(losses)}
        if len(losses) > 1:
            found.update({f"{name}_perplexity": x for name, x in zip(DIRECTIONS, losses)})
        return {name: perplexity(-x, int(count)) if count else 0.0 for name, x in found.items()}

    @overrides
    def reset(self) -> None:
        self.totals = None


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
    - `num_samples`: Train on this many sampled words instead of the full softmax, unless the
      vocabulary has no more words than that. Evaluation is always exact.
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
        word_dim, input_dim = text_field_embedder.get_output_dim(), contextualizer.get_input_dim()
        if word_dim != input_dim:
            raise ConfigurationError(
                f"The text field embedder makes vectors of dimension {word_dim}, but the "
                f"contextualizer expects an input dimension of {input_dim}."
            )
        self._text_field_embedder = text_field_embedder
        self._contextualizer = contextualizer
        self._bidirectional = bidirectional
        self.precision = checked_precision(precision)
        self.compiles = compile
        self._dropout = Dropout(dropout or 0.0)

        self._softmax_loss: Optional[Softmax] = None
        self._order: Optional[FrequencyOrder] = None
        self.first_targets: Optional[torch.Tensor] = None
        """The rows of the softmax that training has predicted first."""
        making = making_softmaxes()
        self._loads_softmax = making == "to be loaded"
        # The vocabulary counts its padding entry too: one row more than there are words, as in
        # every archive written so far.
        num_words, dim = vocab.get_vocab_size(), contextualizer.get_output_dim()
        dim //= 2 if bidirectional else 1
        if making == "left out":
            pass
        elif num_samples is None or num_samples >= num_words:
            self._softmax_loss = SoftmaxLoss(num_words, dim)
            if num_samples is not None and making == "new":
                logger.info(
                    "num_samples is %s, and the vocabulary has %s entries: the full softmax is "
                    "trained.",
                    f"{num_samples:,}",
                    f"{num_words:,}",
                )
        else:
            self._softmax_loss = SampledSoftmaxLoss(num_words, dim, num_samples, sparse_embeddings)
            self._order = FrequencyOrder(word_list(vocab))
            if sparse_embeddings:
                # The loss averages its own rows over processes, where DistributedDataParallel would
                # send every word's.
                names = [f"_softmax_loss.{n}" for n, _ in self._softmax_loss.named_parameters()]
                DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)

        # Nothing reads it, but every archive has it.
        self.register_buffer("_last_average_loss", torch.zeros(1))
        self._perplexity = TokenPerplexity(2 if bidirectional else 1)
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
        AllenNLP's function of this name. Raises `ConfigurationError` if the vocabulary has words
        now that the softmax doesn't know: training hasn't said how probable they are.
        """
        if self._softmax_loss is not None:
            num_words = self._softmax_loss.word_weights()[0].size(0)
            if self.vocab.get_vocab_size() > num_words:
                raise ConfigurationError(
                    f"The vocabulary of a language model that predicts {num_words} words can't be "
                    f"extended to {self.vocab.get_vocab_size()}. To go on with other words, take "
                    'the model "from_pretrained_lm".'
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
        """All that the contextualizer gives of a batch. Threads may share the model."""
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
            raise ConfigurationError(
                "Probabilities of words need the words' ids, but the text field has entries for "
                f"{sorted(source)} only. Give the dataset reader a single_id indexer named tokens."
            )
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
        if self.training:
            self.first_targets = targets[0] if self.first_targets is None else self.first_targets
            problem = None if self._order is None else self._order.problem(targets[0])
            if problem is not None:
                logger.warning("%s", problem)
        with computing(self.precision, self.compiles, token_ids.device):
            return losses_of_directions(self._softmax_loss, embeddings, targets)

    def _losses(self, token_losses: List[torch.Tensor]) -> Dict[str, torch.Tensor]:
        """From `losses` to what `forward` returns of them."""
        totals = torch.stack([losses.sum() for losses in token_losses])
        # The same words for both directions, but for the sentence's ends.
        count = torch.full_like(totals[0].detach(), float(token_losses[0].numel()))
        divisor = count.clone()
        if self.training and several_processes():
            # DistributedDataParallel averages gradients over processes, however many words each
            # one has. Divided by the mean number of words, each loss weighs its words as one
            # process with all of them would.
            dist.all_reduce(divisor)
            divisor /= dist.get_world_size()
        divisor.clamp_(min=1)
        # Last, so that nothing is counted where memory runs out.
        self._perplexity(token_losses, self.training)
        named = {f"{name}_loss": total / divisor for name, total in zip(DIRECTIONS, totals)}
        return {"loss": totals.mean() / divisor, "batch_weight": count, **named}

    @overrides
    def get_metrics(self, reset: bool = False) -> Dict[str, float]:
        """
        `perplexity` over all words since the last reset, and for bidirectional models
        `forward_perplexity` and `backward_perplexity`.
        """
        return self._perplexity.get_metric(reset)


@Model.register("bidirectional-language-model", exist_ok=True)
@Model.register("bidirectional_language_model", exist_ok=True)
class BidirectionalLanguageModel(LanguageModel):
    """
    A `LanguageModel` that is always bidirectional.

    Registered as a `Model` with names "bidirectional_language_model" and
    "bidirectional-language-model". Its parameters are those of `LanguageModel`.
    """

    _always_bidirectional = True
