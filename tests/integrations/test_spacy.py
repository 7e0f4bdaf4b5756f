# ruff: noqa: E402 (what follows can't be imported without spaCy)
import copy
import gc
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

spacy = pytest.importorskip("spacy")

from spacy.tokens import Doc
from spacy.training import Example

from tests.integrations.small_model import DIM, OF_IDS, WORDS, save_small_model
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.integrations import spacy as integration
from transformer_elmo.integrations.spacy import TransformerElmoComponent, add_hooks

ROOT = Path(__file__).parents[2]

TEXT = "  The cat sat in Berlin.\n\nThe dog ran,  and 東京 was far.  "

LAYERS = ("mix", "top", "all", 0, 1, -1)

W109 = pytest.mark.filterwarnings("ignore:.*W109")


@pytest.fixture
def folder(tmp_path):
    return save_small_model(tmp_path / "folder")


def pipeline(folder, **options):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("transformer_elmo", config={"path": str(folder), "device": "cpu", **options})
    return nlp


def texts(count, seed=0):
    generator = random.Random(seed)
    words = WORDS[3:-2]
    return [
        " ".join(
            " ".join(generator.choices(words, k=generator.randint(1, 9))) + " ."
            for _ in range(generator.randint(1, 4))
        )
        for _ in range(count)
    ]


def words_of(span):
    return [token.text for token in span if not token.is_space]


def in_new_process(code, folder, timeout=180):
    """Its last line of output, from a process of the core: AllenNLP takes long to import."""
    start = "import json, sys\nsys.modules['allennlp'] = None\n"
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", start + textwrap.dedent(code)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # Its own processes as well, which hold the pipes.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, errors
    return printed.splitlines()[-1]


@pytest.mark.parametrize("layers", LAYERS)
def test_tensor_is_the_model_s_vectors_sentence_by_sentence(folder, layers):
    doc = pipeline(folder, layers=layers)(TEXT)
    elmo = TransformerElmo.open(folder, "cpu")
    width = 6 * DIM if layers == "all" else 2 * DIM
    assert doc.tensor.shape == (len(doc), width) and doc.tensor.dtype == np.float32
    sentences = list(doc.sents)
    assert len(sentences) >= 2 and any(token.is_space for token in doc)
    for sentence in sentences:
        places = [token.i for token in sentence if not token.is_space]
        if places:
            (wanted,) = elmo.embed([words_of(sentence)], layers)
            if layers == "all":
                wanted = np.concatenate(list(wanted), axis=-1)
            assert np.abs(doc.tensor[places] - wanted).max() < 1e-5
    for token in doc:
        assert token.vector.any() != token.is_space
        assert np.array_equal(token.vector, doc.tensor[token.i])


def test_document_without_sentences_is_one(folder):
    nlp = spacy.blank("en")
    nlp.add_pipe("transformer_elmo", config={"path": str(folder)})
    doc = nlp(TEXT)
    (wanted,) = TransformerElmo.open(folder, "cpu").embed([words_of(doc)])
    places = [token.i for token in doc if not token.is_space]
    assert np.abs(doc.tensor[places] - wanted).max() < 1e-5
    # Boundaries that are given by hand count, too.
    doc = Doc(nlp.vocab, ["the", "cat", "the", "cat"], sent_starts=[True, False, True, False])
    doc = nlp(doc)
    assert np.abs(doc.tensor[:2] - doc.tensor[2:]).max() < 1e-5
    assert doc[0].similarity(doc[2]) == pytest.approx(1)


def test_empty_blank_short_and_long_documents(folder):
    nlp = pipeline(folder)
    for text, length in (("", 0), (" ", 1), ("\n\n \t", None), ("cat", 1), (".", 1)):
        doc = nlp(text)
        assert doc.tensor.shape == (len(doc), 2 * DIM) and length in (None, len(doc))
        assert doc.has_vector == bool(text.strip())
        assert doc.vector.shape == (2 * DIM,) and doc[0:0].vector.shape == (2 * DIM,)
        assert np.isfinite(doc.vector).all()
        assert doc.similarity(nlp("the cat")) == 0 or text.strip()
    assert [len(doc) for doc in nlp.pipe(["", "the cat", " ", ""])] == [0, 2, 1, 0]
    nlp.remove_pipe("sentencizer")
    words = " ".join(texts(800)).split()[:6000]
    doc = nlp(Doc(nlp.vocab, words))
    assert doc.tensor.shape == (6000, 2 * DIM)
    assert np.isfinite(doc.tensor).all() and doc.tensor.any(1).all()


def test_vectors_and_similarities(folder):
    nlp = pipeline(folder)
    # What is in the vocabulary is another vector of the same word.
    nlp.vocab.set_vector("cat", np.ones(3, dtype=np.float32))
    doc, other = nlp("The cat sat. The dog ran."), nlp("A cat ran in Paris.")
    assert nlp.vocab["cat"].vector.shape == (3,)
    cat = doc[1]
    assert np.array_equal(cat.vector, doc.tensor[1]) and cat.has_vector
    assert np.allclose(doc[1:3].vector, doc.tensor[1:3].mean(0)) and doc[1:3].has_vector
    assert np.allclose(doc.vector, doc.tensor.mean(0)) and doc.has_vector
    for part in (cat, doc[1:3], doc):
        assert part.vector_norm == pytest.approx(np.linalg.norm(part.vector), rel=1e-5)

        def cosine(two, one=part):
            return one.vector @ two.vector / (one.vector_norm * two.vector_norm)

        for two in (other[1], other[0:3], other, cat):
            assert part.similarity(two) == pytest.approx(cosine(two), abs=1e-5)
    # The same word in another place.
    assert cat.text == other[1].text and cat.similarity(other[1]) < 1 - 1e-4
    with pytest.raises(ValueError, match=r"this Token has 32, the Lexeme 3"):
        cat.similarity(nlp.vocab["cat"])


@W109
def test_what_becomes_of_documents(folder):
    nlp = pipeline(folder)
    doc = nlp(TEXT)
    tensor = doc.tensor.copy()
    part = doc[3:6].as_doc()
    assert np.array_equal(part.tensor, tensor[3:6])
    assert np.array_equal(part[1].vector, tensor[4])
    for other in (doc.copy(), pickle.loads(pickle.dumps(doc)), copy.deepcopy(doc)):
        assert np.array_equal(other.tensor, tensor)
        assert np.array_equal(other[2].vector, tensor[2])
        assert other[2].similarity(doc[2]) == pytest.approx(1)
        assert "similarity" in other.user_token_hooks
    other = Doc(nlp.vocab).from_bytes(doc.to_bytes())
    assert np.array_equal(other.tensor, tensor) and not other.user_hooks
    assert add_hooks(other) is other
    assert other[1].similarity(other[9]) == doc[1].similarity(doc[9])
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[1:3])
    assert np.array_equal(doc[1].vector, doc.tensor[1]) and len(doc.tensor) == len(doc)
    with pytest.raises(ConfigurationError, match="hasn't been through a pipeline"):
        add_hooks(nlp.make_doc("the cat"))


def test_documents_are_batched_together(folder, monkeypatch):
    nlp = pipeline(folder)
    many = [*texts(12), "", "  "]
    expected = [nlp(text).tensor for text in many]
    model = nlp.get_pipe("transformer_elmo").elmo.model
    calls = []
    encode = type(model).encode

    def counted(self, batch):
        calls.append(len(batch.word_index))
        return encode(self, batch)

    monkeypatch.setattr(type(model), "encode", counted)
    for batch_size, most in ((1000, 1), (8, 2), (1, 12)):
        calls.clear()
        docs = list(nlp.pipe(many, batch_size=batch_size))
        assert [doc.text for doc in docs] == many
        for doc, tensor in zip(docs, expected):
            assert np.abs(doc.tensor - tensor).max(initial=0) < 1e-5
        assert len(calls) <= most and sum(calls) == sum(len(list(doc.sents)) for doc in docs) - 1
    small = pipeline(folder, max_tokens=10)
    for doc, tensor in zip(small.pipe(many), expected):
        assert np.abs(doc.tensor - tensor).max(initial=0) < 1e-5


def test_documents_that_are_done_with_need_no_memory(folder):
    nlp = pipeline(folder, max_tokens=20)
    docs = [nlp.make_doc(text) for text in texts(60)]
    alive = weakref.WeakSet(docs)
    stream = iter(docs)
    del docs
    component = nlp.get_pipe("transformer_elmo")
    done = component.pipe((nlp.get_pipe("sentencizer")(doc) for doc in stream), batch_size=1000)
    del stream
    for _ in range(45):
        next(done)
    gc.collect()
    assert len(alive) <= 17


def test_errors_of_a_batch_are_spacy_s_to_handle(folder, monkeypatch):
    nlp = pipeline(folder)
    component = nlp.get_pipe("transformer_elmo")
    encode = type(component.elmo.model).encode

    def failing(self, batch):
        if batch.word_index.size(1) > 40:
            raise RuntimeError("out of memory")
        return encode(self, batch)

    monkeypatch.setattr(type(component.elmo.model), "encode", failing)
    many = ["the cat .", "the dog .", "a cat " * 30, "a dog .", "Anna ran ."]
    with pytest.raises(RuntimeError, match="out of memory"):
        list(nlp.pipe(many, batch_size=1))
    lost = []
    nlp.set_error_handler(lambda name, proc, docs, error: lost.extend([name, proc, *docs]))
    kept = [doc.text for doc in nlp.pipe(many, batch_size=1)]
    assert kept == [many[0], many[1], many[3], many[4]]
    assert lost[0] == "transformer_elmo" and lost[1] is component and lost[2].text == many[2]


@pytest.mark.parametrize(("layers", "dtype"), [("mix", "float32"), ("all", "float16"), (1, None)])
def test_pipeline_is_whole_without_the_folder(tmp_path, monkeypatch, layers, dtype):
    folder = save_small_model(tmp_path / "there" / "folder", dtype=dtype or "bfloat16")
    nlp = pipeline(folder, layers=layers, max_tokens=50)
    expected = nlp(TEXT).tensor
    data = nlp.to_bytes()
    nlp.to_disk(tmp_path / "there" / "pipeline")
    # Over what is there, which it may have been opened from.
    again = spacy.load(tmp_path / "there" / "pipeline")
    again.to_disk(tmp_path / "there" / "pipeline")
    shutil.move(tmp_path / "there" / "pipeline", tmp_path / "moved")
    shutil.rmtree(tmp_path / "there")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    loaded = spacy.load("../moved")
    copied = spacy.blank("en")
    copied.add_pipe("sentencizer")
    config = {"path": None, "layers": layers, "device": "cpu"}
    copied.add_pipe("transformer_elmo", config=config)
    copied.from_bytes(data)
    sourced = spacy.blank("en")
    sourced.add_pipe("sentencizer")
    sourced.add_pipe("transformer_elmo", name="vectors", source=loaded)
    sourced.to_disk("sourced")
    for other in (again, loaded, copied, sourced, spacy.load("sourced")):
        assert np.array_equal(other(TEXT).tensor, expected)
    component = loaded.get_pipe("transformer_elmo")
    assert (component.layers, component.max_tokens) == (layers, 50)
    assert component.elmo.model.card == {"corpus": "made up"}
    assert component.elmo.vocab.words == WORDS and component.elmo.model.softmax is None


@pytest.fixture(scope="session")
def installed_pipeline(tmp_path_factory):
    """
    Made and written in a process that imports spaCy only, and finds the component by the entry
    point of the installed package; then moved, and its model is gone.
    """
    try:
        entry_points = metadata.distribution("transformer-elmo").entry_points
    except metadata.PackageNotFoundError:
        pytest.skip("transformer-elmo isn't installed")
    assert "spacy_factories" in {entry.group for entry in entry_points}, "install it once more"
    home = tmp_path_factory.mktemp("installed")
    folder = save_small_model(home / "folder")
    nlp = pipeline(folder)
    expected = nlp(TEXT).tensor
    (home / "component.pickle").write_bytes(pickle.dumps(nlp.get_pipe("transformer_elmo")))
    printed = in_new_process(
        f"""
        import spacy
        assert not any(name.startswith("transformer_elmo") for name in sys.modules)
        nlp = spacy.blank("en")
        nlp.add_pipe("sentencizer")
        config = {{"path": "folder", "device": "cpu"}}
        component = nlp.add_pipe("transformer_elmo", config=config)
        nlp.to_disk("pipeline")
        print(json.dumps(nlp({TEXT!r}).tensor.tolist()))
        """,
        home,
    )
    assert np.array_equal(np.float32(json.loads(printed)), expected)
    shutil.rmtree(folder)
    (home / "pipeline").rename(home / "moved")
    return home, expected


def test_installed_pipeline_loads_in_a_process_that_imports_only_spacy(installed_pipeline):
    """Several processes, too, with threads that were started before the processes fork."""
    home, expected = installed_pipeline
    printed = in_new_process(
        f"""
        import spacy
        nlp = spacy.load("moved")
        doc = nlp({TEXT!r})
        print(json.dumps([doc.tensor.tolist(), doc[2].similarity(doc[2])]))

        import pickle, numpy as np, torch
        from transformer_elmo.integrations.spacy import add_hooks
        torch.set_num_threads(2)
        torch.randn(2000, 2000) @ torch.randn(2000, 2000)
        # What comes from another process is no fork of that.
        with open("component.pickle", "rb") as file:
            assert pickle.load(file)(nlp.make_doc("The cat sat.")).tensor.any()
        assert torch.get_num_threads() == 2
        texts = ["The cat sat. " * n for n in (300, 1, 0, 40, 200, 7)]
        expected = [nlp(text) for text in texts]
        found = list(nlp.pipe(texts, n_process=2, batch_size=2))
        assert len(found) == 6
        for one, two in zip(found, expected):
            assert np.abs(one.tensor - two.tensor).max(initial=0) < 1e-5
            assert np.allclose(add_hooks(one).vector, two.vector, atol=1e-5)
            assert abs(one.similarity(one) - bool(len(one))) < 1e-5
            assert "similarity" in one.user_token_hooks
        """,
        home,
    )
    numbers, similarity = json.loads(printed)
    assert np.array_equal(np.float32(numbers), expected) and similarity == pytest.approx(1)


def test_loading_opens_nothing_at_the_path(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nlp = pipeline("folder")
    nlp.to_disk("pipeline")
    expected = nlp(TEXT).tensor
    # Something else of the same name.
    shutil.rmtree("folder")
    Path("folder").write_text("no model")
    assert np.array_equal(spacy.load("pipeline")(TEXT).tensor, expected)


def test_component_writes_beside_what_is_there(folder, tmp_path):
    nlp = pipeline(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    nlp.get_pipe("transformer_elmo").to_disk(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["model", "notes.txt"]


def test_component_can_be_pickled(folder):
    component = pipeline(folder).get_pipe("transformer_elmo")
    doc = spacy.blank("en")("The cat sat.")
    expected = component(doc).tensor
    shutil.rmtree(folder)
    other = pickle.loads(pickle.dumps(component))
    assert other.name == "transformer_elmo"
    assert np.array_equal(other(spacy.blank("en")("The cat sat.")).tensor, expected)


def test_threads(folder):
    nlp = pipeline(folder)
    many = texts(40)
    expected = [doc.tensor for doc in pipeline(folder).pipe(many)]
    different = []

    def work():
        # The first ones open the model side by side.
        for doc, tensor in zip(nlp.pipe(many, batch_size=16), expected):
            if np.abs(doc.tensor - tensor).max() > 1e-5:
                different.append(doc.text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different


def test_other_components_are_trained_around_it(folder, tmp_path):
    nlp = spacy.blank("en")
    # A tagger that listens to tok2vec, which keeps its vectors in doc.tensor meanwhile.
    nlp.add_pipe("tok2vec")
    model = {
        "@architectures": "spacy.Tagger.v2",
        "tok2vec": {"@architectures": "spacy.Tok2VecListener.v1", "width": 96},
    }
    nlp.add_pipe("tagger", config={"model": model})
    nlp.add_pipe("transformer_elmo", config={"path": str(folder)})
    nlp.add_pipe("ner")
    examples = []
    for who, what in (("Anna", "sat"), ("Otto", "ran"), ("Anna", "ran"), ("Otto", "sat")):
        doc = nlp.make_doc(f"{who} {what} in Paris .")
        tags = ["N", "V", "P", "N", "."]
        entities = ["U-PER", "O", "O", "U-LOC", "O"]
        words = [token.text for token in doc]
        examples.append(
            Example.from_dict(doc, {"words": words, "tags": tags, "entities": entities})
        )
    torch.manual_seed(0)
    spacy.util.fix_random_seed(0)
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(12):
        losses = nlp.update(examples, sgd=optimizer, annotates=["transformer_elmo"], losses={})
    assert set(losses) >= {"tagger", "ner"} and "transformer_elmo" not in losses
    scores = nlp.evaluate(examples)
    assert scores["tag_acc"] == 1 and scores["ents_f"] == 1
    nlp.to_disk(tmp_path / "pipeline")
    shutil.rmtree(folder)
    doc = spacy.load(tmp_path / "pipeline")("Anna sat in Paris .")
    assert [token.tag_ for token in doc] == ["N", "V", "P", "N", "."]
    assert [(e.text, e.label_) for e in doc.ents] == [("Anna", "PER"), ("Paris", "LOC")]
    assert doc[0].vector.shape == (2 * DIM,)


def test_tensor_that_was_replaced_is_not_mistaken(folder):
    nlp = pipeline(folder)
    nlp.add_pipe("tok2vec").initialize(lambda: [Example(nlp.make_doc("a"), nlp.make_doc("a"))])
    doc = nlp("The cat sat.")
    assert doc.tensor.shape == (4, 96)
    for part in (doc, doc[0], doc[0:2]):
        with pytest.raises(ConfigurationError, match="put transformer_elmo last"):
            _ = part.vector


def test_damaged_files(folder, tmp_path):
    nlp = pipeline(folder)
    nlp.to_disk(tmp_path / "pipeline")
    inside = tmp_path / "pipeline" / "transformer_elmo" / "model"
    for name, content, message in (
        ("model.safetensors", (inside / "model.safetensors").read_bytes()[:500], "is damaged"),
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"{}", "not the config of a model folder"),
        ("vocabulary.txt", b"\xff\n", "not UTF-8"),
    ):
        kept = (inside / name).read_bytes()
        (inside / name).write_bytes(content)
        with pytest.raises(ConfigurationError, match=message):
            spacy.load(tmp_path / "pipeline")
        (inside / name).write_bytes(kept)
    spacy.load(tmp_path / "pipeline")
    (inside / "config.json").unlink()
    with pytest.raises(ConfigurationError, match=r"config\.json can't be read"):
        spacy.load(tmp_path / "pipeline")
    component = nlp.get_pipe("transformer_elmo")
    for data in (b"", b"nothing of the kind", component.to_bytes()[:-100]):
        with pytest.raises(ConfigurationError, match="not what transformer_elmo's to_bytes"):
            component.from_bytes(data)
    for text in ("the cat", {"tokens": ["the"]}, None):
        with pytest.raises(TypeError, match="Expected a spaCy Doc, got"):
            component(text)
    # Which has changed nothing.
    assert component(nlp.make_doc("the cat")).has_vector


def test_what_cannot_be_done(folder, tmp_path):
    def fails(message, kind=ConfigurationError, path=folder, **options):
        """Already when it is added."""
        with pytest.raises(kind, match=message):
            pipeline(path, **options)

    fails("There is no .*none", path=tmp_path / "none")
    fails("is empty", path="")
    (tmp_path / "other").mkdir()
    fails("so it is no model", path=tmp_path / "other")
    fails(r"to 2 \(top\): got 'middle'", ValueError, layers="middle")
    fails(r"to 2 \(top\): got 3", ValueError, layers=3)
    fails("max_tokens must be at least 1", max_tokens=0)
    fails("There is no device 'abacus'", device="abacus")
    if not torch.cuda.is_available():
        for device in (0, "cuda", "cuda:0"):
            fails("torch sees 0 GPUs. The CPU is 'cpu', or -1", device=device)
    empty = spacy.blank("en")
    empty.add_pipe("transformer_elmo", config={"path": None})
    for use in (lambda: empty("the cat"), empty.to_bytes, empty.initialize):
        with pytest.raises(ConfigurationError, match="path of the language model is empty"):
            use()
    wrong = {"layers": [0, 1], "max_tokens": "many", "device": ["cpu"], "layer": 1}
    for name, value in wrong.items():
        with pytest.raises(Exception, match=f"transformer_elmo -> {name}"):
            pipeline(folder, **{name: value})
    with pytest.raises(Exception, match="transformer_elmo -> path"):
        spacy.blank("en").add_pipe("transformer_elmo")


def test_device_by_its_number(folder):
    assert pipeline(folder, device=-1)("the cat").has_vector


@W109
def test_documents_of_other_tokenizers(tmp_path):
    """Tokens are words as they are: with spaces in them, of any characters."""
    folder = save_small_model(tmp_path / "folder", with_softmax=False)
    words = ["New York", "don't", "\n", "a\u200db", "👩\u200d👩\u200d👧", "\0", "東" * 60, "\u00a0"]
    nlp = pipeline(folder, layers="top")
    nlp.remove_pipe("sentencizer")
    doc = nlp(Doc(nlp.vocab, words, spaces=[False] * len(words)))
    assert [token.text for token in doc] == words
    places = [place for place, word in enumerate(words) if word not in ("\n", "\u00a0")]
    (expected,) = TransformerElmo.open(folder, "cpu").embed([[words[n] for n in places]], "top")
    assert np.abs(doc.tensor[places] - expected).max() < 1e-5
    assert doc.tensor.any(1).tolist() == [n in places for n in range(len(words))]
    (again,) = nlp.pipe([doc.copy()])
    assert np.array_equal(again.tensor, doc.tensor)


def test_model_that_knows_words_by_their_numbers(tmp_path):
    folder = save_small_model(tmp_path / "folder", config=OF_IDS)
    nlp = pipeline(folder, layers=0)
    doc = nlp("the cat, zebras sat")
    assert doc[0].vector.any() and not np.array_equal(doc[0].vector, doc[1].vector)
    nlp.to_disk(tmp_path / "pipeline")
    shutil.rmtree(folder)
    found = spacy.load(tmp_path / "pipeline")("the cat, zebras sat").tensor
    assert np.array_equal(found, doc.tensor)


def test_two_models_in_a_pipeline(tmp_path):
    """The last one has the say; both are written."""
    one, two = (save_small_model(tmp_path / str(seed), seed) for seed in (1, 2))
    nlp = pipeline(one, layers="all")
    nlp.add_pipe("transformer_elmo", name="second", config={"path": str(two), "device": "cpu"})
    expected = pipeline(two)(TEXT).tensor
    nlp.to_disk(tmp_path / "pipeline")
    shutil.rmtree(one)
    shutil.rmtree(two)
    for pipes in (nlp, spacy.load(tmp_path / "pipeline")):
        doc = pipes(TEXT)
        assert np.array_equal(doc.tensor, expected)
        assert np.array_equal(doc[2].vector, expected[2])
        with pipes.select_pipes(disable="second"):
            assert pipes(TEXT)[2].vector.shape == (6 * DIM,)


def test_torch_s_default_type_is_no_matter(folder, tmp_path):
    nlp = pipeline(folder)
    expected = nlp(TEXT).tensor
    nlp.to_disk(tmp_path / "pipeline")
    torch.set_default_dtype(torch.float64)
    try:
        for other in (pipeline(folder), spacy.load(tmp_path / "pipeline")):
            found = other(TEXT).tensor
            assert found.dtype == np.float32 and np.array_equal(found, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_factory_describes_itself(folder):
    nlp = pipeline(folder)
    assert isinstance(nlp.get_pipe("transformer_elmo"), TransformerElmoComponent)
    assert nlp.analyze_pipes()["summary"]["transformer_elmo"]["assigns"] == ["doc.tensor"]
    config = nlp.config["components"]["transformer_elmo"]
    assert config["factory"] == "transformer_elmo" and config["layers"] == "mix"


def test_the_lines_of_the_docstring(folder, monkeypatch, capsys):
    folder.rename(folder.with_name("elmo"))
    monkeypatch.chdir(folder.parent)
    (block,) = re.findall(r"```python\n(.*?)```", integration.__doc__, re.DOTALL)
    assert len(list(filter(None, block.splitlines()))) == 5
    exec(block, {})
    assert -1 <= float(capsys.readouterr().out) < 1
