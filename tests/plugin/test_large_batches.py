"""Memory that runs out: validation and evaluation go on in parts, training says one message."""

import json
from typing import Any

import pytest
import torch
from allennlp.common import Params
from allennlp.data import DataLoader, DatasetReader
from allennlp.models import Model

from tests.plugin.tiny_run import TinyModel, make_trainer, write_corpus
from tests.small_lm import model_config, random_sentences, reader_config
from transformer_elmo import memory
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import text_fields
from transformer_elmo.plugin.evaluator import LanguageModelingEvaluator
from transformer_elmo.plugin.large_batches import key_of
from transformer_elmo.plugin.training.trainer import LanguageModelTrainer

NO_MEMORY = "CUDA out of memory. Tried to allocate 9 GiB."
OPTIONS = pytest.mark.parametrize("options", [{}, {"distinct_words": True}])


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """What a failure leaves goes away by itself, and looking for more takes its time."""
    monkeypatch.setattr(memory.gc, "collect", lambda: 0)


def no_memory(*args, **kwargs):
    raise torch.OutOfMemoryError(NO_MEMORY)


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors):
        return vectors.view_as(vectors)

    backward = no_memory


def make_scarce(monkeypatch, limit, where):
    """
    Memory for embedding so many tokens: in forward passes of a kind, or in the backward pass, where
    all that lies above has its gradients when it fails. Returns the batches that were refused.
    """
    failed = []
    stock = text_fields.embed_text_field

    def embed(embedder, source):
        vectors = stock(embedder, source)
        is_elsewhere = torch.is_grad_enabled() == (where == "evaluation")
        if is_elsewhere or vectors.size(0) * vectors.size(1) <= limit:
            return vectors
        failed.append(vectors.shape)
        return _Fails.apply(vectors) if where == "backward" else no_memory()

    monkeypatch.setattr("transformer_elmo.plugin.language_model.embed_text_field", embed)
    return failed


def loader(path, vocabulary, **options):
    made = DataLoader.from_params(
        Params({"type": "language_modeling", "quiet": True, "max_tokens": 120, **options}),
        reader=DatasetReader.from_params(Params(reader_config())),
        data_path=str(path),
    )
    made.index_with(vocabulary)
    return made


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join([*random_sentences(18, seed=5), "the"]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def train(text, vocabulary):
    def train(**options):
        """An epoch, without dropout; its metrics."""
        torch.manual_seed(1)
        config = model_config(num_samples=None, sparse_embeddings=False)
        config["contextualizer"].update(dropout=0.0, input_dropout=0.0)
        model = Model.from_params(vocab=vocabulary, params=Params(config))
        trainer: Any = LanguageModelTrainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.5),
            loader(text, vocabulary, **options),
            validation_data_loader=loader(text, vocabulary, shuffle=False),
            num_epochs=1,
            cuda_device=torch.device("cpu"),
            enable_default_callbacks=False,
            run_confidence_checks=False,
        )
        metrics = trainer.train()
        return {k: v for k, v in metrics.items() if "loss" in k or "perplexity" in k}

    return train


@OPTIONS
def test_validation_has_the_same_metrics(train, monkeypatch, options, caplog):
    whole = train(**options)
    failed = make_scarce(monkeypatch, 50, "evaluation")
    assert train(**options) == pytest.approx(whole, rel=1e-5)
    assert failed
    (said, *_) = (r.getMessage() for r in caplog.records if "Memory ran out" in r.message)
    assert "data_loader.max_tokens (now 120)" in said


@pytest.mark.parametrize(
    "where, limit, message",
    [
        ("evaluation", 5, r"one sentence of \d+ tokens by itself\..*max_sequence_length \(now 400"),
        ("forward", 50, r"a batch of \d+ sentences x \d+ tokens \(CUDA out .* Lower data_loader\."),
        ("backward", 50, r"Lower data_loader\.max_tokens \(now 120\)"),
        ("step", 0, r"Lower data_loader\.max_tokens \(now 120\)"),
    ],
)
def test_a_run_ends_with_one_message(train, monkeypatch, where, limit, message):
    if where == "step":
        monkeypatch.setattr(torch.optim.SGD, "step", no_memory)
    else:
        make_scarce(monkeypatch, limit, where)
    with pytest.raises(ConfigurationError, match=message) as caught:
        train()
    assert caught.value.__context__ is None


def test_other_models_end_with_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyModel, "forward", no_memory)
    trainer = make_trainer(write_corpus(tmp_path / "corpus"), tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"sentences x .* Lower data_loader\.max_tokens"):
        trainer.train()


@OPTIONS
def test_evaluation(text, vocabulary, make_model, monkeypatch, tmp_path, options, caplog):
    model = make_model().eval()
    files = [tmp_path / "one", tmp_path / "other"]
    (tmp_path / "words").write_text("the\ncat\n")
    evaluator = LanguageModelingEvaluator(words_of=str(tmp_path / "words"))
    failed, metrics = None, []
    for file in files:
        data = loader(text, vocabulary, max_tokens=500, shuffle=False, **options)
        metrics.append(evaluator(model, data, predictions_output_file=str(file)))
        failed = make_scarce(monkeypatch, 60, "evaluation") if failed is None else failed
    assert failed
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-6)
    one, other = ([json.loads(line) for line in file.open()] for file in files)
    assert [line["tokens"] for line in one] == [line["tokens"] for line in other]
    for first, second in zip(one, other):
        assert second["perplexity"] == pytest.approx(first["perplexity"], rel=1e-5)
    (said, *_) = (r.getMessage() for r in caplog.records if "Memory ran out" in r.message)
    assert "data_loader.max_tokens (now 500), in validation_data_loader where" in said


def test_the_key_of_other_loaders():
    class Loader:
        batch_size = None
        batch_sampler = type("Sampler", (), {"batch_size": 7})

    assert key_of(Loader()) == "data_loader.batch_sampler.batch_size (now 7)"
    assert key_of(object()) == "the size of the batches in data_loader"
