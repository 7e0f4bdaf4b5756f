import math

import pytest
import torch
from allennlp.models.archival import load_archive
from allennlp.modules.seq2vec_encoders import CnnEncoder, CnnHighwayEncoder
from allennlp.modules.text_field_embedders import BasicTextFieldEmbedder
from allennlp.modules.token_embedders import Embedding, TokenCharactersEncoder

from tests.small_lm import (
    DIM,
    experiment_config,
    model_config,
    random_sentences,
    reader_config,
    tensors,
    write_archive,
)
from transformer_elmo import TransformerElmo
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.language_model import TokenPerplexity
from transformer_elmo.plugin.text_fields import embed_text_field

SAME_LENGTH = ["the cat sat on", "a 東京 flew .", "don't sad mat unknown-word"]
CONTEXTUALIZER = model_config()["contextualizer"]
LSTM = {"type": "lstm", "input_size": DIM, "hidden_size": 24}


def test_padding_changes_nothing(make_model, vocabulary):
    """And metrics are totals over words."""
    model = make_model().eval()
    sentences = random_sentences(8)
    with torch.no_grad():
        together = model(**tensors(sentences, vocabulary))
        model.get_metrics(reset=True)
        totals = [0.0, 0.0]
        for row, sentence in enumerate(sentences):
            alone = model(**tensors([sentence], vocabulary))
            vectors, length = alone["lm_embeddings"][0], alone["mask"].size(1)
            assert torch.allclose(vectors, together["lm_embeddings"][row, :length], atol=1e-5)
            for number, name in enumerate(("forward_loss", "backward_loss")):
                totals[number] += float(alone[name] * alone["batch_weight"])
    means = [total / float(together["batch_weight"]) for total in totals]
    assert sum(means) / 2 == pytest.approx(together["loss"].item(), rel=1e-5)
    metrics = model.get_metrics(reset=True)
    assert [math.log(value) for value in metrics.values()] == pytest.approx(
        [sum(means) / 2, *means], rel=1e-5
    )
    assert list(metrics) == ["perplexity", "forward_perplexity", "backward_perplexity"]
    assert set(model.get_metrics().values()) == {0.0}


def test_small_losses_are_not_lost_beside_large_ones():
    """In float32 there is no whole number after 2 ** 24."""
    metric = TokenPerplexity(1)
    metric([torch.cat([torch.tensor([2.0**24]), torch.zeros(2**17 - 4)])])
    for loss in (1.0, 1.0, 1.0, math.nan):
        # One that isn't finite doesn't count in training.
        metric([torch.tensor([loss])], training=True)
    assert metric.get_metric() == {"perplexity": pytest.approx(math.exp(128 + 3 / 2**17))}
    metric([torch.tensor([math.nan])])
    assert math.isnan(metric.get_metric(reset=True)["perplexity"])


def test_options(make_model, vocabulary):
    batch = tensors(SAME_LENGTH, vocabulary)
    constant = [["_softmax_loss.softmax_b", {"type": "constant", "val": 0.25}]]
    model = make_model(dropout=0.5, initializer={"regexes": constant})
    assert (model.softmax.word_weights()[1] == 0.25).all() and model._dropout.p == 0.5
    model = make_model().eval()
    with torch.no_grad():
        expected = model(**batch)
        layers = make_model(contextualizer={**CONTEXTUALIZER, "return_all_layers": True}).eval()
        output = layers(**batch)
        half = make_model(precision="bfloat16").eval()(**batch)["loss"]
    assert len(output["lm_embeddings"]) == 2 and model.num_layers() == 3
    assert torch.equal(output["lm_embeddings"][-1], expected["lm_embeddings"])
    assert torch.equal(output["loss"], expected["loss"])
    assert half.dtype == torch.float32 and 0 < abs(half - expected["loss"]) < 0.05
    model.delete_softmax()
    output = model(**batch)
    assert "loss" not in output and torch.equal(output["lm_embeddings"], expected["lm_embeddings"])


def test_what_does_not_fit(make_model):
    for changes, message in (
        ({"type": "language_model"}, "both be bidirectional or both not"),
        ({"precision": "float17"}, "precision must be one of"),
        ({"contextualizer": {**CONTEXTUALIZER, "input_dim": 64}}, "dimension 32, but .* of 64"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make_model(**changes)
    with pytest.raises(NotImplementedError, match="does not report how many layers"):
        make_model(type="language_model", contextualizer=LSTM).num_layers()


def test_text_fields_that_do_not_fit(make_model, vocabulary):
    reader = reader_config()
    reader["token_indexers"]["tokens"] = {"type": "single_id", "start_tokens": ["<S>"]}
    with pytest.raises(ConfigurationError, match=r"has 5 words by .* and 6 by another"):
        make_model()(**tensors(["the cat sat"], vocabulary, reader))
    del reader["token_indexers"]["tokens"]
    source = tensors(["the cat sat"], vocabulary, reader)["source"]
    assert "loss" not in make_model()(source)
    with pytest.raises(ConfigurationError, match=r"entries for \['token_characters'\] only"):
        make_model().token_ids(source)


def test_fewer_words_than_samples(make_model, vocabulary, tmp_path, caplog):
    """The full softmax is trained, and what comes of it opens everywhere."""
    caplog.set_level("INFO", "transformer_elmo.plugin.language_model")
    still = {**CONTEXTUALIZER, "dropout": 0.0, "input_dropout": 0.0}
    num_words = vocabulary.get_vocab_size()
    config = model_config(num_samples=num_words, contextualizer=still)
    model, batch = make_model(**config), tensors(random_sentences(9), vocabulary)
    loss = model.train()(**batch)["loss"]
    loss.backward()
    assert all(p.grad is not None and not p.grad.is_sparse for p in model.parameters())
    assert torch.isclose(loss, model.eval()(**batch)["loss"], rtol=1e-6)
    archive = write_archive(tmp_path, experiment_config(model=config), model)
    again = load_archive(archive).model
    assert torch.equal(model(**batch)["loss"], again(**batch)["loss"])
    elmo = TransformerElmo.open(archive)
    elmo.save(tmp_path / "folder")
    for opened in (elmo, TransformerElmo.open(tmp_path / "folder")):
        perplexity = opened.perplexity([s.split() for s in random_sentences(9)])
        assert math.log(perplexity) == pytest.approx(loss.item(), 1e-5)
    # Told once, where it is trained.
    assert caplog.text.count("the vocabulary has 33 entries: the full softmax is trained.") == 1
    assert make_model(num_samples=num_words - 1).softmax.num_samples == num_words - 1


@pytest.mark.parametrize(
    "encoder", [CnnEncoder(8, 4, ngram_filter_sizes=(2, 7)), CnnHighwayEncoder(8, [(7, 4)], 1, 5)]
)
def test_words_shorter_than_the_widest_filter(encoder):
    """As if the indexer had been told to pad to it."""
    module = TokenCharactersEncoder(Embedding(embedding_dim=8, num_embeddings=40), encoder)
    characters = torch.randint(1, 40, (2, 3, 2))
    source = {"c": {"token_characters": characters}}
    vectors = embed_text_field(BasicTextFieldEmbedder({"c": module}), source)
    assert torch.allclose(vectors, module(torch.nn.functional.pad(characters, (0, 5))), atol=1e-6)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("changes", [{}, {"sparse_embeddings": False}, {"num_samples": None}])
def test_dimensions_of_size_0(make_model, changes, recurrent):
    if recurrent:
        changes = {**changes, "contextualizer": {**LSTM, "bidirectional": True}}
    model = make_model(**changes)
    # Sentences, words, characters; AllenNLP leaves out the last where there is no word.
    for shape in ((2, 0, 50), (0, 3, 50), (0, 0, 50), (2, 0), (2, 3, 0)):
        characters = {"elmo_tokens": torch.zeros(shape, dtype=torch.long)}
        ids = {"tokens": torch.zeros(shape[:2], dtype=torch.long)}
        for is_training in (False, True):
            output = model.train(is_training)({"tokens": ids, "token_characters": characters})
            assert output["lm_embeddings"].shape == (*shape[:2], model.output_dim)
            assert output["loss"] == output["batch_weight"] == 0
            output["loss"].backward()
    for parameter in model.parameters():
        assert parameter.grad is None or not parameter.grad.to_dense().any()
