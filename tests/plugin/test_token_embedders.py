import copy
from typing import Any

import pytest
import torch
from allennlp.common import Params
from allennlp.data import Batch, Instance, Token, Vocabulary
from allennlp.data.fields import TextField
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer, TokenIndexer
from allennlp.models import Model
from allennlp.models.archival import load_archive
from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
from allennlp.modules.token_embedders import TokenEmbedder

from tests.small_lm import (
    DIM,
    experiment_config,
    model_config,
    random_sentences,
    reader_config,
    write_archive,
)
from transformer_elmo import LanguageModelTokenEmbedder
from transformer_elmo.errors import ConfigurationError

SENTENCES = [sentence.split() for sentence in random_sentences(6, seed=3)]
WRAPPED = [["<S>", *sentence, "</S>"] for sentence in SENTENCES]


def characters(sentences, indexer=None, vocab=None):
    indexer = indexer or ELMoTokenCharactersIndexer()
    fields = [TextField([Token(w) for w in s], {"elmo": indexer}) for s in sentences]
    batch = Batch([Instance({"text": field}) for field in fields])
    batch.index_instances(vocab or Vocabulary())
    (ids,) = batch.as_tensor_dict()["text"]["elmo"].values()
    return ids


@pytest.fixture
def make(lm_archive):
    def make(**changes):
        return LanguageModelTokenEmbedder(archive_file=str(lm_archive), **changes).eval()

    return make


@pytest.fixture
def embedder(make):
    return make()


def test_output(lm_archive, caplog):
    caplog.set_level("INFO", logger="transformer_elmo")
    params = {"type": "bidirectional_lm_token_embedder", "archive_file": str(lm_archive)}
    embedder = TokenEmbedder.from_params(Params({**params, "dropout": 0.2})).eval()
    assert embedder.get_output_dim() == 2 * DIM
    assert f"have {2 * DIM} dimensions: the input_size" in caplog.text
    tokens = characters(SENTENCES)
    vectors = embedder(tokens)
    assert vectors.shape == (*tokens.shape[:2], 2 * DIM)
    for row, sentence in enumerate(SENTENCES):
        assert not vectors[row, len(sentence) :].any()
        alone = embedder(characters([sentence]))
        assert torch.allclose(alone[0], vectors[row, : len(sentence)], atol=1e-5)
    names = list(embedder.state_dict())
    assert "_lm._contextualizer._forward_transformer.norm.gamma" in names
    assert "_scalar_mix.scalar_parameters.0" in names
    assert not [name for name in names if "softmax" in name or "boundaries" in name]


def test_layers(make, embedder):
    """All of them mixed, by weights that are learned or not, or one."""
    tokens = characters(WRAPPED[:1])
    output = embedder._lm({"tokens": {}, "token_characters": {"elmo_tokens": tokens}})
    words = output["noncontextual_token_embeddings"]
    layers = [torch.cat([words, words], -1), *output["lm_embeddings"]]
    given = {"scalar_mix_parameters": [0.5, -1.0, 2.0]}
    weights = torch.softmax(torch.tensor(given["scalar_mix_parameters"]), 0)
    mixed = sum(weight * layer for weight, layer in zip(weights, layers))
    for changes, expected, learned in (
        ({}, sum(layers) / 3, {True}),
        ({"train_scalar_mix": False}, sum(layers) / 3, {False}),
        (given, mixed, {False}),
        ({**given, "train_scalar_mix": True}, mixed, {True}),
        ({"layers": 0}, layers[0], set()),
        ({"layers": -2}, layers[1], set()),
        ({"layers": "top"}, layers[2], set()),
    ):
        made = make(**changes)
        found = made(characters(SENTENCES[:1]))
        assert torch.allclose(found, expected[:, 1:-1], atol=1e-5)
        mix = [p for name, p in made.named_parameters() if "scalar_mix" in name]
        assert {parameter.requires_grad for parameter in mix} == learned


def test_boundaries(make, embedder):
    tokens, wrapped = characters(SENTENCES), characters(WRAPPED)
    expected = embedder(tokens)
    # Already there, and removed all the same.
    assert torch.allclose(make(bos_eos_tokens=None)(wrapped), expected, atol=1e-6)
    kept = make(remove_bos_eos=False)(tokens)
    assert kept.shape[1] == tokens.shape[1] + 2
    length = len(SENTENCES[0])
    assert torch.allclose(kept[0, 1 : length + 1], expected[0, :length], atol=1e-6)
    as_given = make(bos_eos_tokens=None, remove_bos_eos=False)
    assert torch.allclose(as_given(wrapped), kept, atol=1e-6)
    # Padding has no vectors, boundaries or not.
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, 3))
    for made in (make(remove_bos_eos=False), as_given):
        longer = made(padded)
        assert not longer[:, -3:].any() and longer[:, :-3].any(-1).sum() > 0


@pytest.mark.parametrize(
    ("added", "removed", "expected"),
    [
        (("<S>", "</S>"), True, ()),
        (None, False, ()),
        (None, True, ("is null", "two vectors fewer than words")),
        (("<S>", "</S>"), False, ("remove_bos_eos is false", "two vectors more than words")),
        (("<BOS>", "<EOS>"), True, ("['<BOS>', '<EOS>']", "['<S>']", "['</S>']")),
    ],
)
def test_boundaries_that_do_not_fit_are_told(make, caplog, added, removed, expected):
    caplog.clear()
    make(bos_eos_tokens=added, remove_bos_eos=removed)
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(told) == bool(expected) and all(text in told[0] for text in expected)


@pytest.mark.parametrize("path", ["", "no/model.tar.gz"])
def test_no_archive(monkeypatch, path):
    monkeypatch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", path)
    with pytest.raises(ConfigurationError, match=rf"no archive '{path}'.* BIDIRECTIONAL_LM_ARCH"):
        LanguageModelTokenEmbedder(archive_file=path)


def test_lists_of_texts(embedder):
    """They are padded with empty ones, and have one dimension more."""
    tokens = characters(SENTENCES).unflatten(0, (2, 3))
    tokens[0, 1:] = 0
    vectors = embedder(tokens)
    assert vectors.shape == (*tokens.shape[:3], 2 * DIM)
    assert not vectors[0, 1:].any()
    assert torch.allclose(vectors[1], embedder(tokens[1]), atol=1e-6)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("bound", [None, 8])
def test_dimensions_of_size_0(make, learns, bound):
    embedder = make(requires_grad=learns, max_tokens_per_forward=bound)
    # Sentences, words, characters; AllenNLP leaves out the last where there is no word.
    for shape in ((2, 0, 50), (0, 3, 50), (0, 0, 50), (2, 0), (2, 3, 0), (2, 2, 0, 50)):
        vectors = embedder.train()(torch.zeros(shape, dtype=torch.long))
        assert vectors.shape == (*(shape[:-1] if len(shape) > 2 else shape), 2 * DIM)
        vectors.sum().backward()


@pytest.mark.parametrize("learns", ["from the start", "later", "never"])
def test_gradients(make, learns):
    embedder = make(requires_grad=learns == "from the start")
    if learns == "later":
        embedder._lm._contextualizer.requires_grad_(True)
    embedder(characters(SENTENCES)).sum().backward()
    gradients = [p.grad is not None for p in embedder._lm.parameters()]
    assert any(gradients) is (learns != "never")
    assert embedder._scalar_mix.gamma.grad is not None


def archive_of(folder, vocabulary, reader=None, **changes):
    torch.manual_seed(4)
    config = experiment_config(model=model_config(**changes))
    config["dataset_reader"] = reader or reader_config()
    model = Model.from_params(vocab=vocabulary, params=Params(copy.deepcopy(config["model"])))
    return str(write_archive(folder, config, model))


WORDS = {"type": "embedding", "embedding_dim": DIM}
OTHER = {"token_embedders": {"other": WORDS}}
LSTM = {"type": "lstm", "input_size": DIM, "hidden_size": DIM}
CHARACTERS = {
    "type": "character_encoding",
    "embedding": {"embedding_dim": DIM, "vocab_namespace": "token_characters"},
    "encoder": {"type": "boe", "embedding_dim": DIM},
}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"type": "language_model", "contextualizer": LSTM}, "return_all_layers"),
        ({"text_field_embedder": OTHER}, r"token indexer for: it embeds \['other'\]"),
    ],
)
def test_archives_that_cannot_embed(tmp_path, vocabulary, changes, message):
    archive = archive_of(tmp_path, vocabulary, **changes)
    with pytest.raises(ConfigurationError, match=message) as error:
        LanguageModelTokenEmbedder(archive_file=archive)
    assert archive in str(error.value)


@pytest.mark.filterwarnings("ignore::allennlp.common.checks.ExperimentalFeatureWarning")
def test_equals_the_peer(lm_archive, embedder, monkeypatch):
    """allennlp-models' embedder over the same archive, its own classes behind every name."""
    peer = pytest.importorskip("allennlp_models.lm")
    model, modules = peer.models.BidirectionalLanguageModel, peer.modules
    transformer = modules.BidirectionalLanguageModelTransformer
    for base, name, kind in (
        (Model, "bidirectional_language_model", model),
        (Seq2SeqEncoder, "bidirectional_language_model_transformer", transformer),
    ):
        monkeypatch.setitem(base._registry[base], name, (kind, None))
    theirs = modules.BidirectionalLanguageModelTokenEmbedder(archive_file=str(lm_archive)).eval()
    assert type(theirs._lm) is model
    assert list(theirs.state_dict()) == list(embedder.state_dict())
    tokens = characters([*SENTENCES, ["a"], ["x" * 60, "東京" * 20, "ё"], ["the", "dog", "."] * 20])
    with torch.no_grad():
        assert torch.allclose(theirs(tokens), embedder(tokens), atol=1e-4)


def test_precision(make, embedder):
    tokens = characters(SENTENCES)
    difference = (make(precision="bfloat16")(tokens).float() - embedder(tokens)).abs().max()
    assert 0 < difference < 0.2


def test_a_bound_on_tokens(make, embedder):
    """It changes nothing for short sentences, and cuts a document into segments."""
    sizes = []

    def bounded(limit, **changes):
        made = make(max_tokens_per_forward=limit, **changes)
        made._lm.register_forward_hook(
            lambda _, inputs, output: sizes.append(output["mask"].numel() <= limit)
        )
        return made

    tokens = characters([*SENTENCES, []])
    longest = max(map(len, SENTENCES)) + 2
    for limit in (longest, 2 * longest, 10000):
        made = bounded(limit)
        vectors = made(tokens)
        assert torch.allclose(vectors, embedder(tokens), atol=1e-5)
        vectors.sum().backward()
        assert made._scalar_mix.gamma.grad is not None
    period = SENTENCES[0] + SENTENCES[1]
    with torch.no_grad():
        words = bounded(64, layers=0)(characters([period * 200]))
    assert len(sizes) > 50 and all(sizes)
    # Segments begin at different words of what is repeated: word vectors are the same all the same.
    repeated = words[0].view(200, len(period), 2 * DIM)
    assert repeated.any(-1).all()
    assert torch.allclose(repeated, repeated[:1].expand_as(repeated), atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layers": 3}, r"to 2 \(top\): got 3"),
        ({"layers": 1, "scalar_mix_parameters": [0.0, 0.0, 0.0]}, "for the mixture"),
        ({"layers": "top", "train_scalar_mix": True}, "for the mixture"),
        ({"scalar_mix_parameters": [0.0]}, "must be 3 numbers"),
        ({"max_tokens_per_forward": 3}, "at least 4 tokens, not of 3"),
        ({"bos_eos_tokens": ("<S>",)}, "must be two tokens"),
    ],
)
def test_values_that_do_not_fit(make, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "indexer, section",
    [
        ({"type": "single_id"}, WORDS),
        ({"type": "characters", "min_padding_length": 1}, CHARACTERS),
        ({"type": "elmo_characters", "tokens_to_add": {"<S>": 7}}, None),
    ],
)
def test_the_language_models_own_numbers(tmp_path, vocabulary, indexer, section):
    """The tagger numbers words its own way; the language model must see its own numbers."""
    sentences = [["zebra", "cat", "dog"], ["unheard", "the"]]
    own, vocabulary = Vocabulary(), copy.deepcopy(vocabulary)
    own.add_tokens_to_namespace([word for sentence in sentences for word in sentence])
    own.add_tokens_to_namespace([*"zebracatdogunheardthe"], "token_characters")
    own.add_token_to_namespace("N", "labels")
    vocabulary.add_tokens_to_namespace([*"abcdefghijklmnopqrstuvwxyz<>/S"], "token_characters")
    sections: Any = model_config()["text_field_embedder"]["token_embedders"]
    embedders = {"tokens": section or sections["token_characters"]}
    reader = {**reader_config(), "token_indexers": {"tokens": indexer}}
    archive = archive_of(
        tmp_path / "lm", vocabulary, reader, text_field_embedder={"token_embedders": embedders}
    )
    embedder = {"type": "bidirectional_lm_token_embedder", "archive_file": archive}
    config = {
        "type": "simple_tagger",
        "text_field_embedder": {"token_embedders": {"elmo": embedder}},
        "encoder": {"type": "pass_through", "input_dim": 2 * DIM},
    }
    model = Model.from_params(vocab=own, params=Params(copy.deepcopy(config))).eval()
    made = TokenIndexer.from_params(Params(dict(indexer)))
    source = {"elmo": {"tokens": characters(sentences, made, own)}}
    vectors = model.text_field_embedder(source)

    # Without a vocabulary on top, ids are the language model's; its indexer makes boundaries, too.
    direct = LanguageModelTokenEmbedder(archive, bos_eos_tokens=None).eval()
    for row, sentence in enumerate(sentences):
        ids = characters([["<S>", *sentence, "</S>"]], made, direct.vocab)
        assert torch.allclose(vectors[row, : len(sentence)], direct(ids)[0], atol=1e-5)

    # Opened again, it is the same, and its language model has not grown.
    reader = {"type": "sequence_tagging", "token_indexers": {"elmo": indexer}}
    saved = write_archive(tmp_path / "tagger", {"dataset_reader": reader, "model": config}, model)
    opened = load_archive(saved).model.eval()
    assert torch.allclose(opened.text_field_embedder(source), vectors, atol=1e-6)
