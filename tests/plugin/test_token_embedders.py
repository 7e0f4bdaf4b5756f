import copy
from typing import Any, Dict

import pytest
import torch
from allennlp.common import Params
from allennlp.data import Batch, DatasetReader, Instance, Token, Vocabulary
from allennlp.data.fields import ListField, TextField
from allennlp.data.token_indexers import (
    ELMoTokenCharactersIndexer,
    SingleIdTokenIndexer,
    TokenIndexer,
)
from allennlp.models import Model
from allennlp.models.archival import load_archive
from allennlp.modules.text_field_embedders import TextFieldEmbedder
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


def characters(sentences, vocabulary=None):
    indexer = ELMoTokenCharactersIndexer()
    fields = [TextField([Token(w) for w in s], {"elmo": indexer}) for s in sentences]
    batch = Batch([Instance({"text": field}) for field in fields])
    batch.index_instances(vocabulary or Vocabulary())
    return batch.as_tensor_dict()["text"]["elmo"]["elmo_tokens"]


@pytest.fixture
def embedder(lm_archive):
    return BidirectionalLanguageModelTokenEmbedder(archive_file=str(lm_archive)).eval()


def test_the_log_states_the_dimension(lm_archive, caplog):
    with caplog.at_level("INFO", logger="transformer_elmo"):
        LanguageModelTokenEmbedder(archive_file=str(lm_archive))
    assert f"have {2 * DIM} dimensions: the input_size" in caplog.text


def test_registered_names(lm_archive):
    for name, kind in (
        ("bidirectional_lm_token_embedder", BidirectionalLanguageModelTokenEmbedder),
        ("language_model_token_embedder", LanguageModelTokenEmbedder),
    ):
        params = Params({"type": name, "archive_file": str(lm_archive), "dropout": 0.2})
        assert type(TokenEmbedder.from_params(params)) is kind


def test_output(embedder):
    tokens = characters(SENTENCES)
    vectors = embedder(tokens)
    assert embedder.get_output_dim() == 2 * DIM
    assert vectors.shape == (*tokens.shape[:2], 2 * DIM)
    for row, sentence in enumerate(SENTENCES):
        assert not vectors[row, len(sentence) :].any()
        alone = embedder(characters([sentence]))
        assert torch.allclose(alone[0], vectors[row, : len(sentence)], atol=1e-5)


def test_is_the_mixture_of_the_language_models_layers(embedder, lm_archive):
    with torch.no_grad():
        for number, scalar in enumerate(embedder._scalar_mix.scalar_parameters):
            scalar.fill_(float(number))
        embedder._scalar_mix.gamma.fill_(1.5)
    tokens = characters([["<S>", *SENTENCES[0], "</S>"]])
    output = embedder._lm({"tokens": {}, "token_characters": {"elmo_tokens": tokens}})
    words = output["noncontextual_token_embeddings"]
    layers = [torch.cat([words, words], -1), *output["lm_embeddings"]]
    weights = torch.softmax(torch.arange(3.0), 0)
    expected = 1.5 * sum(w * layer for w, layer in zip(weights, layers))
    assert torch.allclose(embedder(characters([SENTENCES[0]])), expected[:, 1:-1], atol=1e-5)


def test_boundaries(lm_archive, embedder):
    tokens = characters(SENTENCES)
    expected = embedder(tokens)
    wrapped = characters([["<S>", *sentence, "</S>"] for sentence in SENTENCES])

    def embed(tokens, **changes):
        changed = LanguageModelTokenEmbedder(archive_file=str(lm_archive), **changes).eval()
        return changed(tokens)

    # Already there, and removed all the same.
    assert torch.allclose(embed(wrapped, bos_eos_tokens=None), expected, atol=1e-6)
    kept = embed(tokens, remove_bos_eos=False)
    assert kept.shape[1] == tokens.shape[1] + 2
    length = len(SENTENCES[0])
    assert torch.allclose(kept[0, 1 : length + 1], expected[0, :length], atol=1e-6)
    assert torch.allclose(
        embed(wrapped, bos_eos_tokens=None, remove_bos_eos=False), kept, atol=1e-6
    )
    assert embed(tokens, bos_eos_tokens=None, remove_bos_eos=False).shape == expected.shape

    # Padding has no vectors, boundaries or not.
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, 3))
    for options in ({}, {"bos_eos_tokens": None}):
        longer = embed(padded, remove_bos_eos=False, **options)
        assert not longer[:, -3:].any() and longer[:, :-3].any(-1).sum() > 0


def test_boundaries_that_the_lm_was_not_trained_with(lm_archive, caplog):
    def warnings():
        return [r for r in caplog.records if r.name.startswith("transformer_elmo.plugin")]

    caplog.clear()
    LanguageModelTokenEmbedder(archive_file=str(lm_archive), bos_eos_tokens=("<BOS>", "<EOS>"))
    (warning,) = [r for r in warnings() if r.levelname == "WARNING"]
    for expected in ("['<BOS>', '<EOS>']", "['<S>']", "['</S>']"):
        assert expected in warning.getMessage()
    caplog.clear()
    for fitting in (("<S>", "</S>"), None):
        LanguageModelTokenEmbedder(
            archive_file=str(lm_archive),
            bos_eos_tokens=fitting,
            remove_bos_eos=fitting is not None,
        )
    assert not [r for r in warnings() if r.levelname == "WARNING"]
    one: Any = ("<S>",)
    with pytest.raises(ConfigurationError, match="must be two tokens"):
        LanguageModelTokenEmbedder(archive_file=str(lm_archive), bos_eos_tokens=one)


@pytest.mark.parametrize(
    ("added", "removed", "expected"),
    [
        (("<S>", "</S>"), True, None),
        (None, False, None),
        (None, True, "two vectors too few"),
        (("<S>", "</S>"), False, "two vectors more than words"),
    ],
)
def test_vectors_that_are_not_one_a_word_are_told(lm_archive, caplog, added, removed, expected):
    caplog.clear()
    LanguageModelTokenEmbedder(
        archive_file=str(lm_archive), bos_eos_tokens=added, remove_bos_eos=removed
    )
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(told) == (expected is not None)
    assert not told or expected in told[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "There is no archive ''"), ("no/model.tar.gz", r"no archive 'no/model\.tar\.gz'")],
)
def test_no_archive(monkeypatch, path, message):
    monkeypatch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", path)
    with pytest.raises(ConfigurationError, match=message) as error:
        LanguageModelTokenEmbedder(archive_file=path)
    assert "BIDIRECTIONAL_LM_ARCHIVE_PATH" in str(error.value)


def test_empty_rows_and_lists_of_texts(embedder):
    """A `ListField` of texts pads with empty ones, and has one dimension more."""
    indexers: Dict[str, TokenIndexer] = {"elmo": ELMoTokenCharactersIndexer()}
    texts = [[TextField([Token(w) for w in s], indexers) for s in SENTENCES[:n]] for n in (1, 3)]
    batch = Batch([Instance({"texts": ListField(fields)}) for fields in texts])
    batch.index_instances(Vocabulary())
    source = batch.as_tensor_dict()["texts"]
    tokens = source["elmo"]["elmo_tokens"]
    vectors = embedder(tokens)
    assert vectors.shape == (*tokens.shape[:3], 2 * DIM)
    assert not vectors[0, 1:].any()
    assert torch.allclose(vectors[1], embedder(tokens[1]), atol=1e-6)
    basic = TextFieldEmbedder.from_params(
        Params({"token_embedders": {"elmo": {"type": "pass_through", "hidden_dim": 50}}})
    )
    basic._token_embedders["elmo"] = basic.token_embedder_elmo = embedder
    assert torch.allclose(basic(source, num_wrapping_dims=1), vectors, atol=1e-6)


def test_frozen_and_not(lm_archive):
    tokens = characters(SENTENCES)
    for requires_grad in (False, True):
        embedder = LanguageModelTokenEmbedder(
            archive_file=str(lm_archive), requires_grad=requires_grad
        )
        embedder(tokens).sum().backward()
        gradients = [p.grad is not None for p in embedder._lm.parameters()]
        assert any(gradients) is requires_grad
        assert embedder._scalar_mix.gamma.grad is not None


def test_thawed_later(lm_archive):
    embedder = LanguageModelTokenEmbedder(archive_file=str(lm_archive))
    for parameter in embedder._lm._contextualizer.parameters():
        parameter.requires_grad_(True)
    embedder(characters(SENTENCES)).sum().backward()
    assert any(p.grad is not None for p in embedder._lm._contextualizer.parameters())


def test_state_holds_the_lm_without_softmax(embedder):
    names = list(embedder.state_dict())
    assert "_lm._contextualizer._forward_transformer.norm.gamma" in names
    assert "_scalar_mix.scalar_parameters.0" in names
    assert not [name for name in names if "softmax" in name or "boundaries" in name]


def archive_of(folder, vocabulary, reader=None, **changes):
    torch.manual_seed(4)
    config = experiment_config(model=model_config(**changes))
    config["dataset_reader"] = reader or reader_config()
    model = Model.from_params(vocab=vocabulary, params=Params(copy.deepcopy(config["model"])))
    return str(write_archive(folder, config, model))


def test_over_word_embeddings(tmp_path, vocabulary):
    """allennlp-models crashes on a language model whose embedder needs a vocabulary."""
    archive = archive_of(
        tmp_path,
        vocabulary,
        text_field_embedder={
            "token_embedders": {"tokens": {"type": "embedding", "embedding_dim": DIM}}
        },
        reader={**reader_config(), "token_indexers": {"tokens": {"type": "single_id"}}},
    )
    embedder = BidirectionalLanguageModelTokenEmbedder(archive_file=archive).eval()
    indexer = SingleIdTokenIndexer()
    words = [Token(word) for word in SENTENCES[0]]
    ids = torch.tensor([indexer.tokens_to_indices(words, embedder.vocab)["tokens"]])
    assert embedder(ids).shape == (1, len(words), 2 * DIM)
    padded = torch.nn.functional.pad(ids, (0, 3))
    assert torch.allclose(embedder(padded)[:, : len(words)], embedder(ids), atol=1e-6)


@pytest.mark.parametrize(
    "entries, message",
    [
        (
            {
                "tokens": {"type": "embedding", "embedding_dim": DIM // 2},
                "token_characters": {
                    "type": "character_encoding",
                    "embedding": {"num_embeddings": 262, "embedding_dim": 4},
                    "encoder": {
                        "type": "cnn",
                        "embedding_dim": 4,
                        "num_filters": DIM // 2,
                        "ngram_filter_sizes": [1],
                    },
                },
            },
            "exactly one way",
        ),
    ],
)
def test_language_models_that_cannot_embed(tmp_path, vocabulary, entries, message):
    archive = archive_of(tmp_path, vocabulary, text_field_embedder={"token_embedders": entries})
    with pytest.raises(ConfigurationError, match=message):
        LanguageModelTokenEmbedder(archive_file=archive)


def test_an_archive_of_something_else(tmp_path, vocabulary):
    vocabulary = Vocabulary.empty()
    vocabulary.add_tokens_to_namespace(["a", "b"], "tokens")
    vocabulary.add_tokens_to_namespace(["N", "V"], "labels")
    model_section = {
        "type": "simple_tagger",
        "text_field_embedder": {
            "token_embedders": {"tokens": {"type": "embedding", "embedding_dim": 4}}
        },
        "encoder": {"type": "lstm", "input_size": 4, "hidden_size": 4},
    }
    model = Model.from_params(vocab=vocabulary, params=Params(copy.deepcopy(model_section)))
    config = {"dataset_reader": {"type": "sequence_tagging"}, "model": model_section}
    archive = write_archive(tmp_path, config, model)
    with pytest.raises(ConfigurationError) as error:
        LanguageModelTokenEmbedder(archive_file=str(archive))
    assert str(archive) in str(error.value) and "language model" in str(error.value)


def test_an_lstm_language_model_says_what_it_lacks(tmp_path, vocabulary):
    archive = archive_of(
        tmp_path,
        vocabulary,
        type="language_model",
        contextualizer={"type": "lstm", "input_size": DIM, "hidden_size": DIM},
    )
    with pytest.raises(ConfigurationError, match="return_all_layers"):
        LanguageModelTokenEmbedder(archive_file=archive)


@pytest.mark.filterwarnings("ignore::allennlp.common.checks.ExperimentalFeatureWarning")
def test_equals_the_peer(lm_archive, tmp_path, vocabulary):
    """allennlp-models' embedder over the same archive, its own classes behind every name."""
    pytest.importorskip("allennlp_models")
    from allennlp.common import Registrable
    from allennlp_models.lm.models.bidirectional_lm import BidirectionalLanguageModel
    from allennlp_models.lm.modules.seq2seq_encoders.bidirectional_lm_transformer import (
        BidirectionalLanguageModelTransformer,
    )
    from allennlp_models.lm.modules.token_embedders import (
        BidirectionalLanguageModelTokenEmbedder as PeerEmbedder,
    )

    ours = BidirectionalLanguageModelTokenEmbedder(archive_file=str(lm_archive)).eval()
    theirs = {
        "bidirectional_language_model": BidirectionalLanguageModel,
        "bidirectional_language_model_transformer": BidirectionalLanguageModelTransformer,
    }
    saved = {base: dict(names) for base, names in Registrable._registry.items()}
    try:
        for names in Registrable._registry.values():
            names.update({n: (c, None) for n, c in theirs.items() if n in names})
        peer = PeerEmbedder(archive_file=str(lm_archive)).eval()
    finally:
        for base, names in saved.items():
            Registrable._registry[base].update(names)
    assert type(peer._lm) is BidirectionalLanguageModel
    assert list(peer.state_dict()) == list(ours.state_dict())
    tokens = characters([*SENTENCES, ["a"], ["x" * 60, "東京" * 20, "ё"], ["the", "dog", "."] * 20])
    with torch.no_grad():
        assert torch.allclose(peer(tokens), ours(tokens), atol=1e-4)


def test_the_indexer_of_the_lm_is_used_for_boundaries(tmp_path, vocabulary):
    reader = reader_config()
    reader["token_indexers"]["token_characters"]["tokens_to_add"] = {"<S>": 7}
    archive = archive_of(tmp_path, vocabulary, reader=reader)
    embedder = LanguageModelTokenEmbedder(archive_file=archive)
    indexer = TokenIndexer.from_params(
        Params({"type": "elmo_characters", "tokens_to_add": {"<S>": 7}})
    )
    expected = indexer.tokens_to_indices([Token("<S>"), Token("</S>")], vocabulary)["elmo_tokens"]
    assert embedder._boundaries.tolist() == expected


def test_one_layer(lm_archive, embedder):
    tokens = characters(SENTENCES)
    for names in ((0, -3), (1, -2), (2, -1, "top")):
        with torch.no_grad():
            for number, scalar in enumerate(embedder._scalar_mix.scalar_parameters):
                scalar.fill_(0.0 if number == names[0] else -1e9)
        for name in names:
            params = {"type": "language_model_token_embedder", "archive_file": str(lm_archive)}
            one = TokenEmbedder.from_params(Params({**params, "layers": name})).eval()
            assert torch.allclose(one(tokens), embedder(tokens), atol=1e-6)
            assert not any("scalar_mix" in key for key in one.state_dict())


def test_scalar_mix(lm_archive, embedder):
    def make(**changes):
        return LanguageModelTokenEmbedder(archive_file=str(lm_archive), **changes).eval()

    parameters = [0.5, -1.0, 2.0]
    given = make(scalar_mix_parameters=parameters)
    assert not any(p.requires_grad for p in given._scalar_mix.parameters())
    assert given.state_dict().keys() == embedder.state_dict().keys()
    with torch.no_grad():
        for parameter, number in zip(embedder._scalar_mix.scalar_parameters, parameters):
            parameter.fill_(number)
    tokens = characters(SENTENCES)
    assert torch.allclose(given(tokens), embedder(tokens), atol=1e-6)
    for changes, trained in (
        ({}, True),
        ({"train_scalar_mix": False}, False),
        ({"scalar_mix_parameters": parameters, "train_scalar_mix": True}, True),
    ):
        flags = {p.requires_grad for p in make(**changes)._scalar_mix.parameters()}
        assert flags == {trained}


def test_precision(lm_archive, embedder):
    half = LanguageModelTokenEmbedder(archive_file=str(lm_archive), precision="bfloat16").eval()
    tokens = characters(SENTENCES)
    difference = (half(tokens).float() - embedder(tokens)).abs().max()
    assert 0 < difference < 0.2


def test_a_bound_on_tokens_changes_nothing_for_short_sentences(lm_archive, embedder):
    tokens = characters([*SENTENCES, []])
    longest = max(map(len, SENTENCES)) + 2
    seen = []
    for limit in (longest, 2 * longest, 10000):
        bounded = LanguageModelTokenEmbedder(
            archive_file=str(lm_archive), max_tokens_per_forward=limit
        ).eval()
        bounded._lm.register_forward_hook(
            lambda _, inputs, output, limit=limit: seen.append(output["mask"].numel() <= limit)
        )
        assert torch.allclose(bounded(tokens), embedder(tokens), atol=1e-5)
        bounded(tokens).sum().backward()
        assert bounded._scalar_mix.gamma.grad is not None
        assert bounded(tokens[-1:]).shape == embedder(tokens[-1:]).shape
    assert len(seen) > 9 and all(seen)
    unwrapped = LanguageModelTokenEmbedder(
        archive_file=str(lm_archive), max_tokens_per_forward=4, bos_eos_tokens=None,
        remove_bos_eos=False,
    )  # fmt: skip
    assert not unwrapped(torch.zeros(2, 3, 50, dtype=torch.long)).any()


def test_a_document(lm_archive):
    document = (SENTENCES[0] + SENTENCES[1]) * 200
    bounded = LanguageModelTokenEmbedder(archive_file=str(lm_archive), max_tokens_per_forward=64)
    sizes = []
    bounded._lm.register_forward_hook(
        lambda _, inputs, output: sizes.append(output["mask"].numel())
    )
    with torch.no_grad():
        vectors = bounded.eval()(characters([document]))
    assert vectors.shape == (1, len(document), 2 * DIM)
    assert (vectors.abs().sum(-1) > 0).all()
    assert max(sizes) <= 64 < len(document) / 10
    # Windows begin at different words of what is repeated: word vectors are the same all the same.
    words = LanguageModelTokenEmbedder(
        archive_file=str(lm_archive), max_tokens_per_forward=64, layers=0
    ).eval()
    period = len(SENTENCES[0] + SENTENCES[1])
    repeated = words(characters([document]))[0].view(200, period, 2 * DIM)
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
    ],
)
def test_extras_that_do_not_fit(lm_archive, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        LanguageModelTokenEmbedder(archive_file=str(lm_archive), **changes)


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_downstream_over_ids_of_another_vocabulary(tmp_path, vocabulary, kind):
    """The tagger numbers words its own way; the language model must see its own numbers."""
    if kind == "words":
        indexer: Dict[str, Any] = {"type": "single_id"}
        embedder: Dict[str, Any] = {"type": "embedding", "embedding_dim": DIM}
    else:
        indexer = {"type": "characters", "min_padding_length": 5}
        embedder = {
            "type": "character_encoding",
            "embedding": {"embedding_dim": 4, "vocab_namespace": "token_characters"},
            "encoder": {
                "type": "cnn",
                "embedding_dim": 4,
                "num_filters": DIM,
                "ngram_filter_sizes": [2],
            },
        }
    vocabulary = copy.deepcopy(vocabulary)
    for character in "abcdefghijklmnopqrstuvwxyz<>/S":
        vocabulary.add_token_to_namespace(character, "token_characters")
    archive = archive_of(
        tmp_path / "lm",
        vocabulary,
        text_field_embedder={"token_embedders": {"tokens": embedder}},
        reader={**reader_config(), "token_indexers": {"tokens": indexer}},
    )

    tags = tmp_path / "tags"
    tags.write_text("zebra###N cat###N dog###N\nunheard###N the###D\n")
    section = {"type": "sequence_tagging", "token_indexers": {"elmo": indexer}}
    reader = DatasetReader.from_params(Params(copy.deepcopy(section)))
    instances = list(reader.read(str(tags)))
    own = Vocabulary.from_instances(instances)
    config = {
        "type": "simple_tagger",
        "text_field_embedder": {
            "token_embedders": {
                "elmo": {"type": "bidirectional_lm_token_embedder", "archive_file": archive}
            }
        },
        "encoder": {"type": "lstm", "input_size": 2 * DIM, "hidden_size": 4},
    }
    model = Model.from_params(vocab=own, params=Params(copy.deepcopy(config))).eval()
    batch = Batch(instances)
    batch.index_instances(own)
    source = batch.as_tensor_dict()["tokens"]
    vectors = model.text_field_embedder(source)

    direct = BidirectionalLanguageModelTokenEmbedder(archive_file=archive).eval()
    lm_indexer = TokenIndexer.from_params(Params(copy.deepcopy(indexer)))
    for row, words in enumerate((["zebra", "cat", "dog"], ["unheard", "the"])):
        indexed = lm_indexer.tokens_to_indices([Token(word) for word in words], direct.vocab)
        padded = lm_indexer.as_padded_tensor_dict(indexed, lm_indexer.get_padding_lengths(indexed))
        (ids,) = padded.values()
        expected = direct(ids.unsqueeze(0))[0]
        assert torch.allclose(vectors[row, : len(words)], expected, atol=1e-5)

    # Opened again, it is the same, and its language model has not grown.
    saved = write_archive(tmp_path / "tagger", {"dataset_reader": section, "model": config}, model)
    opened = load_archive(saved).model.eval()
    assert torch.allclose(opened.text_field_embedder(source), vectors, atol=1e-6)
