"""What is spaCy's alone: sentences and whitespace, hooks, pipelines, processes."""

# ruff: noqa: E402 (what follows can't be imported without spaCy)
import copy
import json
import pickle
import shutil
from importlib import metadata
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

spacy = pytest.importorskip("spacy")

from spacy.tokens import Doc
from spacy.training import Example

from tests.integrations.small_model import DIM, WORDS, save_small_model
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.integrations.spacy import add_hooks

TEXT = "  The cat sat in Berlin.\n\nThe dog ran,  and 東京 was far.  "


def pipeline(path, **options):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    config = {"path": path and str(path), "device": -1, **options}
    nlp.add_pipe("transformer_elmo", config=config)
    return nlp


@pytest.mark.parametrize("with_sentences", [True, False])
def test_each_sentence_without_its_whitespace(folder, with_sentences):
    nlp = pipeline(folder)
    doc = nlp(TEXT, disable=[] if with_sentences else ["sentencizer"])
    for sentence in doc.sents if with_sentences else [doc]:
        words = [token for token in sentence if not token.is_space]
        expected = TransformerElmo.open(folder, "cpu").embed([[word.text for word in words]])[0]
        assert np.abs(doc.tensor[[word.i for word in words]] - expected).max(initial=0) < 1e-5
    assert any(token.is_space for token in doc)
    for token in doc:
        assert token.vector.any() != token.is_space
        assert np.array_equal(token.vector, doc.tensor[token.i])
    # Boundaries that are given by hand count, too.
    doc = Doc(nlp.vocab, ["the", "cat"] * 2, sent_starts=[True, False] * 2)
    doc = nlp(doc, disable=["sentencizer"])
    assert doc[0].similarity(doc[2]) == pytest.approx(1)


@pytest.mark.parametrize("text", ["", "\n\n \t", "."])
def test_blank_and_short_documents(folder, text):
    nlp = pipeline(folder)
    doc = nlp(text)
    assert doc.tensor.shape == (len(doc), 2 * DIM) and doc.tensor.dtype == np.float32
    assert doc.has_vector == bool(text.strip())
    assert doc.vector.shape == doc[0:0].vector.shape == (2 * DIM,)
    assert np.isfinite(doc.vector).all()
    assert doc.similarity(nlp("the cat")) == 0 or text.strip()


def test_vectors_and_similarities(folder):
    nlp = pipeline(folder)
    # What is in the vocabulary is another vector of the same word.
    nlp.vocab.set_vector("cat", np.ones(3, dtype=np.float32))
    doc, other = nlp("The cat sat. The dog ran."), nlp("A cat ran in Paris.")
    cat = doc[1]
    for part, rows in ((cat, doc.tensor[1:2]), (doc[1:3], doc.tensor[1:3]), (doc, doc.tensor)):
        assert np.allclose(part.vector, rows.mean(0)) and part.has_vector
        assert part.vector_norm == pytest.approx(np.linalg.norm(part.vector), rel=1e-5)
        for two in (other[1], other[0:3], other, cat):
            cosine = part.vector @ two.vector / (part.vector_norm * two.vector_norm)
            assert part.similarity(two) == pytest.approx(cosine, abs=1e-5)
    # The same word in another place.
    assert cat.text == other[1].text and cat.similarity(other[1]) < 1 - 1e-4
    with pytest.raises(ValueError, match=r"this Token has 32, the Lexeme 3"):
        cat.similarity(nlp.vocab["cat"])


@pytest.mark.filterwarnings("ignore:.*W109")
def test_what_becomes_of_documents(folder):
    nlp = pipeline(folder)
    doc: Any = nlp(TEXT)
    tensor = doc.tensor.copy()
    part = doc[3:6].as_doc()
    assert np.array_equal(part.tensor, tensor[3:6]) and np.array_equal(part[1].vector, tensor[4])
    unhooked = Doc(nlp.vocab).from_bytes(doc.to_bytes())
    assert not unhooked.user_hooks and add_hooks(unhooked) is unhooked
    copies: Any = (doc.copy(), pickle.loads(pickle.dumps(doc)), copy.deepcopy(doc), unhooked)
    for other in copies:
        assert np.array_equal(other.tensor, tensor)
        assert np.array_equal(other[2].vector, tensor[2])
        assert other[2].similarity(doc[2]) == pytest.approx(1)
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[1:3])
    assert np.array_equal(doc[1].vector, doc.tensor[1]) and len(doc.tensor) == len(doc)
    with pytest.raises(ConfigurationError, match="hasn't been through a pipeline"):
        add_hooks(nlp.make_doc("the cat"))


def test_documents_are_batched_together(folder, monkeypatch):
    nlp = pipeline(folder)
    model, many = nlp.get_pipe("transformer_elmo").elmo.model, ["the cat . a dog ran ."] * 12
    encode = Mock(side_effect=model.encode)
    monkeypatch.setattr(model, "encode", encode)
    for batch_size, most in ((1000, 1), (8, 2), (1, 12)):
        encode.reset_mock()
        docs = list(nlp.pipe([*many, "", "  "], batch_size=batch_size))
        assert [doc.text for doc in docs] == [*many, "", "  "] and encode.call_count <= most


def test_errors_of_a_batch_are_spacy_s_to_handle(folder):
    nlp = pipeline(folder)
    component: Any = nlp.get_pipe("transformer_elmo")
    docs = [nlp.make_doc("the cat ."), None, nlp.make_doc("Anna ran .")]
    with pytest.raises(TypeError, match="Expected a spaCy Doc"):
        list(component.pipe(docs, batch_size=1))
    lost: Any = []
    component.set_error_handler(lambda name, proc, docs, error: lost.extend([name, proc, *docs]))
    assert list(component.pipe(docs, batch_size=1)) == [docs[0], docs[2]]
    assert lost == ["transformer_elmo", component, None]


def test_pipelines_of_pipelines(folder, tmp_path):
    """By bytes, and sourced from another; of two models the last one has the say."""
    second = save_small_model(tmp_path / "second", 2)
    nlp, copied = (pipeline(path, layers="all", max_tokens=50) for path in (folder, None))
    for one, name in ((nlp, str(second)), (copied, None)):
        one.add_pipe("transformer_elmo", name="second", config={"path": name, "device": "cpu"})
    expected = pipeline(second)(TEXT).tensor
    copied.from_bytes(nlp.to_bytes())
    nlp.to_disk(tmp_path / "pipeline")
    # Something else of the same name: loading opens nothing at the path.
    for path in (folder, second):
        shutil.rmtree(path)
        path.write_text("no model")
    loaded, sourced = spacy.load(tmp_path / "pipeline"), spacy.blank("en")
    sourced.add_pipe("sentencizer")
    for name in ("transformer_elmo", "second"):
        sourced.add_pipe(name, source=loaded)
    for other in (nlp, copied, loaded, sourced):
        doc = other(TEXT)
        assert np.array_equal(doc.tensor, expected) and np.array_equal(doc[2].vector, expected[2])
        with other.select_pipes(disable="second"):
            assert other(TEXT)[2].vector.shape == (6 * DIM,)
    component: Any = loaded.get_pipe("transformer_elmo")
    assert component.max_tokens == 50 and component.elmo.model.card == {"corpus": "made up"}
    assert component.elmo.vocab.words == WORDS and component.elmo.model.softmax is None


def test_a_process_that_imports_only_spacy(folder, tmp_path, in_new_process):
    """
    It finds the component by the entry point of the installed package; and has several processes,
    with threads that were started before they fork.
    """
    try:
        entry_points = metadata.distribution("transformer-elmo").entry_points
    except metadata.PackageNotFoundError:
        pytest.skip("transformer-elmo isn't installed")
    assert "spacy_factories" in {entry.group for entry in entry_points}, "install it once more"
    nlp = pipeline(folder)
    expected = nlp(TEXT).tensor
    nlp.to_disk(tmp_path / "pipeline")
    shutil.rmtree(folder)
    (tmp_path / "pipeline").rename(tmp_path / "moved")
    printed = in_new_process(
        f"""
        import spacy
        assert not any(name.startswith("transformer_elmo") for name in sys.modules)
        nlp = spacy.load("moved")
        print(json.dumps(nlp({TEXT!r}).tensor.tolist()))

        import numpy as np, torch
        from transformer_elmo.integrations.spacy import add_hooks
        torch.set_num_threads(2)
        texts = ["The cat sat. " * n for n in (300, 1, 0, 40, 200, 7)]
        expected = [nlp(text) for text in texts]
        found = list(nlp.pipe(texts, n_process=2, batch_size=2))
        assert len(found) == 6 and torch.get_num_threads() == 2
        for one, two in zip(found, expected):
            assert np.abs(one.tensor - two.tensor).max(initial=0) < 1e-5
            assert np.allclose(add_hooks(one).vector, two.vector, atol=1e-5)
        """,
        tmp_path,
    )
    assert np.array_equal(np.float32(json.loads(printed)), expected)


def test_other_components_are_trained_around_it(folder):
    nlp = spacy.blank("en")
    # A tagger that listens to tok2vec, which keeps its vectors in doc.tensor meanwhile.
    nlp.add_pipe("tok2vec")
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96}
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}
    nlp.add_pipe("tagger", config={"model": model})
    nlp.add_pipe("transformer_elmo", config={"path": str(folder)})
    doc, tags = nlp.make_doc("Anna sat in Paris ."), ["N", "V", "P", "N", "."]
    examples = [Example.from_dict(doc, {"tags": tags})]
    spacy.util.fix_random_seed(0)
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(12):
        losses = nlp.update(examples, sgd=optimizer, annotates=["transformer_elmo"], losses={})
    assert "tagger" in losses and "transformer_elmo" not in losses
    doc = nlp(doc.text)
    assert [token.tag_ for token in doc] == tags and doc[0].vector.shape == (2 * DIM,)
    # After it, tok2vec replaces the tensor.
    nlp.add_pipe("tok2vec", name="late").initialize(lambda: examples)
    doc = nlp("The cat sat.")
    for part in (doc, doc[0], doc[0:2]):
        with pytest.raises(ConfigurationError, match="put transformer_elmo last"):
            _ = part.vector


def test_what_cannot_be_done(folder):
    """Already when it is added."""
    nlp = pipeline(folder)
    component: Any = nlp.get_pipe("transformer_elmo")
    for data in (b"", b"nothing of the kind", component.to_bytes()[:-100]):
        with pytest.raises(ConfigurationError, match="not what transformer_elmo's to_bytes"):
            component.from_bytes(data)
    # Which has changed nothing.
    assert nlp("the cat").has_vector
    with pytest.raises(ConfigurationError, match="There is no device"):
        pipeline(folder, device="abacus")
    empty = pipeline(None)
    for use in (lambda: empty("the cat"), empty.to_bytes):
        with pytest.raises(ConfigurationError, match="path of the language model is empty"):
            use()
    wrong = {"layers": [0, 1], "max_tokens": "many", "device": ["cpu"], "layer": 1, "path": [1]}
    for name, value in wrong.items():
        with pytest.raises(Exception, match=f"transformer_elmo -> {name}"):
            spacy.blank("en").add_pipe("transformer_elmo", config={"path": "x", name: value})
    assert nlp.analyze_pipes()["summary"]["transformer_elmo"]["assigns"] == ["doc.tensor"]
