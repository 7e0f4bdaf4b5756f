"""bfloat16 against float32, on real text; a precision that isn't there is one message."""

import pydoc_data.topics

import pytest
import torch
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model

from tests.small_lm import model_config, tensors
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.precision import checked_precision
from transformer_elmo.plugin.optimizer import DenseSparseAdam


def trained(precision, batches, vocab, steps):
    torch.manual_seed(0)
    model = Model.from_params(Params(model_config(precision=precision)), vocab=vocab).train()
    optimizer = DenseSparseAdam(list(model.named_parameters()), lr=2e-3)
    for step in range(steps):
        optimizer.zero_grad()
        model(**batches[step % len(batches)])["loss"].backward()
        optimizer.step()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        losses = [model.eval()(**batch)["loss"] for batch in batches]
    assert {loss.dtype for loss in losses} == {torch.float32}
    return torch.stack(losses).mean().item()


@pytest.mark.slow
def test_losses_after_training():
    # Enough of it that the model can't learn it by heart: then runs that differ in nothing but
    # rounding end several per cent apart, in either direction.
    words = pydoc_data.topics.topics["typesmapping"].split()[:2000]
    text = [" ".join(words[start : start + 10]) for start in range(0, 2000, 10)]
    vocab = Vocabulary(non_padded_namespaces=["*labels", "*tags"])
    vocab.add_tokens_to_namespace(["</S>", "<S>", *words])
    batches = [tensors(text[start : start + 20], vocab) for start in range(0, len(text), 20)]
    exact, rounded = (trained(name, batches, vocab, 150) for name in ("float32", "bfloat16"))
    assert exact < 0.85 * trained("float32", batches, vocab, 0)
    assert rounded == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("precision, hint", [("int8", "any more.*bfloat16"), ("half", ""), (8, "")])
def test_message(precision, hint):
    with pytest.raises(ConfigurationError, match=f"float32, bfloat16: got {precision!r}.*{hint}"):
        checked_precision(precision)
