"""One archive and one file have one perplexity, however they are batched."""

import json
import math

import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.common import Params
from allennlp.data import DataLoader, DatasetReader, Instance
from allennlp.data.data_loaders import SimpleDataLoader
from allennlp.evaluation import Evaluator, SimpleEvaluator
from allennlp.models import Model

from tests.small_lm import model_config, random_sentences, reader_config
from transformer_elmo import TransformerElmo
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.evaluator import LanguageModelingEvaluator


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    sentences = random_sentences(150, seed=5, longest=25)
    # The reader drops the first of these in training.
    sentences += ["the cat " * 300, "the", "unheard-of words"]
    path = tmp_path_factory.mktemp("heldout") / "heldout.txt"
    path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(vocabulary):
    torch.manual_seed(4)
    model = Model.from_params(vocab=vocabulary, params=Params(model_config())).eval()
    # An untrained model is nearly the same for all words; then an average of averages would be
    # right by accident.
    with torch.no_grad():
        model._softmax_loss.softmax_w.weight.mul_(4)
        model._softmax_loss.softmax_b.weight.normal_()
    return model


def loader(path, vocabulary, **config):
    params = {"type": "language_modeling", "quiet": True, **config}
    reader = DatasetReader.from_params(Params(reader_config()))
    loader = DataLoader.from_params(Params(params), reader=reader, data_path=str(path))
    loader.index_with(vocabulary)
    return loader


@pytest.fixture(scope="module")
def reference(model, text):
    """One sentence at a time."""
    reader = DatasetReader.from_params(Params(reader_config()))
    return TransformerElmo(model, reader, max_tokens=1).evaluate(text)


LOADERS = [
    *({"max_tokens": 200}, {"max_tokens": 20000}, {"max_tokens": 500, "distinct_words": True}),
    {"type": "multiprocess", "batch_size": 7},
    # What shortens or repeats an epoch, or drops sentences, is meant for training.
    *({"max_tokens": 2000, "batches_per_epoch": number} for number in (2, 40)),
    {"type": "multiprocess", "batch_size": 4, "shuffle": True, "batches_per_epoch": 2},
    {"type": "multiprocess", "batch_size": 32, "shuffle": True, "drop_last": True},
    {
        "type": "multiprocess",
        "batch_sampler": {"type": "bucket", "batch_size": 8, "drop_last": True},
    },
]


@pytest.mark.parametrize("config", LOADERS, ids=str)
def test_perplexity_does_not_depend_on_batches(model, text, vocabulary, reference, config):
    metrics = LanguageModelingEvaluator()(model, loader(text, vocabulary, **config))
    assert metrics == pytest.approx(reference, rel=2e-6)
    assert metrics["num_out_of_vocabulary"] > 0


def test_files(model, text, vocabulary, reference, tmp_path, caplog):
    metrics_file, predictions_file = tmp_path / "metrics.json", tmp_path / "predictions.jsonl"
    caplog.set_level("INFO")
    found = []
    for files in ({}, {"metrics_output_file": metrics_file}):
        data = loader(text, vocabulary, max_tokens=500)
        evaluator = LanguageModelingEvaluator()
        found.append(evaluator(model, data, predictions_output_file=predictions_file, **files))
    (logged, *_) = [r.getMessage() for r in caplog.records if "Metrics:" in r.getMessage()]
    assert json.loads(logged.partition(":")[2]) == found[0]
    assert json.loads(metrics_file.read_text()) == found[1]
    sentences = [json.loads(line) for line in predictions_file.read_text().splitlines()]
    assert len(sentences) == reference["num_sentences"]
    for direction in ("forward", "backward"):
        total = sum(sentence[f"{direction}_log_prob"] for sentence in sentences)
        expected = math.log(reference[f"{direction}_perplexity"])
        assert -total / reference["num_tokens"] == pytest.approx(expected, rel=1e-5)
    outside = sum(sum(s["out_of_vocabulary"]) for s in sentences)
    assert outside == reference["num_out_of_vocabulary"]
    assert sorted(tmp_path.iterdir()) == [metrics_file, predictions_file]


def test_a_failure_leaves_no_file(model, text, vocabulary, tmp_path, monkeypatch):
    def failing(*args):
        raise RuntimeError("no more")

    monkeypatch.setattr("transformer_elmo.plugin.evaluator.json_text", failing)
    data, path = loader(text, vocabulary, max_tokens=500), tmp_path / "predictions.jsonl"
    with pytest.raises(RuntimeError, match="no more"):
        LanguageModelingEvaluator()(model, data, predictions_output_file=path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_evaluated(lm_archive, model, vocabulary, make_model, text, tmp_path):
    evaluator = LanguageModelingEvaluator()
    blank = tmp_path / "blank.txt"
    blank.write_text("\n\n")
    for config in ({"max_tokens": 100}, {"type": "multiprocess", "batch_size": 2}):
        with pytest.raises(ConfigurationError, match=r"blank\.txt"):
            evaluator(model, loader(blank, vocabulary, **config))
    stripped = make_model()
    stripped.delete_softmax()
    with pytest.raises(ConfigurationError, match="no softmax"):
        evaluator(stripped, loader(text, vocabulary, max_tokens=100))
    with pytest.raises(ConfigurationError, match="got 'nope'"):
        evaluate_from_archive(str(lm_archive), str(text), batch_weight_key="nope")
    with pytest.raises(ConfigurationError, match="can't be extended"):
        evaluate_from_archive(str(lm_archive), str(text), extend_vocab=True)


def test_other_models_are_evaluated_as_allennlp_does(vocabulary):
    class Constant(Model):
        def forward(self):
            return {"loss": torch.tensor(2.0)}

    assert type(Evaluator.from_params(Params({}))) is SimpleEvaluator
    evaluator = Evaluator.from_params(Params({"type": "language_modeling"}))
    data = SimpleDataLoader([Instance({})], batch_size=1, vocab=vocabulary)
    assert evaluator(Constant(vocabulary), data)["loss"] == 2.0
