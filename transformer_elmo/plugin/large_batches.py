"""
Batches for which memory runs out. Validation and evaluation run them in parts; a training run ends
with one message.
"""

from contextlib import suppress
from functools import partial
from typing import Any, Callable, Dict, List, TypeVar

import torch

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.memory import BatchSplitter, out_of_memory
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.text_fields import forget_words, rows_of, text_field_mask

ResultT = TypeVar("ResultT")

# What of a model's output is a mean over predicted words.
_MEANS = ("loss", "forward_loss", "backward_loss")


def validated(
    splitter: BatchSplitter, function: Callable[[Any], Dict[str, Any]], batch: Any, trainer: Any
) -> Dict[str, Any]:
    """
    A language model's output for a batch of validation: the whole, or of parts the losses alone.
    Batches of other models aren't split, for nobody knows what their losses are the mean of.

    Raises `ConfigurationError` if memory runs out for a sentence alone.
    """
    model = trainer.model
    if not isinstance(model, LanguageModel) or getattr(
        trainer._ddp_wrapped_model, "is_sharded", False
    ):
        return function(batch)
    outputs = in_parts(
        splitter,
        # Parts without what several processes do together at each batch.
        lambda part: function(batch) if part is batch else model(**part),
        batch,
        model,
        trainer._validation_data_loader,
    )
    if len(outputs) == 1:
        return outputs[0]
    weights = torch.stack([part["batch_weight"] for part in outputs])
    shares = weights / weights.sum().clamp(min=1)
    whole = {
        name: (shares * torch.stack([part[name] for part in outputs])).sum()
        for name in _MEANS
        if name in outputs[0]
    }
    return {**whole, "batch_weight": weights.sum()}


def in_parts(
    splitter: BatchSplitter,
    function: Callable[[Any], ResultT],
    batch: Any,
    model: LanguageModel,
    loader: Any,
) -> List[ResultT]:
    """
    `function`: from a batch to a result; see `BatchSplitter.run`. `batch`: its sentences are in
    `source`. `loader`: the batch's. Returns the results of the parts: of the batch itself, if all
    went well.
    """
    source = batch["source"]
    sentences = range(text_field_mask(source).size(0))

    def run(rows: range) -> ResultT:
        return function(batch if rows == sentences else {"source": rows_of(source, rows)})

    longest = getattr(getattr(loader, "reader", None), "max_sequence_length", None)
    return splitter.run(
        run,
        sentences,
        lambda row: int(text_field_mask(source)[row].sum()),
        f"{key_of(loader)}, in validation_data_loader where the config has one",
        "Take a device with more memory, or a text without such sentences; in training, "
        f"dataset_reader.max_sequence_length (now {longest}) leaves them out.",
        partial(forget_words, model),
    )


def key_of(loader: Any) -> str:
    """The keys of a config that say how large the loader's batches are, and their values."""
    owner, section = loader, "data_loader"
    if getattr(loader, "batch_sampler", None) is not None:
        owner, section = loader.batch_sampler, "data_loader.batch_sampler"
    values = {name: getattr(owner, name, None) for name in ("max_tokens", "batch_size")}
    named = [f"{section}.{name} (now {value})" for name, value in values.items() if value]
    return " or ".join(named) or "the size of the batches in data_loader"


def failure(trainer: Any, batch: Any, problem: str) -> ConfigurationError:
    """
    What to raise of a training run in which memory ran out for what can't be split.

    `batch`: the last one. `problem`: what torch said.
    """
    what = "training"
    for field in batch.values() if isinstance(batch, dict) else ():
        with suppress(Exception):
            # Any model's first text.
            mask = text_field_mask(field)
            what = f"a batch of {mask.size(0)} sentences x {mask.size(1)} tokens"
            break
    return out_of_memory(f"{what} ({problem})", f"Lower {key_of(trainer.data_loader)}.")
