"""
Batches for which memory runs out. Validation and evaluation run them in parts; a training run ends
with one message.
"""

from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, TypeVar

import torch

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.memory import BatchSplitter, out_of_memory
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.text_fields import forget_words, rows_of, text_field_mask

ResultT = TypeVar("ResultT")

# What of a model's output is a mean over predicted words.
_MEANS = ("loss", "forward_loss", "backward_loss", "reg_loss")


def validated(
    splitter: BatchSplitter, function: Callable[[Any], Dict[str, Any]], batch: Any, trainer: Any
) -> Dict[str, Any]:
    """
    A language model's output for a batch of validation: the whole, or of parts the losses alone.
    Batches of other models aren't split, for nobody knows what their losses are the mean of.

    Raises `ConfigurationError` if memory runs out for a sentence alone.
    """
    model = trainer.model
    if (
        type(model).forward is not LanguageModel.forward
        or batch.keys() != {"source"}
        or "tokens" not in batch["source"]
        or model.softmax is None
        or getattr(trainer._ddp_wrapped_model, "is_sharded", False)
    ):
        return function(batch)

    def run(part: Any) -> Dict[str, Any]:
        with counting(model):
            # Parts without what several processes do together at each batch.
            return function(batch) if part is batch else model(**part)

    outputs = in_parts(splitter, run, batch, model, trainer._validation_data_loader, True)
    return outputs[0] if len(outputs) == 1 else _of_parts(outputs)


def in_parts(
    splitter: BatchSplitter,
    function: Callable[[Any], ResultT],
    batch: Any,
    model: LanguageModel,
    loader: Any,
    validates: bool,
) -> List[ResultT]:
    """
    `function`: from a batch to a result; see `BatchSplitter.run`. `batch`: its sentences are in
    `source`. `loader`: the batch's. `validates`: see `key_of`. Returns the results of the parts: of
    the batch itself, if all went well.
    """
    sentences = range((shape_of(batch) or (0, 0))[0])
    return splitter.run(
        lambda rows: function(batch if rows == sentences else _part(batch, rows)),
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


def _of_parts(outputs: List[Dict[str, Any]]) -> Dict[str, Any]:
    """The losses of a batch, from those of its parts: means over predicted words."""
    weights = torch.stack([part["batch_weight"] for part in outputs])
    shares = weights / weights.sum().clamp(min=1)
    whole = {
        name: (shares * torch.stack([part[name] for part in outputs])).sum()
        for name in _MEANS
        if name in outputs[0]
    }
    return {**whole, "batch_weight": weights.sum()}


@contextmanager
def counting(model: LanguageModel) -> Iterator[None]:
    """What is run in a block that fails is not counted by the model's metrics."""
    before = model.counted
    try:
        yield
    except BaseException:
        model.counted = before
        raise


def shape_of(batch: Any) -> Optional[Tuple[int, int]]:
    """
    `batch`: as a data loader gives it. Returns the sentences of its first text and the tokens of
    the longest one; `None` if there is no text.
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
    `validates`: whether a config may have a section of its own for it. Returns the keys of a config
    that say how large its batches are, and their values.
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

    `batch`: the last one. `problem`: what torch said.
    """
    shape = shape_of(batch)
    what = "training" if shape is None else "a batch of {} sentences x {} tokens".format(*shape)
    return out_of_memory(f"{what} ({problem})", f"Lower {key_of(trainer.data_loader)}.")
