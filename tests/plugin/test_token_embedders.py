import copy
from typing import Any, Dict

import pytest
import torch
from allennlp.common import Params
from allennlp.data import Batch, DatasetReader, Instance, Token, Vocabulary
from allennlp.data.fields import ListField, TextField
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
from transformer_elmo import BidirectionalLanguageModelTokenEmbedder, LanguageModelTokenEmbedder
from transformer_elmo.errors import ConfigurationError

SENTENCES = [sentence.split() for sentence in random_sentences(6, seed=3)]
WRAPPED = [["<S>", *sentence, "</S>"] for sentence in SENTENCES]


def characters(sentences):
    indexer = ELMoTokenCharactersIndexer()
    fields = [TextField([Token(w) for w in s], {"elmo": indexer}) for s in sentences]
    batch = Batch([Instance({"text": field}) for field in fields])
    batch.index_instances(Vocabulary())
    return batch.as_tensor_dict()["text"]["elmo"]["elmo_tokens"]


@pytest.fixture
def make(lm_archive):
    def make(**changes):
        return LanguageModelTokenEmbedder(archive_file=str(lm_archive), **changes).eval()

    return make


@pytest.fixture
def embedder(make):
    return make()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bidirectional_lm_token_embedder", BidirectionalLanguageModelTokenEmbedder),
        ("language_model_token_embedder", LanguageModelTokenEmbedder),
    ],
)
def test_output(lm_archive, caplog, name, kind):
    caplog.set_level("INFO", logger="transformer_elmo")
    params = {"type": name, "archive_file": str(lm_archive), "dropout": 0.2}
    embedder = TokenEmbedder.from_params(Params(params)).eval()
    assert type(embedder) is kind and embedder.get_output_dim() == 2 * DIM
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
    """All of them mixed, or one."""
    tokens = characters(WRAPPED[:1])
    output = embedder._lm({"tokens": {}, "token_characters": {"elmo_tokens": tokens}})
    words = output["noncontextual_token_embeddings"]
    layers = [torch.cat([words, words], -1), *output["lm_embeddings"]]

    def check(embedder, expected):
        found = embedder(characters(SENTENCES[:1]))
        assert torch.allclose(found, expected[:, 1:-1], atol=1e-5)

    for number, names in enumerate(((0, -3), (1, -2), (2, -1, "top"))):
        for name in names:
            one = make(layers=name)
            check(one, layers[number])
            assert not any("scalar_mix" in key for key in one.state_dict())
    check(embedder, sum(layers) / 3)
    parameters = [0.5, -1.0, 2.0]
    given = make(scalar_mix_parameters=parameters)
    weights = torch.softmax(torch.tensor(parameters), 0)
    torch.nn.init.constant_(given._scalar_mix.gamma, 1.5)
    check(given, 1.5 * sum(w * layer for w, layer in zip(weights, layers)))
    for changes, trained in (
        ({}, True),
        ({"train_scalar_mix": False}, False),
        ({"scalar_mix_parameters": parameters}, False),
        ({"scalar_mix_parameters": parameters, "train_scalar_mix": True}, True),
    ):
        made = make(**changes)
        assert {p.requires_grad for p in made._scalar_mix.parameters()} == {trained}
        assert made.state_dict().keys() == embedder.state_dict().keys()


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


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "There is no archive ''"), ("no/model.tar.gz", r"no archive 'no/model\.tar\.gz'")],
)
def test_no_archive(monkeypatch, path, message):
    monkeypatch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", path)
    with pytest.raises(ConfigurationError, match=message) as error:
        LanguageModelTokenEmbedder(archive_file=path)
    assert "BIDIRECTIONAL_LM_ARCHIVE_PATH" in str(error.value)


def test_lists_of_texts(embedder):
    """They are padded with empty ones, and have one dimension more."""
    indexers: Dict[str, TokenIndexer] = {"elmo": ELMoTokenCharactersIndexer()}
    texts = [[TextField([Token(w) for w in s], indexers) for s in SENTENCES[:n]] for n in (1, 3)]
    batch = Batch([Instance({"texts": ListField(fields)}) for fields in texts])
    batch.index_instances(Vocabulary())
    tokens = batch.as_tensor_dict()["texts"]["elmo"]["elmo_tokens"]
    vectors = embedder(tokens)
    assert vectors.shape == (*tokens.shape[:3], 2 * DIM)
    assert not vectors[0, 1:].any()
    assert torch.allclose(vectors[1], embedder(tokens[1]), atol=1e-6)


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
TAGGER = {
    "type": "simple_tagger",
    "text_field_embedder": {"token_embedders": {"tokens": WORDS}},
    "encoder": {"type": "pass_through", "input_dim": DIM},
}
LSTM = {"type": "lstm", "input_size": DIM, "hidden_size": DIM}
CHARACTERS = {
    "type": "character_encoding",
    "embedding": {"embedding_dim": 4, "vocab_namespace": "token_characters"},
    "encoder": {
        **{"type": "cnn", "embedding_dim": 4, "num_filters": DIM},
        "ngram_filter_sizes": [2],
    },
}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"type": "language_model", "contextualizer": LSTM}, "return_all_layers"),
        (
            {
                "text_field_embedder": {"token_embedders": {"tokens": WORDS, "again": {**WORDS}}},
                "contextualizer": {**model_config()["contextualizer"], "input_dim": 2 * DIM},
            },
            r"exactly one way.*\['tokens', 'again'\]",
        ),
        (
            {"text_field_embedder": {"token_embedders": {"other": WORDS}}},
            r"token indexer for: it embeds \['other'\]",
        ),
        (TAGGER, "holds a SimpleTagger, but a token embedder needs a language model"),
    ],
)
def test_archives_that_cannot_embed(tmp_path, vocabulary, changes, message):
    vocabulary = copy.deepcopy(vocabulary)
    vocabulary.add_token_to_namespace("N", "labels")
    if changes is TAGGER:
        model = Model.from_params(vocab=vocabulary, params=Params(copy.deepcopy(TAGGER)))
        config = {"dataset_reader": {"type": "sequence_tagging"}, "model": TAGGER}
        archive = str(write_archive(tmp_path, config, model))
    else:
        archive = archive_of(tmp_path, vocabulary, **changes)
    with pytest.raises(ConfigurationError, match=message) as error:
        LanguageModelTokenEmbedder(archive_file=archive)
    assert archive in str(error.value)


@pytest.mark.filterwarnings("ignore::allennlp.common.checks.ExperimentalFeatureWarning")
def test_equals_the_peer(lm_archive, embedder):
    """allennlp-models' embedder over the same archive, its own classes behind every name."""
    pytest.importorskip("allennlp_models")
    from allennlp_models.lm.models.bidirectional_lm import BidirectionalLanguageModel
    from allennlp_models.lm.modules.seq2seq_encoders.bidirectional_lm_transformer import (
        BidirectionalLanguageModelTransformer,
    )
    from allennlp_models.lm.modules.token_embedders import (
        BidirectionalLanguageModelTokenEmbedder as PeerEmbedder,
    )

    with pytest.MonkeyPatch.context() as patch:
        for base, name, kind in (
            (Model, "bidirectional_language_model", BidirectionalLanguageModel),
            (
                Seq2SeqEncoder,
                "bidirectional_language_model_transformer",
                BidirectionalLanguageModelTransformer,
            ),
        ):
            patch.setitem(base._registry[base], name, (kind, None))
        peer = PeerEmbedder(archive_file=str(lm_archive)).eval()
    assert type(peer._lm) is BidirectionalLanguageModel
    assert list(peer.state_dict()) == list(embedder.state_dict())
    tokens = characters([*SENTENCES, ["a"], ["x" * 60, "東京" * 20, "ё"], ["the", "dog", "."] * 20])
    with torch.no_grad():
        assert torch.allclose(peer(tokens), embedder(tokens), atol=1e-4)


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
        assert torch.allclose(made(tokens), embedder(tokens), atol=1e-5)
        made(tokens).sum().backward()
        assert made._scalar_mix.gamma.grad is not None
    period = SENTENCES[0] + SENTENCES[1]
    document = characters([period * 200])
    with torch.no_grad():
        vectors = bounded(64)(document)
        words = bounded(64, layers=0)(document)
    assert vectors.shape == (1, 200 * len(period), 2 * DIM) and vectors.any(-1).all()
    assert len(sizes) > 100 and all(sizes)
    # Segments begin at different words of what is repeated: word vectors are the same all the same.
    repeated = words[0].view(200, len(period), 2 * DIM)
    assert torch.allclose(repeated, repeated[:1].expand_as(repeated), atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layers": "all"}, "got 'all'"),
        ({"layers": 3}, r"to 2 \(top\): got 3"),
        ({"layers": True}, "got True"),
        ({"layers": 1, "scalar_mix_parameters": [0.0, 0.0, 0.0]}, "for the mixture"),
        ({"layers": "top", "train_scalar_mix": True}, "for the mixture"),
        ({"scalar_mix_parameters": [0.0]}, "must be 3 numbers"),
        ({"precision": "half"}, "precision must be one of"),
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
        ({"type": "characters", "min_padding_length": 5}, CHARACTERS),
        ({"type": "elmo_characters", "tokens_to_add": {"<S>": 7}}, None),
    ],
)
def test_the_language_models_own_numbers(tmp_path, vocabulary, indexer, section):
    """The tagger numbers words its own way; the language model must see its own numbers."""
    vocabulary = copy.deepcopy(vocabulary)
    for character in "abcdefghijklmnopqrstuvwxyz<>/S":
        vocabulary.add_token_to_namespace(character, "token_characters")
    sections: Any = model_config()["text_field_embedder"]["token_embedders"]
    embedders = {"tokens": section or sections["token_characters"]}
    reader = {**reader_config(), "token_indexers": {"tokens": indexer}}
    archive = archive_of(
        tmp_path / "lm", vocabulary, reader, text_field_embedder={"token_embedders": embedders}
    )
    tags = tmp_path / "tags"
    tags.write_text("zebra###N cat###N dog###N\nunheard###N the###D\n")
    tagging = {"type": "sequence_tagging", "token_indexers": {"elmo": indexer}}
    batch = Batch(DatasetReader.from_params(Params(copy.deepcopy(tagging))).read(str(tags)))
    own = Vocabulary.from_instances(batch.instances)
    embedder = {"type": "bidirectional_lm_token_embedder", "archive_file": archive}
    config = {
        "type": "simple_tagger",
        "text_field_embedder": {"token_embedders": {"elmo": embedder}},
        "encoder": {"type": "pass_through", "input_dim": 2 * DIM},
    }
    model = Model.from_params(vocab=own, params=Params(copy.deepcopy(config))).eval()
    batch.index_instances(own)
    source = batch.as_tensor_dict()["tokens"]
    vectors = model.text_field_embedder(source)

    # Without a vocabulary on top, ids are the language model's; its indexer makes boundaries, too.
    direct = LanguageModelTokenEmbedder(archive, bos_eos_tokens=None).eval()
    lm_indexer = TokenIndexer.from_params(Params(copy.deepcopy(indexer)))
    for row, words in enumerate((["zebra", "cat", "dog"], ["unheard", "the"])):
        tokens = [Token(word) for word in ("<S>", *words, "</S>")]
        indexed = lm_indexer.tokens_to_indices(tokens, direct.vocab)
        padded = lm_indexer.as_padded_tensor_dict(indexed, lm_indexer.get_padding_lengths(indexed))
        (ids,) = padded.values()
        expected = direct(ids.unsqueeze(0))[0]
        assert torch.allclose(vectors[row, : len(words)], expected, atol=1e-5)

    # Opened again, it is the same, and its language model has not grown.
    saved = write_archive(tmp_path / "tagger", {"dataset_reader": tagging, "model": config}, model)
    opened = load_archive(saved).model.eval()
    assert torch.allclose(opened.text_field_embedder(source), vectors, atol=1e-6)
