"""Memory that runs out: validation and evaluation go on in parts, training says one message."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from allennlp.common import Params
from allennlp.models import Model

from tests.plugin.test_evaluator import loader
from tests.plugin.tiny_run import TinyModel, make_trainer, write_corpus
from tests.small_lm import model_config, random_sentences
from tests.test_out_of_memory import no_collection  # noqa: F401
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import text_fields
from transformer_elmo.plugin.evaluator import LanguageModelingEvaluator
from transformer_elmo.plugin.large_batches import key_of
from transformer_elmo.plugin.training.trainer import LanguageModelTrainer


def no_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")


def make_scarce(monkeypatch, limit, training=False):
    """
    Memory for embedding so many tokens, in evaluation or in training. Returns the batches that were
    refused.
    """
    failed = []
    stock = text_fields.embed_text_field

    def embed(embedder, source):
        vectors = stock(embedder, source)
        if torch.is_grad_enabled() != training or vectors[..., 0].numel() <= limit:
            return vectors
        failed.append(vectors.shape)
        return no_memory()

    monkeypatch.setattr("transformer_elmo.plugin.language_model.embed_text_field", embed)
    return failed


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join([*random_sentences(18, seed=5), "the"]) + "\n", encoding="utf-8")
    return path


def train(text, vocabulary, **options):
    """An epoch, without dropout; its metrics."""
    torch.manual_seed(1)
    config = model_config(num_samples=None, sparse_embeddings=False)
    config["contextualizer"].update(dropout=0.0, input_dropout=0.0)
    model = Model.from_params(vocab=vocabulary, params=Params(config))
    trainer: Any = LanguageModelTrainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        loader(text, vocabulary, max_tokens=120, **options),
        validation_data_loader=loader(text, vocabulary, max_tokens=120, shuffle=False),
        num_epochs=1,
        cuda_device=torch.device("cpu"),
        enable_default_callbacks=False,
        run_confidence_checks=False,
    )
    metrics = trainer.train()
    return {k: v for k, v in metrics.items() if "loss" in k or "perplexity" in k}


@pytest.mark.parametrize("options", [{}, {"distinct_words": True}])
def test_validation_has_the_same_metrics(text, vocabulary, monkeypatch, options, caplog):
    whole = train(text, vocabulary, **options)
    failed = make_scarce(monkeypatch, 50)
    assert train(text, vocabulary, **options) == pytest.approx(whole, rel=1e-5)
    assert failed
    (said, *_) = (r.getMessage() for r in caplog.records if "Memory ran out" in r.message)
    assert "data_loader.max_tokens (now 120)" in said


LOWER = r"Lower data_loader\.max_tokens \(now 120\)"


@pytest.mark.parametrize(
    "scarce, message",
    [
        (
            lambda patch: make_scarce(patch, 5),
            r"one sentence of \d+ tokens by itself\..*max_sequence_length \(now 400",
        ),
        (
            lambda patch: make_scarce(patch, 50, training=True),
            rf"a batch of \d+ sentences x \d+ tokens \(CUDA out .* {LOWER}",
        ),
        (lambda patch: patch.setattr(torch.Tensor, "backward", no_memory), LOWER),
        (lambda patch: patch.setattr(torch.optim.SGD, "step", no_memory), LOWER),
    ],
    ids=["validation", "forward", "backward", "step"],
)
def test_a_run_ends_with_one_message(text, vocabulary, monkeypatch, scarce, message):
    scarce(monkeypatch)
    with pytest.raises(ConfigurationError, match=message) as caught:
        train(text, vocabulary)
    assert caught.value.__context__ is None


def test_other_models_end_with_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyModel, "forward", no_memory)
    trainer = make_trainer(write_corpus(tmp_path / "corpus"), tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"sentences x .* Lower data_loader\.max_tokens"):
        trainer.train()


def test_evaluation_has_the_same_metrics_and_lines(
    text, vocabulary, make_model, monkeypatch, tmp_path
):
    model, path, metrics, lines = make_model().eval(), tmp_path / "lines", [], []
    for limit in (10000, 60):
        failed = make_scarce(monkeypatch, limit)
        data = loader(text, vocabulary, max_tokens=500, shuffle=False)
        evaluator = LanguageModelingEvaluator()
        metrics.append(evaluator(model, data, predictions_output_file=path))
        lines.append(list(map(json.loads, path.read_text().splitlines())))
    assert failed
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-6)
    for one, other in zip(*lines, strict=True):
        assert other["tokens"] == one["tokens"]
        assert other["perplexity"] == pytest.approx(one["perplexity"], rel=1e-5)


def test_the_key_of_other_loaders():
    sampled = SimpleNamespace(batch_sampler=SimpleNamespace(batch_size=7))
    assert key_of(sampled) == "data_loader.batch_sampler.batch_size (now 7)"
    assert key_of(object()) == "the size of the batches in data_loader"
