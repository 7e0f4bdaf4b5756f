"""`torch.compile` of what works row by row: the same numbers, and compiled once."""

import pytest
import torch

from tests.small_lm import model_config, random_sentences, tensors
from transformer_elmo import TransformerElmo
from transformer_elmo.nn.kernels import compiled
from transformer_elmo.nn.kernels.compiled import watched


@pytest.fixture
def graphs(monkeypatch):
    """Compiling stops at the graph, which is run as it is: what is counted is how often."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    torch._dynamo.reset()
    return found


def without_dropout():
    contextualizer = model_config()["contextualizer"]
    contextualizer.update(dropout=0.0, input_dropout=0.0)
    return {"contextualizer": contextualizer}


def drawing_the_same(model):
    drawn = torch.tensor([1, 2, 5, 6, 9, 12, 20, 21]), torch.tensor(8.0).log()
    model._softmax_loss.draw = lambda device: drawn
    return model


@pytest.mark.slow
def test_the_same_numbers_and_no_recompilation(make_model, vocabulary, graphs):
    """Batches of other sizes than those of the first steps compile nothing again."""
    model = drawing_the_same(make_model(**without_dropout()))
    counts = []
    for step, size in enumerate((3, 8, 5, 12, 20, 2)):
        batch = tensors(random_sentences(size, seed=step), vocabulary)
        results = []
        for wanted in (False, True):
            model.zero_grad()
            with compiled.compiling(wanted), watched() as ways:
                loss = model.train()(**batch)["loss"]
                loss.backward()
            assert (ways["_after_attention: compiled"] > 0) is wanted
            gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
            results.append((float(loss), gradients))
        counts.append(len(graphs))
        (loss, gradients), (of_compiled, gradients_of_compiled) = results
        assert of_compiled == pytest.approx(loss, rel=1e-5)
        for one, other in zip(gradients, gradients_of_compiled, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
    assert counts[0] > 0
    assert counts[-1] == counts[1]


def test_open(lm_archive, sentences):
    """On a CPU it is accepted, kept, and changes nothing."""
    plain, other = (TransformerElmo.open(lm_archive, device="cpu", compile=c) for c in (None, True))
    assert not plain.model.compiles and other.model.compiles
    with watched() as ways:
        vectors = other.embed(sentences[:5])
    assert not any("compiled" in way for way in ways)
    for one, two in zip(plain.embed(sentences[:5]), vectors, strict=True):
        assert (one == two).all()
