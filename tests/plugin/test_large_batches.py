"""Memory that runs out: validation and evaluation go on in parts, training says one message."""

import copy
import json
import logging
from typing import Any, Dict

import pytest
import torch
from allennlp.common import Params
from allennlp.data import DataLoader, DatasetReader
from allennlp.models import Model

from tests.plugin.tiny_run import TinyModel, make_trainer, write_corpus
from tests.small_lm import model_config, random_sentences, reader_config, tensors
from transformer_elmo import memory as out_of_memory
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import language_model, large_batches, text_fields
from transformer_elmo.plugin.evaluator import LanguageModelingEvaluator
from transformer_elmo.plugin.text_fields import rows_of, text_field_mask
from transformer_elmo.plugin.token_embedders import LanguageModelTokenEmbedder
from transformer_elmo.plugin.training.trainer import LanguageModelTrainer

EMBED = "transformer_elmo.plugin.language_model.embed_text_field"
NO_MEMORY = "CUDA out of memory. Tried to allocate 9 GiB."

# Without dropout, so that the same batch has the same gradients.
CONTEXTUALIZER = {**model_config()["contextualizer"], "dropout": 0.0, "input_dropout": 0.0}
SOFTMAXES: Dict[str, Dict[str, Any]] = {
    "exact": {"num_samples": None, "sparse_embeddings": False},
    "sampled": {"num_samples": 8, "sparse_embeddings": False},
    "sparse": {"num_samples": 8, "sparse_embeddings": True},
}


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """What a failure leaves goes away by itself, and looking for more takes its time."""
    monkeypatch.setattr(out_of_memory.gc, "collect", lambda: 0)


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors):
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError(NO_MEMORY)


class Scarce:
    """
    Memory for so many tokens, in the forward or in the backward pass of an embedding. There, all
    that lies above has its gradients when it fails. `failed` are the batches that it refused.
    """

    def __init__(self, monkeypatch, limit, where="forward"):
        self.failed = []
        stock = text_fields.embed_text_field

        def embed(embedder, source):
            vectors = stock(embedder, source)
            if vectors.size(0) * vectors.size(1) <= limit:
                return vectors
            if where == "forward":
                self.failed.append(tuple(vectors.shape[:2]))
                raise torch.OutOfMemoryError(NO_MEMORY)
            if vectors.requires_grad:
                self.failed.append(tuple(vectors.shape[:2]))
                return _Fails.apply(vectors)
            return vectors

        monkeypatch.setattr(EMBED, embed)


def loader(path, vocabulary, **options):
    params = {"type": "language_modeling", "quiet": True, "max_tokens": 120, **options}
    made = DataLoader.from_params(
        Params(params),
        reader=DatasetReader.from_params(Params(reader_config())),
        data_path=str(path),
    )
    made.index_with(vocabulary)
    return made


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    # A sentence without words has a word to predict, and one of a single token has none.
    path.write_text("\n".join([*random_sentences(18, seed=5), "the"]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def run(text, vocabulary):
    return Run(text, vocabulary)


class Run:
    """Trains for an epoch; gives the metrics and the weights."""

    def __init__(self, text, vocabulary):
        self.text, self.vocabulary = text, vocabulary
        self.trainer: Any = None

    def num_split(self):
        return self.trainer._splitter.num_split

    def __call__(self, softmax="exact", accumulate=1, options=None):
        torch.manual_seed(1)
        config = model_config(**SOFTMAXES[softmax], contextualizer=CONTEXTUALIZER)
        model = Model.from_params(vocab=self.vocabulary, params=Params(copy.deepcopy(config)))
        trainer: Any = LanguageModelTrainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.5),
            loader(self.text, self.vocabulary, **(options or {})),
            validation_data_loader=loader(self.text, self.vocabulary, shuffle=False),
            num_epochs=1,
            cuda_device=torch.device("cpu"),
            num_gradient_accumulation_steps=accumulate,
            enable_default_callbacks=False,
            run_confidence_checks=False,
        )
        self.trainer = trainer
        metrics = trainer.train()
        numbers = {k: v for k, v in metrics.items() if "loss" in k or "perplexity" in k}
        return numbers, {name: p.detach().clone() for name, p in model.named_parameters()}


def check_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, weight in expected[1].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-4, atol=2e-6, msg=name)


class InEvaluation(Scarce):
    """Memory for fewer tokens where no gradients are wanted."""

    def __init__(self, monkeypatch, limit):
        super().__init__(monkeypatch, limit)
        scarce, usual = language_model.embed_text_field, text_fields.embed_text_field
        monkeypatch.setattr(
            EMBED, lambda *given: (usual if torch.is_grad_enabled() else scarce)(*given)
        )


@pytest.mark.parametrize("options", [{}, {"distinct_words": True}])
def test_validation_has_the_same_metrics(run, monkeypatch, options, caplog):
    whole = run("exact", options=options)
    scarce = InEvaluation(monkeypatch, 50)
    with caplog.at_level(logging.WARNING):
        check_same(run("exact", options=options), whole)
    assert scarce.failed and run.num_split()
    (said, *_) = (r.getMessage() for r in caplog.records if "Memory ran out" in r.message)
    assert "data_loader.max_tokens (now 120)" in said


def test_a_sentence_that_is_too_long_by_itself(run, monkeypatch):
    InEvaluation(monkeypatch, 5)
    with pytest.raises(
        ConfigurationError,
        match=r"one sentence of \d+ tokens by itself\..*max_sequence_length \(now 400\)",
    ) as caught:
        run()
    assert caught.value.__context__ is None


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_training_ends_with_one_message(run, monkeypatch, where):
    Scarce(monkeypatch, 50, where)
    with pytest.raises(ConfigurationError, match=r"Lower data_loader\.max_tokens \(now 120\)"):
        run()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_other_models_end_with_one_message(tmp_path, monkeypatch, accumulate):
    def forward(model, source):
        if len(model.seen) == 3:
            raise torch.OutOfMemoryError(NO_MEMORY)
        return stock(model, source)

    stock = TinyModel.forward
    monkeypatch.setattr(TinyModel, "forward", forward)
    trainer = make_trainer(write_corpus(tmp_path / "corpus"), tmp_path / "out")
    with pytest.raises(
        ConfigurationError,
        match=r"a batch of \d+ sentences x \d+ tokens \(CUDA out of memory.*"
        r"Lower data_loader\.max_tokens \(now 40\)\.",
    ) as caught:
        trainer.train()
    assert caught.value.__context__ is None


def test_memory_that_runs_out_elsewhere_in_a_step(run, monkeypatch):
    def step(*args, **kwargs):
        raise torch.OutOfMemoryError(NO_MEMORY)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(ConfigurationError, match=r"Lower data_loader\.max_tokens"):
        run()


@pytest.mark.parametrize("options", [{}, {"distinct_words": True}])
def test_evaluation(text, vocabulary, make_model, monkeypatch, tmp_path, options, caplog):
    model = make_model().eval()
    files = [tmp_path / "one", tmp_path / "other"]
    (tmp_path / "words").write_text("the\ncat\n")
    evaluator = LanguageModelingEvaluator(words_of=str(tmp_path / "words"))
    scarce = None
    metrics = []
    for file in files:
        data = loader(text, vocabulary, max_tokens=500, shuffle=False, **options)
        metrics.append(evaluator(model, data, predictions_output_file=str(file)))
        scarce = scarce or Scarce(monkeypatch, 60)
    assert scarce.failed
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-6)
    one, other = ([json.loads(line) for line in file.open()] for file in files)
    assert [line["tokens"] for line in one] == [line["tokens"] for line in other]
    for first, second in zip(one, other):
        assert second["perplexity"] == pytest.approx(first["perplexity"], rel=1e-5)
    (said, *_) = (r.getMessage() for r in caplog.records if "Memory ran out" in r.message)
    assert "data_loader.max_tokens (now 500), in validation_data_loader where" in said


@pytest.mark.parametrize("layers", ["mix", 1])
def test_a_frozen_model_that_embeds(lm_archive, vocabulary, monkeypatch, layers):
    embedder = LanguageModelTokenEmbedder(str(lm_archive), layers=layers).eval()
    batch = tensors(random_sentences(9), vocabulary, {**reader_config(), "start_tokens": None})
    characters = batch["source"]["token_characters"]["elmo_tokens"]
    expected = embedder(characters)
    scarce = Scarce(monkeypatch, 40)
    torch.testing.assert_close(embedder(characters), expected, rtol=1e-4, atol=1e-5)
    assert scarce.failed


@pytest.mark.parametrize("options", [{}, {"distinct_words": True}])
def test_rows_are_as_if_they_had_been_alone(text, vocabulary, make_model, options):
    model = make_model().eval()
    (batch,) = loader(text, vocabulary, max_tokens=5000, shuffle=False, **options)
    source = batch["source"]
    with torch.no_grad():
        whole = model.encode(source)
        for rows in (range(0, 3), range(8, 14), range(18, 19)):
            part = rows_of(source, rows)
            encoded = model.encode(part)
            lengths = text_field_mask(source)[rows.start : rows.stop].sum(-1)
            assert encoded.mask.shape == (len(rows), int(lengths.max()))
            for number, length in enumerate(lengths.tolist()):
                torch.testing.assert_close(
                    encoded.layers[-1][number, :length],
                    whole.layers[-1][rows.start + number, :length],
                    rtol=1e-4,
                    atol=1e-5,
                )
            assert torch.equal(
                model.token_ids(part)[encoded.mask],
                model.token_ids(source)[rows.start : rows.stop][whole.mask[rows.start : rows.stop]],
            )


def test_the_key_of_other_loaders():
    class Sampler:
        batch_size = 7

    class Loader:
        batch_size = None
        batch_sampler = Sampler()

    assert large_batches.key_of(Loader()) == "data_loader.batch_sampler.batch_size (now 7)"
    assert large_batches.key_of(object()) == "the size of the batches in data_loader"
