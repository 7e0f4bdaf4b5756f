"""
Steps whose loss or gradient isn't a number: they change no weights, their sentences are written
down, and a run that has nothing but such steps ends.
"""

import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist
from allennlp.data.token_indexers.elmo_indexer import ELMoCharacterMapper

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import json_text
from transformer_elmo.nn.kernels.sparse_gradients import several_processes
from transformer_elmo.text.vocabulary import NAMESPACE

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 10

# The mapper's ids are bytes and marks; in tensors each is one more, as zero is padding there.
_BYTES = range(1, 257)


class _Guarded(torch.autograd.Function):
    """
    A loss as it is if it is finite. Otherwise another number in its place, whose gradient is NaN:
    every process of a distributed run is to see that there is nothing to learn from this step.
    """

    @staticmethod
    def forward(
        ctx: Any, loss: torch.Tensor, finite: torch.Tensor, instead: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(finite)
        return torch.where(finite, loss, instead)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Tuple[torch.Tensor, None, None]:
        (finite,) = ctx.saved_tensors
        return torch.where(finite, gradient, torch.full_like(gradient, torch.nan)), None, None


class BadSteps:
    """
    `max_bad_steps`: after so many bad steps in a row the run ends. Raises `ConfigurationError` if
    it isn't a positive whole number.
    """

    def __init__(self, max_bad_steps: int = MAX_BAD_STEPS) -> None:
        if (
            isinstance(max_bad_steps, bool)
            or not isinstance(max_bad_steps, int)
            or max_bad_steps < 1
        ):
            raise ConfigurationError(
                "trainer.max_bad_steps must be a whole number of at least 1: got "
                f"{max_bad_steps!r}."
            )
        self.max_bad_steps = max_bad_steps
        self.in_a_row = 0
        # Of the batches of this step: what was given, and whether the loss is finite.
        self._batches: List[Tuple[Any, torch.Tensor]] = []
        self._usual_loss: Optional[torch.Tensor] = None
        self._norm: Optional[float] = None
        # Where the device knows and nobody has asked yet.
        self._is_bad: Optional[torch.Tensor] = None

    def guard(self, batch: Any, output: Dict[str, Any]) -> None:
        """`output`: the model's, with its loss, which is replaced where it isn't finite."""
        loss = output["loss"]
        finite = loss.detach().isfinite()
        if self._usual_loss is None:
            self._usual_loss = torch.zeros_like(loss.detach())
        guarded = _Guarded.apply(loss, finite, self._usual_loss)
        # What the epoch's mean loss takes for the next one that there is none of.
        self._usual_loss = guarded.detach()
        self._batches.append((batch, finite))
        output["loss"] = guarded

    def note_norm(self, norm: Optional[float]) -> None:
        """Takes the norm of all gradients, where somebody has asked the device for it anyway."""
        self._norm = norm

    def check(self, trainer: Any) -> bool:
        """
        Called between the backward pass and the optimizer's step, which has no effect if a
        gradient isn't finite.

        Returns whether there are gradients.
        """
        gradients = [
            p.grad._values() if p.grad.is_sparse else p.grad
            for p in trainer._pytorch_model.parameters()
            if p.grad is not None
        ]
        norm, self._norm = self._norm, None
        if trainer._scaler is not None:
            # It skips steps itself, and lowers its scale by them.
            self._is_bad = ~torch.stack([finite for _, finite in self._batches]).all()
            return bool(gradients)
        if norm is not None:
            self._is_bad = torch.tensor(not torch.isfinite(torch.tensor(norm)))
        elif gradients:
            norms = torch._foreach_norm([g.detach() for g in gradients if g.numel()])
            self._is_bad = ~torch.stack([n.float() for n in norms]).isfinite().all()
        else:
            return False
        if trainer._ddp_wrapped_model is not None and trainer._ddp_wrapped_model.is_sharded:
            # Of other processes' gradients each knows nothing.
            worst = self._is_bad.float()
            dist.all_reduce(worst, dist.ReduceOp.MAX)
            self._is_bad = worst > 0
        optimizer = trainer.optimizer
        if self._is_bad.device.type == "cuda" and (
            hasattr(optimizer, "take_back_step")
            or getattr(optimizer, "_step_supports_amp_scaling", False)
        ):
            # The host needn't wait for the backward pass to know.
            optimizer.found_inf = self._is_bad.float()
        elif bool(self._is_bad) and _is_bad(gradients):
            for parameter in trainer._pytorch_model.parameters():
                parameter.grad = None
            return False
        else:
            self._is_bad = None
        return True

    def settle(self, trainer: Any) -> bool:
        """
        Called when the step is over.

        Returns whether there were too many bad steps.
        """
        batches, self._batches = self._batches, []
        is_bad, self._is_bad = self._is_bad, None
        optimizer = trainer.optimizer
        deferred = getattr(optimizer, "found_inf", None) is not None and trainer._scaler is None
        if deferred:
            optimizer.found_inf = None
        if is_bad is None or not bool(is_bad):
            self.in_a_row = 0
            return False
        if deferred and hasattr(optimizer, "take_back_step"):
            optimizer.take_back_step()
        self.in_a_row += 1
        self._write(trainer, batches)
        return self.in_a_row >= self.max_bad_steps

    def _write(self, trainer: Any, batches: List[Tuple[Any, torch.Tensor]]) -> None:
        epoch, step = trainer._epochs_completed, trainer._batches_in_epoch_completed
        rank = dist.get_rank() if several_processes() else 0
        bad_losses = [batch for batch, finite in batches if not bool(finite)]
        what = "loss" if bad_losses else "gradient"
        where = ""
        if trainer._serialization_dir is not None:
            path = Path(trainer._serialization_dir) / (
                f"bad_steps_worker{rank}.jsonl" if several_processes() else "bad_steps.jsonl"
            )
            line = {
                "epoch": epoch,
                "step": step,
                "what": what,
                "sentences": [
                    sentence
                    for batch in bad_losses or [batch for batch, _ in batches]
                    for sentence in sentences_of(batch, trainer.model.vocab)
                ],
            }
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json_text(line) + "\n")
                where = f" Its sentences are in {path}."
            except OSError as error:
                where = f" {path} can't be written: {error.strerror}."
        if rank == 0 or bad_losses:
            logger.warning(
                "Step %d of epoch %d was skipped: a %s isn't finite (%d in a row, at most %d).%s",
                step,
                epoch,
                what,
                self.in_a_row,
                self.max_bad_steps,
                where,
            )


def too_many(number: int) -> ConfigurationError:
    """What to raise when :meth:`BadSteps.settle` says so."""
    return ConfigurationError(
        f"The run has ended: {number} steps in a row had a loss or a "
        "gradient that isn't finite (trainer.max_bad_steps). The weights are those before them, "
        "and the checkpoint has them. The sentences are in bad_steps*.jsonl beside it. A lower "
        "learning rate, more warm-up steps or trainer.grad_norm may help; or begin again from an "
        "older checkpoint."
    )


def _is_bad(gradients: List[torch.Tensor]) -> bool:
    # Squares of large numbers may be infinite where the numbers aren't.
    return not all(bool(gradient.isfinite().all()) for gradient in gradients)


def sentences_of(batch: Any, vocab: Any) -> List[str]:
    """
    `batch`: as a data loader gives it. Returns its sentences, as far as the tensors tell: from the
    characters where there are some, and otherwise with the unknown word's entry for words outside
    the vocabulary. Empty if there is no text.
    """
    for field in batch.values() if isinstance(batch, dict) else ():
        entries = (
            [e for e in field.values() if isinstance(e, dict)] if isinstance(field, dict) else []
        )
        for entry in entries:
            if "elmo_tokens" in entry:
                return _from_characters(entry["elmo_tokens"].cpu(), entry.get("word_index"))
        for entry in entries:
            if "tokens" in entry:
                words = vocab.get_index_to_token_vocabulary(NAMESPACE)
                return [
                    " ".join(words.get(number, "") for number in row if number)
                    for row in entry["tokens"].tolist()
                ]
    return []


def _from_characters(characters: torch.Tensor, index: Optional[torch.Tensor]) -> List[str]:
    if index is None:
        return [_sentence(map(_word, row)) for row in characters.tolist()]
    words = [_word(row) for row in characters.tolist()]
    return [_sentence(words[number] for number in row) for row in index.tolist()]


def _sentence(words: Any) -> str:
    return " ".join(word for word in words if word is not None)


def _word(characters: List[int]) -> Optional[str]:
    marks = (
        ELMoCharacterMapper.beginning_of_sentence_character,
        ELMoCharacterMapper.end_of_sentence_character,
    )
    if not any(characters) or any(number - 1 in marks for number in characters):
        return None
    text = bytes(number - 1 for number in characters if number in _BYTES)
    return text.decode("utf-8", "replace")
