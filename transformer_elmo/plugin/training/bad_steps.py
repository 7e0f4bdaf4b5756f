"""
Steps whose loss or gradient isn't a number: they change no weights, their sentences are written
down, and a run that has nothing but such steps ends.
"""

import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist

from transformer_elmo.files import json_text
from transformer_elmo.nn.kernels.sparse_gradients import several_processes
from transformer_elmo.text.vocabulary import NAMESPACE

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 10

# ELMo's ids of characters are bytes, then marks, and each is one more, as zero is padding.
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
    """`max_bad_steps`: after so many bad steps in a row the run ends."""

    def __init__(self, max_bad_steps: int = MAX_BAD_STEPS) -> None:
        self.max_bad_steps = max_bad_steps
        self.in_a_row = 0
        # Of the batches of this step: what was given, and whether the loss is finite.
        self._batches: List[Tuple[Any, torch.Tensor]] = []
        self._usual_loss: Optional[torch.Tensor] = None
        # The norm of all gradients, where somebody has asked the device for it anyway.
        self.norm: Optional[float] = None
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
        norm, self.norm = self.norm, None
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
        elif bool(self._is_bad):
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
            name = f"bad_steps_worker{rank}.jsonl" if several_processes() else "bad_steps.jsonl"
            path = Path(trainer._serialization_dir, name)
            vocab, of_step = trainer.model.vocab, bad_losses or [batch for batch, _ in batches]
            sentences = [line for batch in of_step for line in sentences_of(batch, vocab)]
            line = {"epoch": epoch, "step": step, "what": what, "sentences": sentences}
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json_text(line) + "\n")
                where = f" Its sentences are in {path}."
            except OSError as error:
                where = f" {path} can't be written: {error.strerror}."
        if rank == 0 or bad_losses:
            logger.warning(
                "Step %d of epoch %d was skipped: a %s isn't finite (%d in a row, at most %d).%s",
                *(step, epoch, what, self.in_a_row, self.max_bad_steps, where),
            )


def sentences_of(batch: Any, vocab: Any) -> List[str]:
    """
    `batch`: as a data loader gives it. Returns its sentences, as far as the tensors tell: from the
    characters where there are some, and otherwise with the unknown word's entry for words outside
    the vocabulary. Empty if there is no text.
    """
    for field in batch.values() if isinstance(batch, dict) else ():
        tensors: Dict[str, torch.Tensor] = {}
        for entry in field.values() if isinstance(field, dict) else ():
            tensors.update(entry if isinstance(entry, dict) else {})
        characters, index = tensors.get("elmo_tokens"), tensors.get("word_index")
        if characters is not None:
            rows = (characters if index is None else characters[index]).tolist()
            return [" ".join(filter(None, map(_word, row))) for row in rows]
        if "tokens" in tensors:
            words = vocab.get_index_to_token_vocabulary(NAMESPACE)
            rows = tensors["tokens"].tolist()
            return [" ".join(words.get(number, "") for number in row if number) for row in rows]
    return []


def _word(characters: List[int]) -> str:
    """Empty for padding and the sentence's marks."""
    return bytes(n - 1 for n in characters if n in _BYTES).decode("utf-8", "replace")
