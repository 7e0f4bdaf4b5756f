"""Dimensions of size 0, wherever a tensor comes in under AllenNLP."""

import pytest
import torch
from allennlp.common import Params
from allennlp.modules import TokenEmbedder

from tests.small_lm import DIM, reader_config, tensors

EMBEDDERS = ("language_model_token_embedder", "bidirectional_lm_token_embedder")

# Of a batch: sentences, words, characters; AllenNLP leaves out the last where there is no word.
SHAPES = [(2, 0, 50), (0, 3, 50), (0, 0, 50), (2, 0), (2, 3, 0), (2, 2, 0, 50), (2, 0, 3, 50)]


@pytest.mark.parametrize("name", EMBEDDERS)
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("bound", [None, 8])
def test_token_embedders(lm_archive, name, learns, bound):
    config = {"type": name, "archive_file": str(lm_archive), "requires_grad": learns}
    embedder = TokenEmbedder.from_params(Params({**config, "max_tokens_per_forward": bound}))
    for is_training in (False, True):
        embedder.train(is_training)
        for shape in SHAPES:
            vectors = embedder(torch.zeros(shape, dtype=torch.long))
            assert vectors.shape == (*(shape[:-1] if len(shape) > 2 else shape), 2 * DIM)
            assert not vectors.any()
            vectors.sum().backward()


@pytest.mark.parametrize("changes", [{}, {"sparse_embeddings": False}, {"num_samples": None}])
@pytest.mark.parametrize("recurrent", [False, True])
def test_language_models(make_model, changes, recurrent):
    if recurrent:
        sizes = {"input_size": DIM, "hidden_size": DIM, "num_layers": 1}
        changes = {**changes, "contextualizer": {"type": "lstm", "bidirectional": True, **sizes}}
    model = make_model(**changes)
    for is_training in (False, True):
        model.train(is_training)
        for shape in SHAPES[:5]:
            sentences = shape[:2]
            output = model(
                {
                    "tokens": {"tokens": torch.zeros(sentences, dtype=torch.long)},
                    "token_characters": {"elmo_tokens": torch.zeros(shape, dtype=torch.long)},
                }
            )
            assert output["lm_embeddings"].shape == (*sentences, 2 * DIM)
            assert output["loss"] == output["batch_weight"] == 0
            output["loss"].backward()
    for parameter in model.parameters():
        assert parameter.grad is None or not parameter.grad.to_dense().any()


def test_sentences_without_words_or_boundaries(make_model, vocabulary):
    """What the rest of AllenNLP makes of them, which has lost a dimension."""
    reader = {**reader_config(), "start_tokens": None, "end_tokens": None}
    source = tensors(["", ""], vocabulary, reader)["source"]
    assert source["token_characters"]["elmo_tokens"].shape == (2, 0)
    assert make_model()(source)["lm_embeddings"].shape == (2, 0, 2 * DIM)
