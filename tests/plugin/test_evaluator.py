"""One archive and one file have one perplexity, however they are batched."""

import json
import math
import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.common import Params
from allennlp.common.util import find_open_port
from allennlp.data import DataLoader, DatasetReader
from allennlp.data.data_loaders import SimpleDataLoader
from allennlp.evaluation import Evaluator, SimpleEvaluator
from allennlp.models import Model

from tests.small_lm import model_config, random_sentences, reader_config
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.evaluator import LanguageModelingEvaluator


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    sentences = random_sentences(150, seed=5, longest=25)
    sentences += [" ".join(random_sentences(8, seed=6, longest=12)), "the", "unheard-of words"]
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
def reference(model, text, vocabulary):
    """One sentence at a time, added up."""
    totals, count = [0.0, 0.0], 0
    for batch in loader(text, vocabulary, batch_size=1):
        with torch.no_grad():
            output = model(**batch)
        weight = output["batch_weight"].item()
        for i, name in enumerate(("forward_loss", "backward_loss")):
            totals[i] += output[name].item() * weight
        count += int(weight)
    model.get_metrics(reset=True)
    words = [line.split() for line in text.read_text(encoding="utf-8").splitlines()]
    known = vocabulary.get_token_to_index_vocabulary()
    return {
        "loss": sum(totals) / 2 / count,
        "perplexity": math.exp(sum(totals) / 2 / count),
        "forward_perplexity": math.exp(totals[0] / count),
        "backward_perplexity": math.exp(totals[1] / count),
        "num_sentences": len(words),
        "num_tokens": sum(len(sentence) + 1 for sentence in words),
        "num_out_of_vocabulary": sum(w not in known for sentence in words for w in sentence),
    }


LOADERS = [
    *({"max_tokens": n, "shuffle": s} for n in (200, 500, 2000, 20000) for s in (False, True)),
    {"max_tokens": 500, "distinct_words": True},
    {"type": "multiprocess", "batch_size": 7},
    {"type": "multiprocess", "batch_size": 32, "shuffle": True},
]


@pytest.mark.parametrize("config", LOADERS, ids=lambda config: "-".join(map(str, config.values())))
def test_perplexity_does_not_depend_on_batches(model, text, vocabulary, reference, config):
    metrics = LanguageModelingEvaluator()(model, loader(text, vocabulary, **config))
    assert set(metrics) == set(reference)
    for name, expected in reference.items():
        assert metrics[name] == pytest.approx(expected, rel=2e-6), name
    assert metrics["num_out_of_vocabulary"] > 0


def test_a_mean_of_batch_means_does_depend_on_them(model, text, vocabulary, reference):
    """So that the tests above show something."""
    metrics = SimpleEvaluator()(model, loader(text, vocabulary, type="multiprocess", batch_size=7))
    assert metrics["loss"] != pytest.approx(reference["loss"], rel=1e-4)


def _evaluate_in_process(rank, port, model, text, vocabulary, results):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        with torch.no_grad():
            for batch in loader(text, vocabulary, max_tokens=200):
                model(**batch)
        results.put((rank, model.get_metrics(reset=True)))
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_perplexity_does_not_depend_on_processes(model, text, vocabulary, reference):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    port = find_open_port()
    processes = [
        context.Process(
            target=_evaluate_in_process, args=(rank, port, model, text, vocabulary, results)
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert found[0] == found[1]
    for name, value in found[0].items():
        assert value == pytest.approx(reference[name], rel=2e-6), name


def test_no_sentence_is_dropped_for_its_length(model, text, vocabulary, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("the cat sat\n" + "the cat " * 300 + "\n")
    for config in ({"max_tokens": 100}, {"type": "multiprocess", "batch_size": 2}):
        metrics = LanguageModelingEvaluator()(model, loader(path, vocabulary, **config))
        assert metrics["num_sentences"] == 2
        assert metrics["num_tokens"] == 3 + 1 + 600 + 1


def test_files(model, text, vocabulary, reference, tmp_path):
    metrics_file, predictions_file = tmp_path / "metrics.json", tmp_path / "predictions.jsonl"
    metrics = LanguageModelingEvaluator()(
        model,
        loader(text, vocabulary, max_tokens=500),
        metrics_output_file=metrics_file,
        predictions_output_file=predictions_file,
    )
    assert json.loads(metrics_file.read_text()) == metrics
    sentences = [json.loads(line) for line in predictions_file.read_text().splitlines()]
    assert len(sentences) == reference["num_sentences"]
    total = sum(s["forward_log_prob"] + s["backward_log_prob"] for s in sentences)
    assert -total / 2 / reference["num_tokens"] == pytest.approx(reference["loss"], rel=1e-5)
    found = sorted(sum(not flag for flag in s["out_of_vocabulary"]) for s in sentences)
    assert sum(found) == reference["num_tokens"] + len(sentences) - metrics["num_out_of_vocabulary"]
    assert sorted(tmp_path.iterdir()) == [metrics_file, predictions_file]


def test_metrics_are_logged_without_a_file_too(model, text, vocabulary, caplog):
    with caplog.at_level("INFO"):
        metrics = LanguageModelingEvaluator()(model, loader(text, vocabulary, max_tokens=500))
    (line,) = [r.getMessage() for r in caplog.records if "Metrics:" in r.getMessage()]
    assert json.loads(line.partition(":")[2]) == metrics


def test_a_failure_leaves_no_file(model, text, vocabulary, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"the cat\n\xff\n")
    predictions = tmp_path / "predictions.jsonl"
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        LanguageModelingEvaluator()(
            model, loader(bad, vocabulary, max_tokens=50), predictions_output_file=predictions
        )
    assert list(tmp_path.iterdir()) == [bad]


def test_what_cannot_be_evaluated(model, vocabulary, make_model, text, tmp_path):
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


def test_other_models_are_evaluated_as_allennlp_does(vocabulary):
    class Constant(Model):
        def forward(self):
            return {"loss": torch.tensor(2.0)}

    assert type(Evaluator.from_params(Params({}))) is SimpleEvaluator
    evaluator = Evaluator.from_params(Params({"type": "language_modeling"}))
    assert evaluator(Constant(vocabulary), _Batches([{}, {}]))["loss"] == 2.0


class _Batches(SimpleDataLoader):
    def __init__(self, batches):
        super().__init__([], batch_size=1)
        self._batches = batches

    def __iter__(self):
        return iter(self._batches)


@pytest.mark.parametrize(
    "loader",
    [
        {"type": "language_modeling", "max_tokens": 60, "batches_per_epoch": 2},
        {"type": "language_modeling", "max_tokens": 60, "batches_per_epoch": 40},
        {"batch_size": 4, "shuffle": True, "batches_per_epoch": 2},
        {"batch_size": 7, "shuffle": True, "drop_last": True},
        {"batch_sampler": {"type": "bucket", "batch_size": 7, "drop_last": True}},
    ],
)
def test_every_sentence_once_whatever_training_reads(lm_archive, tmp_path, loader):
    """Loaders that shorten or repeat an epoch do so for training, not for a number to be quoted."""
    text = tmp_path / "text"
    text.write_text("\n".join(random_sentences(20, seed=11)) + "\n")
    expected = evaluate_from_archive(str(lm_archive), str(text))
    assert expected["num_sentences"] == 20
    result = evaluate_from_archive(
        str(lm_archive), str(text), cmd_overrides=json.dumps({"data_loader": loader})
    )
    assert result["num_sentences"] == 20
    assert result["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)


def test_a_weight_that_the_model_does_not_give(lm_archive, tmp_path):
    (tmp_path / "text").write_text("the dog ran\n")
    with pytest.raises(ConfigurationError, match="got 'nope'"):
        evaluate_from_archive(str(lm_archive), str(tmp_path / "text"), batch_weight_key="nope")


def test_a_vocabulary_that_the_softmax_cannot_follow(lm_archive, tmp_path):
    (tmp_path / "text").write_text("the zebra ran\n")
    with pytest.raises(ConfigurationError, match="can't be extended"):
        evaluate_from_archive(str(lm_archive), str(tmp_path / "text"), extend_vocab=True)


def test_small_losses_are_not_lost_beside_large_ones(model, text, vocabulary, monkeypatch):
    """In float32 there is no whole number after 2 ** 24."""
    large = 2.0**24

    def losses(softmax, embeddings, targets):
        found = [torch.ones(ids.numel()) for ids in targets]
        for direction in found:
            direction[0] = large
        return found

    monkeypatch.setattr("transformer_elmo.plugin.language_model.losses_of_directions", losses)
    model.get_metrics(reset=True)
    (batch,) = loader(text, vocabulary, max_tokens=20000)
    with torch.no_grad():
        count = int(model.eval()(**batch)["batch_weight"])
    expected = (large + count - 1) / count
    assert model._perplexity.loss(reset=True) == pytest.approx(expected, rel=1e-12)
    model.get_metrics(reset=True)
