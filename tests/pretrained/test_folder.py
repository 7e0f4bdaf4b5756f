"""Model folders: what is written opens anywhere, alike, and without AllenNLP."""

import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.common import Params
from allennlp.models.archival import load_archive
from allennlp.modules.token_embedders import TokenEmbedder
from allennlp.predictors import Predictor
from safetensors.torch import load_file

from tests.small_lm import (
    DIM,
    experiment_config,
    model_config,
    random_sentences,
    tensors,
    with_squared_relu,
    write_archive,
)
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.commands.cli import main
from transformer_elmo.pretrained.folder import open_folder

TEXT = [*random_sentences(12, seed=8), "", "a", "Größe 東京 unheard-of " + "x" * 80]


def with_encoder(**changes):
    config = model_config()
    config["text_field_embedder"]["token_embedders"]["token_characters"]["encoder"].update(changes)
    return config


WORD_IDS = {"token_embedders": {"tokens": {"type": "embedding", "embedding_dim": DIM}}}
# One of each kind.
MODELS = {
    "sparse samples": model_config(dropout=0.1),
    "samples": model_config(sparse_embeddings=False),
    "full softmax": model_config(num_samples=None, sparse_embeddings=False),
    "bfloat16": model_config(precision="bfloat16"),
    "projection first": with_encoder(projection_location="after_cnn", activation="tanh"),
    "without norm or highway": with_encoder(do_layer_norm=False, num_highway=0),
    "word ids": model_config(text_field_embedder=WORD_IDS, sparse_embeddings=False),
    "squared relu": with_squared_relu(),
}


@pytest.fixture
def archive(make_model, tmp_path):
    def write(name="sparse samples", **reader):
        config = experiment_config(model=MODELS[name])
        config["dataset_reader"].update(reader)
        if name == "word ids":
            config["dataset_reader"]["token_indexers"] = {"tokens": {"type": "single_id"}}
        return write_archive(tmp_path / "made", config, make_model(**MODELS[name]))

    return write


def same_vectors(one, other, tolerance=1e-6):
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        assert np.allclose(a, b, atol=tolerance)


def content(folder):
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())["model"]
    words = (folder / "vocabulary.txt").read_text()
    return config, words, {name: weight.tolist() for name, weight in weights.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model(archive, alone, tmp_path, name):
    """As AllenNLP builds it, as the core opens its archive, and as the folder opens."""
    path = archive(name)
    opened = load_archive(path)
    TransformerElmo(opened.model, opened.dataset_reader).save(tmp_path / "built")
    elmo = TransformerElmo.open(path, overrides={})
    vectors, scores = elmo.embed(TEXT, "all"), elmo.score(TEXT)
    fill, perplexity = elmo.fill("the ___ sat"), elmo.perplexity(TEXT)
    elmo = TransformerElmo.open(path)
    same_vectors(elmo.embed(TEXT, "all"), vectors)
    elmo.save(tmp_path / "folder")
    built, saved = content(tmp_path / "built"), content(tmp_path / "folder")
    # Another name of the same tokenizer.
    built[0]["text"]["tokenizer"]["type"] = "just_spaces"
    assert built == saved
    # Earlier versions refuse keys that they don't know.
    assert ("activation" in saved[0]["contextualizer"]) == (name == "squared relu")

    again = TransformerElmo.open(alone("folder"))
    same_vectors(again.embed(TEXT, "all"), vectors)
    for one, other in zip(again.score(TEXT), scores, strict=True):
        assert one.tokens == other.tokens and one.out_of_vocabulary == other.out_of_vocabulary
        for a, b in ((one.forward, other.forward), (one.backward, other.backward)):
            found, expected = (np.array(view.log_probs, dtype=float) for view in (a, b))
            assert np.allclose(found, expected, atol=1e-5, equal_nan=True)
    assert [c.word for c in again.fill("the ___ sat")] == [c.word for c in fill]
    assert again.perplexity(TEXT) == pytest.approx(perplexity, rel=1e-6)
    assert again.vocab.words == elmo.vocab.words
    # All but the path.
    assert repr(again).partition(", ")[2] == repr(elmo).partition(", ")[2]
    names = ["README.md", "config.json", "model.safetensors", "vocabulary.txt"]
    assert sorted(os.listdir(tmp_path / "away" / "folder")) == names


@pytest.mark.parametrize(
    ("option", "tolerance"),
    [("--without-softmax", 1e-6), ("--dtype=float16", 0.01), ("--dtype=bfloat16", 0.1)],
)
def test_a_smaller_folder(archive, alone, tmp_path, option, tolerance):
    path = archive()
    elmo = TransformerElmo.open(path)
    vectors, perplexity = elmo.embed(TEXT, "all"), elmo.perplexity(TEXT)
    size = (path.parent / "weights.th").stat().st_size
    assert main(["export", str(path), str(tmp_path / "folder"), option]) == 0
    folder = alone("folder")
    again = TransformerElmo.open(folder)
    same_vectors(again.embed(TEXT, "all"), vectors, tolerance)
    if option == "--without-softmax":
        assert not any("softmax" in name for name in load_file(folder / "model.safetensors"))
        for ask, what in ((again.score, TEXT), (again.fill, "a ___"), (again.perplexity, TEXT)):
            with pytest.raises(ConfigurationError, match=r"^.*no softmax.*$"):
                ask(what)
    else:
        assert (folder / "model.safetensors").stat().st_size < 0.55 * size
        assert again.perplexity(TEXT) == pytest.approx(perplexity, rel=0.05)
    # Written again in full, it is what it had become.
    again.save("full")
    same_vectors(TransformerElmo.open("full").embed(TEXT), again.embed(TEXT))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_weights_are_mapped_and_not_copied(folder):
    model = open_folder(folder).model
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if str(folder) in line]
    weight = model.contextualizer._forward_transformer.layers[0].feed_forward.w_1.weight
    for tensor in (weight, model.softmax.word_weights()[0]):
        assert any(int(a, 16) <= tensor.data_ptr() < int(b, 16) for a, b in ranges)


def test_under_allennlp(archive, alone, tmp_path, vocabulary):
    """Whatever takes an archive takes the folder."""
    path = archive()
    (tmp_path / "text.txt").write_text("\n".join(random_sentences(30, seed=2)))
    expected = evaluate_from_archive(str(path), str(tmp_path / "text.txt"))
    TransformerElmo.open(path).save(tmp_path / "folder")
    folder = alone("folder")
    assert evaluate_from_archive(str(folder), "text.txt") == pytest.approx(expected, rel=1e-6)
    opened = load_archive(folder)
    predictor = Predictor.from_archive(opened)
    assert predictor.predict_json({"sentence": "the cat"})["tokens"][1:3] == ["the", "cat"]
    params = {"type": "bidirectional_lm_token_embedder", "archive_file": str(folder)}
    embedder = TokenEmbedder.from_params(Params(params), vocab=vocabulary).eval()
    batch = tensors(["the cat sat"], opened.model.vocab)
    characters = batch["source"]["token_characters"]["elmo_tokens"]
    vectors = embedder(characters[:, 1:-1])[0].detach().numpy()
    same_vectors([vectors], TransformerElmo.open(folder).embed(["the cat sat"]), 1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other", '"format"'),
        ("format_version", 99, "upgrade transformer-elmo"),
        ("model", None, "expected an object"),
        ("model.nonsense", 1, "there is no key 'nonsense'"),
        ("model.words_name", "a.b", r"are missing, such as words\."),
        ("model.precision", "float8", "precision"),
        ("model.softmax", {}, r"model\.softmax: the key 'num_words' is missing"),
        ("model.softmax.num_words", 7, "words, the weights 6"),
        ("model.softmax.num_samples", -1, r"model\.softmax\.num_samples: .* 1, got -1"),
        ("model.words.num_highway", "two", r"num_highway: expected int of .*'two'"),
        ("model.words.num_characters", 9, r"num_characters: .* 262, got 9"),
        ("model.words.own_characters", {"a": 300}, r"words\.own_characters: .*'a': 300"),
        ("model.words.filters", [], r"words\.filters: expected some of widths from 1"),
        ("model.words.filters", [[1, 8], [2, 0]], r"filters: expected int .* got 0"),
        ("model.words.filters", [[1, 10**30], *[[2, 8]] * 3], r"filters\.0\.1 = 1,"),
        ("model.words.filters", [[1, 1]] * 1000, r"\(their number\) = 1,000, but"),
        ("model.words.activation", "gelu", "activation must be one of relu, tanh"),
        ("model.contextualizer.hidden_dim", 65, "those of the config.*size mismatch"),
        ("model.contextualizer.num_layers", 10**9, r"but there are only \d+ weights"),
        ("model.contextualizer.num_layers", 3, r"\d+ are missing, such as contex"),
        ("model.contextualizer.dropout", float("nan"), r"dropout: .* from 0 to 1, got nan"),
    ],
)
def test_configs_that_cannot_be(folder, key, value, message):
    config = json.loads((folder / "config.json").read_text())
    *above, last = key.split(".")
    section = config
    for name in above:
        section = section[name]
    section[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match=message) as error:
        TransformerElmo.open(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert str(folder) in str(error.value)
    # Under AllenNLP, too, whatever its constructors make of them; they don't look at this one.
    if last != "own_characters":
        with pytest.raises(ConfigurationError, match=re.escape(str(folder))):
            load_archive(folder)


def test_what_is_there_is_kept(folder, tmp_path):
    elmo = TransformerElmo.open(folder)
    with pytest.raises(ConfigurationError, match="exists and isn't empty"):
        elmo.save(folder)
    with pytest.raises(ConfigurationError, match="dtype must be one of"):
        elmo.save(tmp_path / "other", dtype="int8")
    with torch.no_grad():
        next(elmo.model.parameters())[0] = torch.nan
    with pytest.raises(ConfigurationError, match="NaN"):
        elmo.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_a_real_limit_while_it_is_written(folder, tmp_path, no_larger_files, size):
    """The weights are written by safetensors, which has errors of its own."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    elmo = TransformerElmo.open(folder)
    elmo.model.check_softmax()
    for target in (folder, tmp_path / "other"):
        with no_larger_files(size), pytest.raises(ConfigurationError) as error:
            elmo.save(target, replace=True)
        assert f"{target} can't be written: File too large. " in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert os.listdir(tmp_path) == ["folder"]


def test_a_tokenizer_that_only_allennlp_has(archive, alone, tmp_path, monkeypatch):
    elmo = TransformerElmo.open(archive(tokenizer={"type": "letters_digits"}))
    assert elmo.words("abc12 d") == ["abc", "12", "d"]
    elmo.save(tmp_path / "folder")
    folder = alone("folder")
    monkeypatch.setattr("transformer_elmo.with_allennlp.load", lambda: "which isn't here")
    split = TransformerElmo.open(folder, tokenizer="just_spaces")
    assert split.words("abc12 d") == ["abc12", "d"]
    elmo = TransformerElmo.open(folder)
    assert elmo.embed([["the", "cat"]])[0].shape[0] == 2
    with pytest.raises(ConfigurationError, match=r'letters_digits.*tokenizer="just_spaces"'):
        elmo.embed(["the cat"])


def test_the_model_card(archive, tmp_path):
    run = archive().parent
    (run / "metrics.json").write_text('{"best_validation_perplexity": 42.32}')
    TransformerElmo.open(run).save(tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "42.32" in card and "train.txt" in card and "TransformerElmo.open" in card
    # The name is on no index.
    assert "pip install PATH" in card and "pip install transformer-elmo" not in card
    # Once more through a folder, and nothing is lost.
    TransformerElmo.open(tmp_path / "folder").save(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card


def test_files_have_the_umask_s_mode(folder, tmp_path):
    elmo = TransformerElmo.open(folder)
    before = os.umask(0o027)
    try:
        elmo.save(tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "saved").iterdir()}
    assert modes == {0o640} and (tmp_path / "saved").stat().st_mode & 0o777 == 0o750


@contextmanager
def bound_by_permissions():
    """As a user whom they bind."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_may_not_be_read(folder, lm_archive):
    # Nobody else may look into pytest's folders.
    with tempfile.TemporaryDirectory() as name:
        model = shutil.copytree(folder, Path(name, "folder"))
        run = shutil.copytree(lm_archive.parent, Path(name, "run"))
        for path in (Path(name), *Path(name).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        for opened, files in (
            (model, (model, *model.glob("[!R]*"))),
            (run, (run, run / "config.json", run / "weights.th", run / "vocabulary/tokens.txt")),
            (run / "model.tar.gz", (run / "model.tar.gz",)),
        ):
            with bound_by_permissions():
                TransformerElmo.open(opened)
            for file in files:
                mode = file.stat().st_mode
                file.chmod(0)
                with bound_by_permissions(), pytest.raises(ConfigurationError) as error:
                    TransformerElmo.open(opened)
                file.chmod(mode)
                assert "Permission denied" in str(error.value), file
                assert file.name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.txt"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (os.mkdir, "Is a directory"),
        (os.mkfifo, "pipe or a device"),
        (partial(os.symlink, "/dev/zero"), "pipe or a device"),
    ],
)
def test_what_is_no_file(folder, name, make, message):
    """Neither waits without end nor reads without end; a folder that lacks one is still one."""
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(ConfigurationError, match=message) as error:
        TransformerElmo.open(folder)
    assert str(folder / name) in str(error.value)


def test_a_model_that_no_folder_has_a_place_for(make_model, tmp_path):
    one_way = {"type": "lstm", "input_size": DIM, "hidden_size": 8}
    section = model_config(contextualizer=one_way, type="language_model")
    path = write_archive(tmp_path / "run", experiment_config(model=section), make_model(**section))
    elmo = TransformerElmo.open(path)
    with pytest.raises(ConfigurationError, match=r"no place for .* contextualizer is a Lstm"):
        elmo.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
