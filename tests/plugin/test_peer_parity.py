"""Every kind of language model that allennlp-models has, on the same weights and the same batch."""

from typing import Any, Dict

import pytest
import torch
from allennlp.common import Params
from allennlp.models import Model

from tests.peer_lm import peer_model
from tests.small_lm import DIM, model_config, reader_config, tensors

pytest.importorskip("allennlp_models")

pytestmark = pytest.mark.filterwarnings("ignore::allennlp.common.checks.ExperimentalFeatureWarning")

SAME_LENGTH = ["the cat sat on", "a 東京 flew .", "don't sad mat unknown-word"]

LSTM = {"type": "lstm", "input_size": DIM, "hidden_size": 24}
CONTEXTUALIZERS = {
    "transformer": model_config()["contextualizer"],
    "lstm": LSTM,
    "bidirectional lstm": {**LSTM, "bidirectional": True},
    "pytorch transformer": {
        **{"type": "pytorch_transformer", "input_dim": DIM, "num_layers": 2},
        **{"num_attention_heads": 4, "feedforward_hidden_dim": 48},
    },
}
CHARACTERS = model_config()["text_field_embedder"]["token_embedders"]
NARROW = model_config()["text_field_embedder"]["token_embedders"]["token_characters"]
NARROW["encoder"]["projection_dim"] = DIM // 2
EMBEDDERS = {
    "characters": CHARACTERS,
    "words": {"tokens": {"type": "embedding", "embedding_dim": DIM}},
    "both": {
        "tokens": {"type": "embedding", "embedding_dim": DIM // 2},
        "token_characters": NARROW,
    },
}
SOFTMAXES: Dict[str, Dict[str, Any]] = {
    "sampled, sparse": {"num_samples": 8, "sparse_embeddings": True},
    "sampled, dense": {"num_samples": 8, "sparse_embeddings": False},
    "full": {"num_samples": None, "sparse_embeddings": False},
}


@pytest.mark.parametrize("contextualizer", CONTEXTUALIZERS)
@pytest.mark.parametrize("embedder", EMBEDDERS)
@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_equals_the_peer(vocabulary, contextualizer, embedder, softmax):
    """Losses, vectors and gradients in evaluation mode, where nothing is random."""
    config = model_config(
        **SOFTMAXES[softmax],
        contextualizer=CONTEXTUALIZERS[contextualizer],
        text_field_embedder={"token_embedders": EMBEDDERS[embedder]},
    )
    if contextualizer in ("lstm", "pytorch transformer"):
        config["type"] = "language_model"
    reader = reader_config()
    if embedder == "words":
        del reader["token_indexers"]["token_characters"]
    peer = peer_model(vocabulary, config).eval()
    ours = Model.from_params(vocab=vocabulary, params=Params(config)).eval()
    assert list(ours.state_dict()) == list(peer.state_dict())
    ours.load_state_dict(peer.state_dict())

    batch = tensors(SAME_LENGTH, vocabulary, reader)
    expected, output = peer(**batch), ours(**batch)
    assert output.keys() == expected.keys()
    for name, value in expected.items():
        rtol, atol = (1e-5, 1e-8) if "loss" in name else (1e-5, 1e-4)
        assert torch.allclose(value.float(), output[name].float(), rtol, atol), name
    found, theirs = (model.get_metrics()["perplexity"] for model in (ours, peer))
    assert found == pytest.approx(theirs, rel=1e-5)
    expected["loss"].backward()
    output["loss"].backward()
    peer_gradients = {name: p.grad for name, p in peer.named_parameters()}
    for name, parameter in ours.named_parameters():
        if peer_gradients[name] is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        difference = (parameter.grad - peer_gradients[name]).abs().max()
        assert difference < 1e-5 * max(1.0, float(peer_gradients[name].abs().max())), name


def test_where_the_peer_counts_padding(vocabulary, make_model):
    """
    On a padded batch, the peer's backward direction also predicts each shorter sentence's last
    word from the padding behind it. That one term is the whole difference.
    """
    peer = peer_model(vocabulary, model_config()).eval()
    ours = make_model().eval()
    ours.load_state_dict(peer.state_dict())
    batch = tensors(["the cat sat on the mat", "it was", "dog"], vocabulary)
    with torch.no_grad():
        expected, output = peer(**batch), ours(**batch)
        lengths = output["mask"].sum(-1)[1:]
        ids = batch["source"]["tokens"]["tokens"]
        rows = torch.tensor([1, 2])
        behind = expected["lm_embeddings"][rows, lengths, DIM:]
        counted = peer._softmax_loss(behind, ids[rows, lengths - 1] - 1)
        count = output["batch_weight"]
        assert torch.isclose(
            expected["backward_loss"] * count - counted, output["backward_loss"] * count, rtol=1e-5
        )
