import math

import pytest
import torch
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.models.archival import load_archive

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

SAME_LENGTH = ["the cat sat on", "a 東京 flew .", "don't sad mat unknown-word"]
CONTEXTUALIZER = model_config()["contextualizer"]
LSTM = {"type": "lstm", "input_size": DIM, "hidden_size": 24}


def test_output(make_model, vocabulary):
    output = make_model()(**tensors(["the cat sat", "it"], vocabulary))
    losses = {"loss", "forward_loss", "backward_loss", "batch_weight"}
    assert set(output) == losses | {"lm_embeddings", "noncontextual_token_embeddings", "mask"}
    assert output["lm_embeddings"].shape == (2, 5, 2 * DIM)
    assert output["noncontextual_token_embeddings"].shape == (2, 5, DIM)
    assert output["mask"].tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    # <S> the cat sat </S> has four words to predict in each direction, <S> it </S> two.
    assert output["batch_weight"] == 6
    assert torch.isclose(output["loss"], (output["forward_loss"] + output["backward_loss"]) / 2)


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


def test_unidirectional(make_model, vocabulary):
    model = make_model(type="language_model", contextualizer=LSTM)
    output = model(**tensors(SAME_LENGTH, vocabulary))
    assert "backward_loss" not in output
    assert torch.equal(output["loss"], output["forward_loss"])
    assert set(model.get_metrics()) == {"perplexity"}
    with pytest.raises(NotImplementedError, match="does not report how many layers"):
        model.num_layers()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"type": "language_model"}, "both be bidirectional or both not"),
        ({"precision": "float17"}, "precision must be one of"),
        (
            {"contextualizer": {**CONTEXTUALIZER, "input_dim": 64}},
            "dimension 32, but the contextualizer expects an input dimension of 64",
        ),
    ],
)
def test_what_does_not_fit(make_model, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        make_model(**changes)


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
    config = model_config(num_samples=vocabulary.get_vocab_size(), contextualizer=still)
    model = make_model(**config)
    (said,) = (r.getMessage() for r in caplog.records if r.name.startswith("transformer_elmo"))
    assert (
        said == "num_samples is 33, and the vocabulary has 33 entries: the full softmax is trained."
    )
    batch = tensors(random_sentences(9), vocabulary)
    loss = model.train()(**batch)["loss"]
    loss.backward()
    assert all(p.grad is not None and not p.grad.is_sparse for p in model.parameters())
    assert torch.isclose(loss, model.eval()(**batch)["loss"], rtol=1e-6)
    caplog.clear()
    archive = write_archive(tmp_path, experiment_config(model=config), model)
    again = load_archive(archive).model
    assert torch.equal(model(**batch)["loss"], again(**batch)["loss"])
    (tmp_path / "text").write_text("\n".join(random_sentences(9)))
    elmo = TransformerElmo.open(archive)
    elmo.save(tmp_path / "folder")
    for opened in (elmo, TransformerElmo.open(tmp_path / "folder")):
        assert math.log(opened.perplexity(tmp_path / "text")) == pytest.approx(loss.item(), 1e-5)
    assert "the full softmax" not in caplog.text
    fewer = model_config(num_samples=vocabulary.get_vocab_size() - 1, contextualizer=still)
    assert make_model(**fewer).softmax.num_samples == 32


@pytest.mark.parametrize("encoder, widest", [("cnn-highway", 5), ("cnn", 7)])
def test_words_shorter_than_the_widest_filter(encoder, widest):
    """As if the indexer had been told to pad to it."""
    config = model_config(num_samples=None)
    embedder = config["text_field_embedder"]["token_embedders"]["token_characters"]
    embedder["embedding"] = {"num_embeddings": 40, "embedding_dim": 8}
    if encoder == "cnn":
        embedder["encoder"] = {
            **{"type": "cnn", "embedding_dim": 8, "num_filters": 4},
            **{"ngram_filter_sizes": [2, 7], "output_dim": DIM},
        }
    characters = dict.fromkeys("abcdefgh", 1)
    letters = Vocabulary(counter={"tokens": {"a": 1}, "token_characters": characters})
    torch.manual_seed(1)
    model = Model.from_params(vocab=letters, params=Params(config)).eval()
    losses = []
    for padding in ({}, {"min_padding_length": widest}):
        reader = {**reader_config(), "start_tokens": [], "end_tokens": []}
        reader["token_indexers"]["token_characters"] = {"type": "characters", **padding}
        losses.append(model(**tensors(["a bad h", "b a"], letters, reader))["loss"])
    assert torch.equal(*losses)
