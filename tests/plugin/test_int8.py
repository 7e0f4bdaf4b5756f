"""precision "int8" from end to end: Python, the command line, token embedders."""

import numpy as np
import pytest
import torch
from allennlp.data import Token, Vocabulary
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer
from safetensors.torch import load_file

from tests.plugin.test_language_model import UNIDIRECTIONAL
from tests.small_lm import random_sentences, tensors
from transformer_elmo import TransformerElmo
from transformer_elmo.commands import cli
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.compiled import watched
from transformer_elmo.nn.kernels.int8 import largest_weight
from transformer_elmo.plugin.token_embedders import BidirectionalLanguageModelTokenEmbedder

pytestmark = pytest.mark.skipif(
    largest_weight() is None, reason="this PyTorch has no quantized linear layers of oneDNN's"
)

SENTENCES = [sentence.split() for sentence in random_sentences(6, seed=3)]


@pytest.fixture(scope="module")
def folder(lm_archive, tmp_path_factory):
    place = tmp_path_factory.mktemp("int8") / "folder"
    TransformerElmo.open(lm_archive, device="cpu").save(place)
    return place


def assert_near(found, wanted):
    for ours, exact in zip(found, wanted):
        cosines = torch.cosine_similarity(torch.tensor(ours), torch.tensor(exact), dim=-1)
        assert ours.dtype == np.float32 and 0.99 < cosines.min() < 0.9999999


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_opened(kind, lm_archive, folder):
    path = lm_archive if kind == "archive" else folder
    exact = TransformerElmo.open(path, device="cpu")
    rounded = TransformerElmo.open(path, device="cpu", precision="int8")
    with watched() as ways:
        found = rounded.embed(SENTENCES)
    assert ways["linear: int8"] and "attention: fused" in ways
    assert_near(found, exact.embed(SENTENCES))
    (layers,) = rounded.embed([SENTENCES[0]], "all")
    # Word vectors are what they were.
    assert np.allclose(layers[0], exact.embed([SENTENCES[0]], 0)[0], atol=1e-5)
    for ours, wanted in zip(rounded.score(SENTENCES), exact.score(SENTENCES)):
        for name in ("forward", "backward"):
            # The first or the last one is predicted from nothing.
            pairs = zip(getattr(ours, name).log_probs, getattr(wanted, name).log_probs)
            for log_prob, exactly in pairs:
                assert log_prob == (exactly and pytest.approx(exactly, abs=0.2))
    wanted = exact.evaluate(SENTENCES)["perplexity"]
    assert rounded.evaluate(SENTENCES)["perplexity"] == pytest.approx(wanted, rel=0.02)
    with pytest.raises(ConfigurationError, match="has no gradients"):
        rounded.embed_tensors(SENTENCES, track_gradients=True)


def test_saved_as_it_was(folder, tmp_path):
    rounded = TransformerElmo.open(folder, device="cpu", precision="int8")
    rounded.embed(SENTENCES)
    rounded.save(tmp_path / "again")
    ours, before = (load_file(f / "model.safetensors") for f in (tmp_path / "again", folder))
    assert ours.keys() == before.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])
    again = TransformerElmo.open(tmp_path / "again", device="cpu")
    assert again.model.precision == "float32"


def test_on_a_gpu(folder):
    elmo = TransformerElmo.open(folder, device="cpu", precision="int8")
    elmo.model.to("meta")
    with pytest.raises(ConfigurationError, match="is for the CPU, but the model is on meta"):
        elmo.embed(SENTENCES)


def test_on_the_command_line(folder, tmp_path):
    text, output = tmp_path / "text.txt", tmp_path / "vectors.npz"
    text.write_text("\n".join(map(" ".join, SENTENCES)) + "\n", encoding="utf-8")
    arguments = ("embed", folder, text, output, "--precision", "int8", "--average")
    cli.main(list(map(str, arguments)))
    with np.load(output) as arrays:
        found = np.split(arrays["vectors"], arrays["offsets"][1:-1])
    assert_near(found, TransformerElmo.open(folder, device="cpu").embed(SENTENCES))


def characters(sentences):
    indexer = ELMoTokenCharactersIndexer()
    indexed = [
        indexer.tokens_to_indices([Token(word) for word in words], Vocabulary())
        for words in sentences
    ]
    longest = max(map(len, sentences))
    return indexer.as_padded_tensor_dict(indexed[0], {"elmo_tokens": longest})["elmo_tokens"][None]


def test_a_frozen_token_embedder(lm_archive):
    archive = str(lm_archive)
    exact = BidirectionalLanguageModelTokenEmbedder(archive).train()
    rounded = BidirectionalLanguageModelTokenEmbedder(archive, precision="int8").train()
    assert rounded.state_dict().keys() == exact.state_dict().keys()
    tokens = characters(SENTENCES[:1])
    exact.eval(), rounded.eval()
    with watched() as ways:
        vectors = rounded(tokens)
    assert ways["linear: int8"]
    assert_near(vectors.detach().numpy(), exact(tokens).detach().numpy())
    # What is on top of it learns.
    vectors.sum().backward()
    assert rounded._scalar_mix.gamma.grad is not None
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(tensor, exact.state_dict()[name])
    with pytest.raises(ConfigurationError, match=r'requires_grad is true.*"int8"'):
        BidirectionalLanguageModelTokenEmbedder(archive, precision="int8", requires_grad=True)


def test_a_language_model_that_is_trained(make_model, vocabulary):
    model, batch = make_model(precision="int8").train(), tensors(random_sentences(5), vocabulary)
    with pytest.raises(ConfigurationError, match="has no gradients"):
        model(**batch)
    with torch.no_grad():
        loss = model.eval()(**batch)["loss"]
        model.precision = "float32"
        assert loss == pytest.approx(float(model(**batch)["loss"]), rel=0.01)


def test_other_numbers(lm_archive):
    embedder = BidirectionalLanguageModelTokenEmbedder(str(lm_archive), precision="int8").eval()
    tokens = characters(SENTENCES[:1])
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ConfigurationError, match=r"in float32 without autocast, got .*bfloat16"),
    ):
        embedder(tokens)
    with pytest.raises(ConfigurationError, match=r"in float32 without autocast, got .*float64"):
        embedder.double()(tokens)


def test_no_sentence(lm_archive):
    for precision in ("float32", "int8"):
        embedder = BidirectionalLanguageModelTokenEmbedder(str(lm_archive), precision=precision)
        for _ in range(2):
            assert embedder.eval()(torch.zeros(0, 5, 50, dtype=torch.long)).shape == (0, 5, 64)


def test_an_lstm(make_model, vocabulary):
    model = make_model(**UNIDIRECTIONAL, precision="int8")
    with pytest.raises(
        ConfigurationError, match=r"is for transformers, but .* a \w*L[sS][tT][mM]\w*:"
    ):
        model(**tensors(["the cat sat"], vocabulary))
