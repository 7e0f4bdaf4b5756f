"""bfloat16 against float32, on real text."""

import pydoc_data.topics
import re

import pytest
import torch
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model

from tests.plugin.processes import batch_of
from tests.small_lm import model_config
from transformer_elmo.plugin.optimizer import DenseSparseAdam

STEPS = 250


def sentences():
    prose = " ".join(
        pydoc_data.topics.topics[name] for name in ("assignment", "try", "typesmapping")
    )
    found = re.split(r"(?<=[.!?])\s+", " ".join(prose.split()))
    return [" ".join(re.findall(r"\w+|[^\w\s]", sentence)[:12]) for sentence in found]


def trained(precision, batches, vocab, steps=STEPS):
    torch.manual_seed(0)
    config = model_config(precision=precision)
    model = Model.from_params(Params(config), vocab=vocab).train()
    optimizer = DenseSparseAdam(list(model.named_parameters()), lr=2e-3)
    for step in range(steps):
        optimizer.zero_grad()
        model(batches[step % len(batches)])["loss"].backward()
        optimizer.step()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.eval()
    with torch.no_grad():
        outputs = [model(batch) for batch in batches]
    assert {output["loss"].dtype for output in outputs} == {torch.float32}
    weights = torch.stack([output["batch_weight"] for output in outputs])
    losses = torch.stack([output["loss"] for output in outputs])
    return ((losses * weights).sum() / weights.sum()).item()


@pytest.mark.slow
def test_losses_after_training():
    # Enough of it that the model can't learn it by heart: then runs that differ in nothing but
    # rounding end several per cent apart, in either direction.
    text = [sentence for sentence in sentences() if sentence][:200]
    vocab = Vocabulary(non_padded_namespaces=["*labels", "*tags"])
    for word in ["</S>", "<S>", *dict.fromkeys(" ".join(text).split())]:
        vocab.add_token_to_namespace(word)
    batches = [batch_of(text[start : start + 20], vocab) for start in range(0, len(text), 20)]
    exact = trained("float32", batches, vocab)
    rounded = trained("bfloat16", batches, vocab)
    assert exact < 0.85 * trained("float32", batches, vocab, steps=0)
    assert rounded == pytest.approx(exact, rel=5e-3)
