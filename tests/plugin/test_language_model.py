from typing import Any, Dict, List

import pytest
import torch
from allennlp.common import Params
from allennlp.data import DatasetReader, Vocabulary
from allennlp.models import Model

from tests.small_lm import DIM, WORDS, model_config, random_sentences, reader_config, tensors
from transformer_elmo import LanguageModel
from transformer_elmo.errors import ConfigurationError

SAME_LENGTH = ["the cat sat on", "a 東京 flew .", "don't sad mat unknown-word"]


def test_output(make_model, vocabulary):
    output = make_model()(**tensors(["the cat sat", "it"], vocabulary))
    assert set(output) == {
        "loss",
        "forward_loss",
        "backward_loss",
        "batch_weight",
        "lm_embeddings",
        "noncontextual_token_embeddings",
        "mask",
    }
    assert output["lm_embeddings"].shape == (2, 5, 2 * DIM)
    assert output["noncontextual_token_embeddings"].shape == (2, 5, DIM)
    assert output["mask"].tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    # <S> the cat sat </S> has four words to predict in each direction, <S> it </S> two.
    assert output["batch_weight"] == 6
    assert torch.isclose(output["loss"], (output["forward_loss"] + output["backward_loss"]) / 2)


def test_padding_changes_nothing(make_model, vocabulary):
    model = make_model().eval()
    sentences = random_sentences(8)
    with torch.no_grad():
        together = model(**tensors(sentences, vocabulary))
        total = torch.zeros(())
        for row, sentence in enumerate(sentences):
            alone = model(**tensors([sentence], vocabulary))
            length = alone["mask"].size(1)
            assert torch.allclose(
                alone["lm_embeddings"][0], together["lm_embeddings"][row, :length], atol=1e-5
            )
            for name in ("forward_loss", "backward_loss"):
                total += alone[name] * alone["batch_weight"] / 2
    assert torch.isclose(total, together["loss"] * together["batch_weight"], rtol=1e-5)


def test_metrics_are_totals_over_words(make_model, vocabulary):
    model = make_model().eval()
    outputs = []
    with torch.no_grad():
        for batch in (["the"], ["the cat sat on the mat and then it flew", "it was"]):
            outputs.append(model(**tensors(batch, vocabulary)))
    words = sum(output["batch_weight"] for output in outputs)
    loss = sum(output["loss"] * output["batch_weight"] for output in outputs) / words
    metrics = model.get_metrics(reset=True)
    assert metrics["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)
    assert set(metrics) == {"perplexity", "forward_perplexity", "backward_perplexity"}
    product = metrics["forward_perplexity"] * metrics["backward_perplexity"]
    assert metrics["perplexity"] == pytest.approx(product**0.5, rel=1e-5)
    assert model.get_metrics()["perplexity"] == 0.0


def test_neither_direction_sees_the_word_it_predicts(make_model, vocabulary):
    model = make_model().eval()
    before, after = "the cat sat on mat", "the cat dog on mat"
    with torch.no_grad():
        one = model(**tensors([before], vocabulary))["lm_embeddings"][0]
        other = model(**tensors([after], vocabulary))["lm_embeddings"][0]
    changed = 3  # with <S> in front
    assert torch.equal(one[:changed, :DIM], other[:changed, :DIM])
    assert torch.equal(one[changed + 1 :, DIM:], other[changed + 1 :, DIM:])
    assert not torch.allclose(one[changed:, :DIM], other[changed:, :DIM])


def test_distinct_words_from_the_data_loader_are_the_same_function(make_model, vocabulary):
    model = make_model().eval()
    source = tensors([*SAME_LENGTH, "the cat"], vocabulary)["source"]
    characters = source["token_characters"]["elmo_tokens"]
    rows = characters.flatten(0, 1)
    words, index = torch.unique(rows[(rows > 0).any(-1)], dim=0, return_inverse=True)
    table = torch.cat([torch.zeros_like(words[:1]), words])
    word_index = torch.zeros(characters.shape[:2], dtype=torch.long)
    word_index[(characters > 0).any(-1)] = index + 1
    with torch.no_grad():
        plain = model(source)
        compact = model(
            {
                "tokens": source["tokens"],
                "token_characters": {"elmo_tokens": table, "word_index": word_index},
            }
        )
    for name in plain:
        assert torch.allclose(plain[name].float(), compact[name].float(), atol=1e-6), name


def test_all_layers(make_model, vocabulary):
    config = model_config()["contextualizer"]
    one = make_model().eval()
    all_layers = make_model(contextualizer={**config, "return_all_layers": True}).eval()
    batch = tensors(SAME_LENGTH, vocabulary)
    with torch.no_grad():
        expected, output = one(**batch), all_layers(**batch)
    assert len(output["lm_embeddings"]) == 2 and one.num_layers() == 3
    assert torch.equal(output["lm_embeddings"][-1], expected["lm_embeddings"])
    assert torch.equal(output["loss"], expected["loss"])


def test_without_softmax(make_model, vocabulary):
    model = make_model().eval()
    model.delete_softmax()
    output = model(**tensors(SAME_LENGTH, vocabulary))
    assert "loss" not in output and output["lm_embeddings"].shape[0] == 3


def test_a_batch_with_nothing_to_predict(make_model, vocabulary):
    config = {**reader_config(), "start_tokens": None, "end_tokens": None}
    for train in (True, False):
        model = make_model().train(train)
        output = model(**tensors(["the", "cat"], vocabulary, config))
        assert output["loss"] == 0 and output["batch_weight"] == 0
        output["loss"].backward()


def test_precision(make_model, vocabulary):
    batch = tensors(SAME_LENGTH, vocabulary)
    with torch.no_grad():
        full = make_model().eval()(**batch)["loss"]
        half = make_model(precision="bfloat16").eval()(**batch)["loss"]
    assert half.dtype == torch.float32
    assert 0 < abs(half - full) < 0.05


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"type": "language_model"}, "both be bidirectional or both not"),
        ({"precision": "float17"}, "precision must be one of"),
        ({"num_samples": 100_000}, "num_samples must be positive and less than"),
        (
            {"contextualizer": {**model_config()["contextualizer"], "input_dim": 64}},
            "dimension 32, but the contextualizer expects an input dimension of 64",
        ),
    ],
)
def test_what_does_not_fit(make_model, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        make_model(**changes)


def test_indexers_that_disagree_on_the_number_of_words(make_model, vocabulary):
    config = reader_config()
    config["token_indexers"]["tokens"] = {"type": "single_id", "start_tokens": ["<S>"]}
    with pytest.raises(ConfigurationError, match=r"has 5 words by .* and 6 by another"):
        make_model()(**tensors(["the cat sat"], vocabulary, config))


UNIDIRECTIONAL = {
    "type": "language_model",
    "contextualizer": {"type": "lstm", "input_size": DIM, "hidden_size": 24},
}


def test_unidirectional(make_model, vocabulary):
    model = make_model(**UNIDIRECTIONAL)
    output = model(**tensors(SAME_LENGTH, vocabulary))
    assert "backward_loss" not in output
    assert torch.equal(output["loss"], output["forward_loss"])
    assert set(model.get_metrics()) == {"perplexity"}
    with pytest.raises(NotImplementedError, match="does not report how many layers"):
        model.num_layers()


def test_forward_on_instances(make_model, vocabulary):
    model = make_model().eval()
    reader = DatasetReader.from_params(Params(reader_config()))
    instances = [reader.text_to_instance(sentence) for sentence in SAME_LENGTH]
    for instance in instances:
        reader.apply_token_indexers(instance)
    together = model.forward_on_instances(instances)
    for instance, output in zip(instances, together):
        alone = model.forward_on_instance(instance)
        assert alone["lm_embeddings"] == pytest.approx(output["lm_embeddings"], abs=1e-5)


def test_softmax_layouts_convert(make_model, vocabulary):
    batch = tensors(SAME_LENGTH, vocabulary)
    layouts: List[Dict[str, Any]] = [
        {"num_samples": 8, "sparse_embeddings": True},
        {"num_samples": 8, "sparse_embeddings": False},
        {"num_samples": None, "sparse_embeddings": False},
    ]
    reference = make_model(**layouts[0]).eval()
    expected = reference(**batch)["loss"]
    for layout in layouts:
        model = make_model(**layout).eval()
        model.load_state_dict(reference.state_dict())
        assert torch.isclose(model(**batch)["loss"], expected, rtol=1e-6)
        back = make_model(**layouts[0]).eval()
        back.load_state_dict(model.state_dict())
        assert torch.isclose(back(**batch)["loss"], expected, rtol=1e-6)


def test_training_lowers_the_loss(make_model, vocabulary):
    model = make_model()
    batch = tensors([" ".join(WORDS[i : i + 6]) for i in range(12)], vocabulary)
    optimizers = [
        torch.optim.Adam(
            [p for n, p in model.named_parameters() if "_softmax_loss" not in n], lr=3e-3
        ),
        torch.optim.SparseAdam(list(model._softmax_loss.parameters()), lr=3e-3),
    ]
    assert isinstance(model, LanguageModel)
    first = model.eval()(**batch)["loss"].item()
    for _ in range(30):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model.train()(**batch)["loss"].backward()
        for optimizer in optimizers:
            optimizer.step()
    assert model.eval()(**batch)["loss"].item() < first - 1


@pytest.mark.parametrize("encoder", ["cnn-highway", "cnn"])
def test_words_shorter_than_the_widest_filter(vocabulary, encoder):
    """As if the indexer had been told to pad to it."""
    config = model_config()
    embedder = config["text_field_embedder"]["token_embedders"]["token_characters"]
    embedder["embedding"] = {"num_embeddings": 40, "embedding_dim": 8}
    if encoder == "cnn":
        embedder["encoder"] = {
            **{"type": "cnn", "embedding_dim": 8, "num_filters": 4},
            **{"ngram_filter_sizes": [2, 7], "output_dim": DIM},
        }
    letters = Vocabulary(
        counter={"tokens": {"a": 1}, "token_characters": dict.fromkeys("abcdefgh", 1)}
    )
    torch.manual_seed(1)
    model = Model.from_params(vocab=letters, params=Params({**config, "num_samples": None})).eval()
    losses = []
    for padding in ({}, {"min_padding_length": 7 if encoder == "cnn" else 5}):
        reader = reader_config()
        reader["token_indexers"]["token_characters"] = {"type": "characters", **padding}
        reader.update(start_tokens=[], end_tokens=[])
        losses.append(model(**tensors(["a bad h", "b a"], letters, reader))["loss"])
    assert torch.equal(*losses)
