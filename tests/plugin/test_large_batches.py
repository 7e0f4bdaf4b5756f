"""Training and evaluation where memory runs out: the same numbers, in parts."""

import copy
import json
import logging
import weakref
from typing import Any, Dict

import pytest
import torch
from allennlp.common import Params
from allennlp.data import DataLoader, DatasetReader
from allennlp.models import Model
from allennlp.nn import RegularizerApplicator
from allennlp.nn.regularizers import L2Regularizer
from allennlp.training import GradientDescentTrainer

from tests.plugin.tiny_run import TinyModel, make_trainer, write_corpus
from tests.small_lm import model_config, random_sentences, reader_config, tensors
from transformer_elmo import out_of_memory
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.language_model import Encoded
from transformer_elmo.plugin import data_loader, large_batches, text_fields
from transformer_elmo.plugin.evaluator import LanguageModelingEvaluator
from transformer_elmo.plugin.text_fields import rows_of, text_field_mask
from transformer_elmo.plugin.token_embedders import LanguageModelTokenEmbedder
from transformer_elmo.text.steps import Step

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
        name = "transformer_elmo.plugin.language_model.embed_text_field"
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

        monkeypatch.setattr(name, embed)


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
        return self.trainer._run_guard.large_batches.splitter.num_split

    def __call__(self, softmax="exact", accumulate=1, options=None, begun=None):
        torch.manual_seed(1)
        config = model_config(**SOFTMAXES[softmax], contextualizer=CONTEXTUALIZER)
        model = Model.from_params(vocab=self.vocabulary, params=Params(copy.deepcopy(config)))
        trainer: Any = GradientDescentTrainer(
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
        if begun is not None:
            trainer.data_loader.share_steps(begun, accumulate)
        self.trainer = trainer
        metrics = trainer.train()
        numbers = {k: v for k, v in metrics.items() if "loss" in k or "perplexity" in k}
        return numbers, {name: p.detach().clone() for name, p in model.named_parameters()}


def check_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, weight in expected[1].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    "softmax, accumulate, options",
    [
        ("exact", 1, {}),
        ("exact", 3, {"distinct_words": True}),
        ("sampled", 1, {"distinct_words": True}),
        ("sparse", 2, {}),
    ],
)
def test_weights_and_metrics_are_those_of_whole_batches(
    run, monkeypatch, softmax, accumulate, options, where
):
    expected = run(softmax, accumulate, options)
    scarce = Scarce(monkeypatch, 50, where)
    found = run(softmax, accumulate, options)
    assert run.num_split() > 1
    # Halves don't do everywhere.
    assert len({rows for rows, _ in scarce.failed}) > 2
    check_same(found, expected)


def test_penalties_and_scaled_losses(run, monkeypatch):
    """A regularizer counts once, and callbacks may scale what they call `backward` of."""
    regularizer = RegularizerApplicator([(".*", L2Regularizer(0.01))])
    monkeypatch.setattr(
        Model, "get_regularization_penalty", lambda model: regularizer(model), raising=True
    )
    expected = run("exact", 2)
    assert expected[0]["training_reg_loss"] > 0
    Scarce(monkeypatch, 50, "backward")
    check_same(run("exact", 2), expected)


@pytest.mark.parametrize("limit", [None, 50])
def test_a_penalty_counts_once_where_steps_are_divided(run, monkeypatch, limit):
    """As after --recover with other processes: the loss of each piece has a weight."""
    # On several processes they don't make one on average.
    monkeypatch.setattr(data_loader, "weights_of_pieces", lambda *_: [[0.5]] * 3)
    one_step = {"max_tokens": 2000}
    _, without = run("exact", 3, one_step, Step(1, 1))
    regularizer = RegularizerApplicator([(".*", L2Regularizer(0.01))])
    monkeypatch.setattr(Model, "get_regularization_penalty", lambda model: regularizer(model))
    if limit is not None:
        Scarce(monkeypatch, limit, "backward")
    _, found = run("exact", 3, one_step, Step(1, 1))
    torch.manual_seed(1)
    config = model_config(**SOFTMAXES["exact"], contextualizer=CONTEXTUALIZER)
    begun = Model.from_params(vocab=run.vocabulary, params=Params(copy.deepcopy(config)))
    for name, weight in begun.named_parameters():
        expected = without[name] - 0.5 * 0.01 * 2 * weight.detach()
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=2e-6, msg=name)


def test_one_failure_late_in_a_step(run, monkeypatch):
    """The gradients of the batches before it are kept, whatever the failure has left."""
    expected = run("exact", 4)
    stock, calls = torch.autograd.backward, []

    def backward(*args, **kwargs):
        stock(*args, **kwargs)
        # Of a batch, and not the trainer's own call around it.
        if len(args) == 2:
            calls.append(args)
            if len(calls) == 3:
                # After all of it: what is there now belongs to nobody.
                raise torch.OutOfMemoryError(NO_MEMORY)

    monkeypatch.setattr(torch.autograd, "backward", backward)
    check_same(run("exact", 4), expected)
    assert run.num_split() == 1


def test_warnings(run, monkeypatch, caplog):
    Scarce(monkeypatch, 50, "backward")
    with caplog.at_level(logging.WARNING):
        run()
    said = [r.getMessage() for r in caplog.records if "Memory ran out" in r.message]
    num_split = run.num_split()
    assert 0 < len(said) == num_split.bit_length()
    assert "data_loader.max_tokens (now 120)" in said[0]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_sentence_that_is_too_long_by_itself(run, monkeypatch, where):
    Scarce(monkeypatch, 5, where)
    with pytest.raises(
        ConfigurationError,
        match=r"one sentence of \d+ tokens by itself\..*max_sequence_length \(now 400\)",
    ) as caught:
        run()
    assert caught.value.__context__ is None


def test_nothing_of_a_failure_is_alive_when_its_parts_are_run(run, monkeypatch):
    alive = []
    stock = Model.__call__

    def call(model, *args, **kwargs):
        source = kwargs["source"]
        if text_field_mask(source).numel() <= 50 and torch.is_grad_enabled():
            assert not any(tensor() is not None for tensor in alive)
        return stock(model, *args, **kwargs)

    made = Encoded.predicting

    def predicting(encoded, bidirectional):
        if encoded.mask.numel() > 50 and torch.is_grad_enabled():
            alive.extend(weakref.ref(layer) for layer in encoded.layers)
        return made(encoded, bidirectional)

    monkeypatch.setattr(Model, "__call__", call)
    monkeypatch.setattr(Encoded, "predicting", predicting)
    # Below, one batch for the whole epoch.
    Scarce(monkeypatch, 50, "backward")
    run("exact", 1, {"max_tokens": 2000})
    assert alive


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
        r"Lower data_loader\.max_tokens \(now 40\)\. Only language models' batches",
    ) as caught:
        trainer.train()
    assert caught.value.__context__ is None


def test_memory_that_runs_out_elsewhere_in_a_step(run, monkeypatch):
    def step(*args, **kwargs):
        raise torch.OutOfMemoryError(NO_MEMORY)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(ConfigurationError, match=r"Lower data_loader\.max_tokens"):
        run()


def test_several_processes_dont_split(run, monkeypatch):
    """Each would wait for the others, which have one batch."""
    monkeypatch.setattr(large_batches, "several_processes", lambda: True)
    Scarce(monkeypatch, 50, "forward")
    with pytest.raises(ConfigurationError, match="With several processes, batches aren't run in"):
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
