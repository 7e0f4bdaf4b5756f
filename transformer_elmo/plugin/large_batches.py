"""
Batches for which memory runs out while a language model is trained or validated: they are run in
parts, whose loss, gradients and metrics are those of the whole.
"""

import itertools
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, TypeVar

import torch

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.sparse_gradients import several_processes
from transformer_elmo.nn.softmax import Draw, SampledSoftmaxLoss
from transformer_elmo.out_of_memory import (
    BatchSplitter,
    free_memory,
    is_out_of_memory,
    one_sentence,
    out_of_memory,
)
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.text_fields import forget_words, rows_of, text_field_mask

ResultT = TypeVar("ResultT")

# From a batch to the model's output, the regularization penalty included.
Forward = Callable[[Any], Dict[str, Any]]


class LargeBatches:
    """
    Of a language model in a single process, a batch that fails is run in halves, quarters, and so
    on. The gradients are those of the whole: each part's loss weighs as much as the part has words
    to predict, and all parts share the words that the softmax draws. Dropout is drawn anew. Where
    the backward pass fails, the gradients of the step are dropped, and all of its batches are run
    again.

    Batches of other models aren't split, for nobody knows what their losses are the mean of; nor
    are those of several processes in training, which would wait for each other. In validation,
    processes don't wait.
    """

    def __init__(self) -> None:
        self.latest: Any = None
        """The batch that was run last."""
        self.splitter = BatchSplitter()
        """Counts the batches that have been split, and warns of them."""
        self._step: List[_Made] = []

    def output(self, forward: Forward, trainer: Any, batch: Any, training: bool) -> Dict[str, Any]:
        """
        # Parameters

        forward : `Callable`
        trainer : `GradientDescentTrainer`
        batch : `Any`
            As a data loader gives it.
        training : `bool`

        # Returns

        `Dict[str, Any]`
            `forward(batch)`, or of parts the losses alone. The backward pass of `loss` gives the
            gradients, whether memory is enough for the whole or not.

        # Raises

        `ConfigurationError`
            If memory runs out for a sentence alone.
        """
        self.latest = batch
        model = trainer.model
        if (
            type(model).forward is not LanguageModel.forward
            or batch.keys() != {"source"}
            or "tokens" not in batch["source"]
            or model.softmax is None
            or (training and several_processes())
            or getattr(trainer._ddp_wrapped_model, "is_sharded", False)
        ):
            return forward(batch)

        def run(part: Any) -> Dict[str, Any]:
            if part is batch:
                with counting(model):
                    return forward(batch)
            with counting(model), torch.no_grad():
                # Not what several processes do together at each batch.
                output = forward(part) if training else model(**part)
            return {name: output[name] for name in (*_MEANS, "batch_weight") if name in output}

        loader = trainer.data_loader if training else trainer._validation_data_loader
        with one_draw(model.softmax):
            outputs = in_parts(self.splitter, run, batch, model, loader, not training)
            drawn = getattr(model.softmax, "drawn", None)
        output = outputs[0][1] if len(outputs) == 1 else _of_parts(batch, outputs)
        if training:
            made = _Made(forward, trainer, batch, drawn, output)
            if len(outputs) == 1:
                made.loss = output["loss"]
            self._step.append(made)
            output["loss"] = _Loss.apply(_ANCHOR, output["loss"].detach(), self, made)
        return output

    def end_step(self) -> None:
        """Called when the optimizer has made its step."""
        for made in self._step:
            # Or each would hold the other: the loss knows the batch that it is of.
            made.loss, made.output = None, {}
        self._step.clear()

    def backward(self, made: "_Made", gradient: torch.Tensor) -> None:
        """
        Adds the gradients of a batch of this step to those of the parameters.

        # Parameters

        made : `_Made`
        gradient : `torch.Tensor`
            Of the batch's loss. Shape `()`.
        """
        made.gradient = gradient
        was_whole = made.loss is not None
        if made.loss is not None:
            try:
                torch.autograd.backward(made.loss, gradient)
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        made.drop_graph()
        failed: Optional[_Made] = made
        # What a backward pass that failed has left can't be told from what was there before.
        todo = self._step if was_whole else [made]
        if was_whole and made.num_sentences > 1:
            key = key_of(made.trainer.data_loader)
            self.splitter.warn(made.num_sentences, made.num_tokens, key)
        while failed is not None:
            failed.split_further()
            if todo is self._step:
                for parameter in made.trainer.model.parameters():
                    parameter.grad = None
            free_memory(failed is made)
            failed = _first_that_fails(todo)
            todo = self._step


def _first_that_fails(batches: List["_Made"]) -> Optional["_Made"]:
    for made in batches:
        try:
            made.backward_of_parts()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return made
    return None


class _Loss(torch.autograd.Function):
    """A batch's loss, whose backward pass may fail and be tried again in parts."""

    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, value: torch.Tensor, batches: LargeBatches, made: "_Made"
    ) -> torch.Tensor:
        ctx.batches, ctx.made = batches, made
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Tuple[None, None, None, None]:
        ctx.batches.backward(ctx.made, gradient)
        return None, None, None, None


# Without an input that wants a gradient, there would be no backward pass.
_ANCHOR = torch.zeros((), requires_grad=True)

# What of a model's output is a mean over predicted words.
_MEANS = ("loss", "forward_loss", "backward_loss", "reg_loss")


class _Made:
    """
    A batch of this step, and what has been made of it.

    # Parameters

    forward : `Callable`
    trainer : `GradientDescentTrainer`
    batch : `Any`
    drawn : `Draw`, optional
        What the softmax has drawn for it.
    output : `Dict[str, Any]`
    """

    def __init__(
        self,
        forward: Forward,
        trainer: Any,
        batch: Any,
        drawn: Optional[Draw],
        output: Dict[str, Any],
    ) -> None:
        self.trainer, self.batch, self.output = trainer, batch, output
        self.num_sentences, self.num_tokens = shape_of(batch) or (0, 0)
        # With its graph, if the forward pass was that of the whole.
        self.loss: Optional[torch.Tensor] = None
        # Of the loss, once the backward pass has come here.
        self.gradient: Optional[torch.Tensor] = None
        self._forward, self._drawn = forward, drawn
        self._num_parts = 1

    def drop_graph(self) -> None:
        """Leaves of the output what takes no memory: the losses as numbers."""
        self.loss = None
        for name, value in list(self.output.items()):
            if name in _MEANS[1:]:
                self.output[name] = value.detach()
            elif name not in ("loss", "batch_weight"):
                del self.output[name]

    def split_further(self) -> None:
        """
        # Raises

        `ConfigurationError`
            If each part is a single sentence.
        """
        if self._num_parts >= self.num_sentences:
            longest = max(_lengths(self.batch))
            raise out_of_memory(one_sentence(longest), alone(self.trainer.data_loader))
        self._num_parts = min(2 * self._num_parts, self.num_sentences)

    def backward_of_parts(self) -> None:
        """Adds the gradients of all parts to those of the parameters."""
        assert self.gradient is not None
        bounds = [
            self.num_sentences * number // self._num_parts for number in range(self._num_parts + 1)
        ]
        parts = [range(*pair) for pair in itertools.pairwise(bounds)]
        model = self.trainer.model
        # All of it was counted in the forward pass.
        with counting(model, False), one_draw(model.softmax, self._drawn):
            for rows, share in zip(parts, _shares(self.batch, parts)):
                with ExitStack() as stack:
                    stack.enter_context(torch.enable_grad())
                    if self.trainer._use_amp:
                        stack.enter_context(torch.autocast("cuda"))
                    loss = self._forward(_part(self.batch, rows))["loss"]
                torch.autograd.backward(loss, self.gradient * share)


def in_parts(
    splitter: BatchSplitter,
    function: Callable[[Any], ResultT],
    batch: Any,
    model: LanguageModel,
    loader: Any,
    validates: bool,
) -> List[Tuple[range, ResultT]]:
    """
    # Parameters

    splitter : `BatchSplitter`
    function : `Callable`
        From a batch to a result; see `BatchSplitter.run`.
    batch : `Any`
        Its sentences are in `source`.
    model : `LanguageModel`
    loader : `DataLoader`
        The batch's.
    validates : `bool`
        See `key_of`.

    # Returns

    `List[Tuple[range, Any]]`
        The sentences of each part and the function's result: the batch itself, if all went well.
    """
    sentences = range((shape_of(batch) or (0, 0))[0])
    return splitter.run(
        lambda rows: (rows, function(batch if rows == sentences else _part(batch, rows))),
        sentences,
        lambda row: _lengths(batch)[row],
        key_of(loader, validates),
        alone(loader),
        partial(forget_words, model),
    )


def _part(batch: Any, rows: range) -> Dict[str, Any]:
    return {"source": rows_of(batch["source"], rows)}


def _lengths(batch: Any) -> List[int]:
    """How many tokens each sentence has."""
    return text_field_mask(batch["source"]).sum(-1).tolist()


def _shares(batch: Any, parts: List[range]) -> List[float]:
    """How much of what a batch predicts is in each part."""
    # All words of a sentence but one predict another, in each direction.
    predictions = [max(length - 1, 0) for length in _lengths(batch)]
    total = sum(predictions)
    if not total:
        return [len(rows) / len(predictions) for rows in parts]
    return [sum(predictions[row] for row in rows) / total for rows in parts]


def _of_parts(batch: Any, outputs: List[Tuple[range, Dict[str, Any]]]) -> Dict[str, Any]:
    """The losses of a batch, from those of its parts."""
    shares = _shares(batch, [rows for rows, _ in outputs])
    parts = [part for _, part in outputs]
    whole: Dict[str, Any] = {
        name: sum(share * part[name] for share, part in zip(shares, parts))
        for name in _MEANS
        if name in parts[0]
    }
    whole["batch_weight"] = sum(part["batch_weight"] for part in parts)
    return whole


@contextmanager
def counting(model: LanguageModel, counts: bool = True) -> Iterator[None]:
    """
    Whether the model's metrics count what is run in the block. Where the block fails, they don't.
    """
    before, done = model.counted, False
    try:
        yield
        done = True
    finally:
        if not (done and counts):
            model.counted = before


@contextmanager
def one_draw(softmax: Any, drawn: Optional[Draw] = None) -> Iterator[None]:
    """`SampledSoftmaxLoss.one_draw`, if it is one."""
    with ExitStack() as stack:
        if isinstance(softmax, SampledSoftmaxLoss):
            stack.enter_context(softmax.one_draw(drawn))
        yield


def shape_of(batch: Any) -> Optional[Tuple[int, int]]:
    """
    # Parameters

    batch : `Any`
        As a data loader gives it.

    # Returns

    `Tuple[int, int]`, optional
        The sentences of its first text and the tokens of the longest one; `None` if there is no
        text.
    """
    for field in batch.values() if isinstance(batch, dict) else ():
        for entry in field.values() if isinstance(field, dict) else ():
            if not isinstance(entry, dict):
                continue
            tensors = [entry.get("word_index"), *entry.values()]
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor) and tensor.dim() > 1:
                    return tensor.size(0), tensor.size(1)
    return None


def key_of(loader: Any, validates: bool = False) -> str:
    """
    # Parameters

    loader : `DataLoader`
    validates : `bool`, optional (default = `False`)
        Whether a config may have a section of its own for it.

    # Returns

    `str`
        The keys of a config that say how large its batches are, and their values.
    """
    owner, section = loader, "data_loader"
    if getattr(loader, "batch_sampler", None) is not None:
        owner, section = loader.batch_sampler, "data_loader.batch_sampler"
    values = {name: getattr(owner, name, None) for name in ("max_tokens", "batch_size")}
    named = [f"{section}.{name} (now {value})" for name, value in values.items() if value]
    key = " or ".join(named) or "the size of the batches in data_loader"
    return f"{key}, in validation_data_loader where the config has one" if validates else key


def alone(loader: Any) -> str:
    """What to do where a sentence alone is too long."""
    longest = getattr(getattr(loader, "reader", None), "max_sequence_length", None)
    return (
        "Take a device with more memory, or a text without such sentences; in training, "
        f"dataset_reader.max_sequence_length (now {longest}) leaves them out."
    )


def failure(trainer: Any, batch: Any, problem: str) -> ConfigurationError:
    """
    What to raise of a training run in which memory ran out for what can't be split.

    # Parameters

    trainer : `GradientDescentTrainer`
    batch : `Any`
        The last one.
    problem : `str`
        What torch said.
    """
    shape = shape_of(batch)
    what = "training" if shape is None else "a batch of {} sentences x {} tokens".format(*shape)
    why = ""
    if isinstance(trainer.model, LanguageModel) and several_processes():
        why = " With several processes, batches aren't run in parts."
    elif not isinstance(trainer.model, LanguageModel):
        why = " Only language models' batches are run in parts."
    return out_of_memory(f"{what} ({problem})", f"Lower {key_of(trainer.data_loader)}.{why}")
