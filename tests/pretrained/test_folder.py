"""Model folders: what is written opens anywhere, alike, and without AllenNLP."""

import json
import os
import pickle
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.common import Params
from allennlp.models.archival import load_archive
from allennlp.modules.token_embedders import TokenEmbedder
from allennlp.predictors import Predictor
from safetensors.torch import load, load_file, save_file

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
from transformer_elmo.pretrained.allennlp_config import experiment_of, model_config_of
from transformer_elmo.pretrained.config import (
    ContextualizerConfig,
    ModelConfig,
    TextConfig,
    WordIdsConfig,
)
from transformer_elmo.pretrained.folder import open_folder

ROOT = Path(__file__).resolve().parents[2]
TEXT = [*random_sentences(12, seed=8), "", "a", "Größe 東京 unheard-of " + "x" * 80]


def words_model(**changes):
    embedder = {"token_embedders": {"tokens": {"type": "embedding", "embedding_dim": DIM}}}
    return model_config(text_field_embedder=embedder, sparse_embeddings=False, **changes)


def with_encoder(**changes):
    config = model_config()
    config["text_field_embedder"]["token_embedders"]["token_characters"]["encoder"].update(changes)
    return config


# One of each kind.
MODELS = {
    "sparse samples": model_config(dropout=0.1),
    "samples": model_config(sparse_embeddings=False),
    "full softmax": model_config(num_samples=None, sparse_embeddings=False),
    "bfloat16": model_config(precision="bfloat16"),
    "projection first": with_encoder(projection_location="after_cnn", activation="tanh"),
    "without norm or highway": with_encoder(do_layer_norm=False, num_highway=0),
    "word ids": words_model(),
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


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Moves a folder away and deletes all that it was made from."""

    def move(folder):
        away = Path(shutil.move(str(folder), str(tmp_path / "away")))
        for path in tmp_path.iterdir():
            if path != away:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        return away

    return move


def same_vectors(one, other, tolerance=1e-6):
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        assert np.allclose(a, b, atol=tolerance)


def same_scores(one, other, tolerance=1e-5):
    for a, b in zip(one, other, strict=True):
        assert a.tokens == b.tokens and a.out_of_vocabulary == b.out_of_vocabulary
        for side in ("forward", "backward"):
            before, after = (np.array(getattr(s, side).log_probs, dtype=float) for s in (a, b))
            assert np.allclose(before, after, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model(archive, alone, tmp_path, name):
    """As AllenNLP builds it, as the core opens its archive, and as the folder opens."""
    path = archive(name)
    opened = load_archive(path)
    TransformerElmo(opened.model, opened.dataset_reader).save(tmp_path / "built")
    # Two names of the same tokenizer.
    change(tmp_path / "built" / "config.json", model__text__tokenizer__type="just_spaces")
    elmo = TransformerElmo.open(path, overrides={})
    vectors, scores = elmo.embed(TEXT, "all"), elmo.score(TEXT, top_k=2)
    fill, perplexity = elmo.fill("the ___ sat"), elmo.perplexity(TEXT)
    elmo = TransformerElmo.open(path)
    same_vectors(elmo.embed(TEXT, "all"), vectors)
    elmo.save(tmp_path / "folder")
    words, weights, config = (
        [read(tmp_path / folder) for folder in ("built", "folder")]
        for read in (
            lambda folder: (folder / "vocabulary.txt").read_text(),
            lambda folder: load_file(folder / "model.safetensors"),
            lambda folder: json.loads((folder / "config.json").read_text())["model"],
        )
    )
    assert words[0] == words[1] and weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert config[0] == config[1]

    again = TransformerElmo.open(alone(tmp_path / "folder"))
    same_vectors(again.embed(TEXT, "all"), vectors)
    same_scores(again.score(TEXT, top_k=2), scores)
    assert [c.word for c in again.fill("the ___ sat")] == [c.word for c in fill]
    assert again.perplexity(TEXT) == pytest.approx(perplexity, rel=1e-6)
    assert again.vocab.words == elmo.vocab.words
    # All but the path.
    assert repr(again).partition(", ")[2] == repr(elmo).partition(", ")[2]
    names = ["README.md", "config.json", "model.safetensors", "vocabulary.txt"]
    assert sorted(os.listdir(tmp_path / "away")) == names


def test_without_a_softmax(archive, alone, tmp_path, capsys):
    path = archive()
    vectors = TransformerElmo.open(path).embed(TEXT, "all")
    assert main(["export", str(path), str(tmp_path / "folder"), "--without-softmax"]) == 0
    folder = alone(tmp_path / "folder")
    elmo = TransformerElmo.open(folder)
    same_vectors(elmo.embed(TEXT, "all"), vectors)
    for ask in (elmo.score, elmo.fill, elmo.perplexity):
        with pytest.raises(ConfigurationError, match="no softmax") as error:
            ask("the ___" if ask == elmo.fill else ["the cat"])
        assert "\n" not in str(error.value)
    assert not any("softmax" in name for name in load_file(folder / "model.safetensors"))
    # And once more from there.
    elmo.save("again")
    same_vectors(TransformerElmo.open("again").embed(TEXT, "all"), vectors)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.01), ("bfloat16", 0.1)])
def test_half_the_size(archive, alone, tmp_path, dtype, tolerance):
    path = archive()
    elmo = TransformerElmo.open(path)
    vectors, perplexity = elmo.embed(TEXT, "all"), elmo.perplexity(TEXT)
    elmo.save(tmp_path / "whole")
    size = (tmp_path / "whole" / "model.safetensors").stat().st_size
    assert main(["export", str(path), str(tmp_path / "folder"), "--dtype", dtype]) == 0
    folder = alone(tmp_path / "folder")
    assert (folder / "model.safetensors").stat().st_size < 0.55 * size
    again = TransformerElmo.open(folder)
    for one, other in zip(vectors, again.embed(TEXT, "all")):
        assert not one.size or np.abs(one - other).mean() < tolerance
    assert again.perplexity(TEXT) == pytest.approx(perplexity, rel=0.05)
    # Written again in full, it is what it had become.
    again.save("full")
    same_vectors(TransformerElmo.open("full").embed(TEXT), again.embed(TEXT))


def test_weights_are_not_copied(archive, tmp_path):
    """They are mapped from the file: what is written there is seen."""
    TransformerElmo.open(archive()).save(tmp_path / "folder")
    opened = open_folder(tmp_path / "folder")
    weight = opened.model.contextualizer._forward_transformer.layers[0].feed_forward.w_1.weight
    assert opened.model.softmax.word_weights()[0].dtype == torch.float32
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    ranges = [line.split()[0].split("-") for line in lines if "model.safetensors" in line]
    for tensor in (weight, opened.model.softmax.word_weights()[0]) if lines else ():
        assert any(int(a, 16) <= tensor.data_ptr() < int(b, 16) for a, b in ranges)


def test_under_allennlp(archive, alone, tmp_path, vocabulary):
    """Whatever takes an archive takes the folder."""
    path = archive()
    text = "\n".join(random_sentences(30, seed=2))
    (tmp_path / "text.txt").write_text(text)
    expected = evaluate_from_archive(str(path), str(tmp_path / "text.txt"))
    TransformerElmo.open(path).save(tmp_path / "folder")
    folder = alone(tmp_path / "folder")
    Path("text.txt").write_text(text)
    assert evaluate_from_archive(str(folder), "text.txt") == pytest.approx(expected, rel=1e-6)

    opened = load_archive(folder)
    predictor = Predictor.from_archive(opened)
    assert predictor.predict_json({"sentence": "the cat"})["tokens"][1:3] == ["the", "cat"]
    Path("text.txt").write_text("the cat\n")
    assert main(["embed", str(folder), "text.txt", "vectors.npy", "--top"]) == 0
    assert np.load("vectors.npy").shape == (2, 2 * DIM)

    params = {"type": "bidirectional_lm_token_embedder", "archive_file": str(folder)}
    embedder = TokenEmbedder.from_params(Params(params), vocab=vocabulary).eval()
    batch = tensors(["the cat sat"], opened.model.vocab)
    characters = batch["source"]["token_characters"]["elmo_tokens"]
    vectors = embedder(characters[:, 1:-1])[0].detach().numpy()
    same_vectors([vectors], TransformerElmo.open(folder).embed(["the cat sat"]), 1e-5)


def test_a_pickle(archive, alone, tmp_path):
    TransformerElmo.open(archive(), max_tokens=77).save(tmp_path / "folder")
    elmo = TransformerElmo.open(tmp_path / "folder", max_tokens=77)
    vectors = elmo.embed(TEXT)
    (tmp_path / "folder" / "pickled").write_bytes(pickle.dumps(elmo))
    folder = alone(tmp_path / "folder")
    (folder / "model.safetensors").unlink()
    again = pickle.loads((folder / "pickled").read_bytes())
    same_vectors(again.embed(TEXT), vectors)
    assert again.max_tokens == 77


@pytest.fixture
def folder(archive, tmp_path):
    TransformerElmo.open(archive()).save(tmp_path / "folder")
    return tmp_path / "folder"


def change(path, **changes):
    config = json.loads(path.read_text())
    for key, value in changes.items():
        *above, last = key.split("__")
        section = config
        for name in above:
            section = section[name]
        section[last] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, '"format"'),
        ({"format_version": 99}, "upgrade transformer-elmo"),
        ({"model": None}, "expected an object"),
        ({"model__nonsense": 1}, "there is no key 'nonsense'"),
        ({"model__precision": "float8"}, "precision"),
        ({"model__softmax__num_words": 7}, "words, the weights 6"),
        ({"model__softmax__num_samples": -1}, r"model\.softmax\.num_samples: .* 1, got -1"),
        ({"model__words__num_highway": "two"}, r"num_highway: expected int of .*'two'"),
        ({"model__words__num_characters": 9}, r"num_characters: .* 262, got 9"),
        ({"model__words__own_characters": {"a": 300}}, r"words\.own_characters: .*'a': 300"),
        ({"model__words__filters": [[1, 8], [2, 0]]}, r"filters: expected int .* got 0"),
        ({"model__words__filters": [[1, 10**30], *[[2, 8]] * 3]}, r"filters\.0\.1 = 1,"),
        ({"model__words__activation": "gelu"}, "activation must be one of relu, tanh"),
        ({"model__contextualizer__input_dim": 0}, r"contextualizer\.input_dim: .* 1, got 0"),
        ({"model__contextualizer__input_dim": 2**40}, "no dimension of a weight is larger"),
        ({"model__contextualizer__hidden_dim": 65}, "hidden_dim|size mismatch"),
        ({"model__contextualizer__num_layers": 10**9}, r"but there are only \d+ weights"),
        (
            {"model__contextualizer__num_layers": 3},
            r"\d+ are missing, such as contex",
        ),
        ({"model__words__filters": [[1, 1]] * 1000}, r"\(their number\) = 1,000, but"),
        ({"model__contextualizer__dropout": float("nan")}, r"dropout: .* from 0 to 1, got nan"),
    ],
)
def test_configs_that_cannot_be(folder, changes, message):
    change(folder / "config.json", **changes)
    with pytest.raises(ConfigurationError, match=message) as error:
        TransformerElmo.open(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("changes", [{"model__words_name": "a.b"}, {"model__words__filters": []}])
def test_configs_that_cannot_be_under_allennlp(folder, changes):
    """Whatever its constructors make of them."""
    change(folder / "config.json", **changes)
    with pytest.raises(ConfigurationError, match=re.escape(str(folder))):
        load_archive(folder)


def test_damaged_folders(folder):
    def refused(message):
        with pytest.raises(ConfigurationError, match=message):
            TransformerElmo.open(folder)

    path = folder / "vocabulary.txt"
    words = path.read_bytes()
    path.write_bytes(b"caf\xe9\n")
    refused("not UTF-8")
    path.write_bytes(words)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    weights = load(whole)
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"\0" * 1000):
        path.write_bytes(content)
        refused("not a file of weights, or is damaged")
    first = next(iter(weights))
    save_file({**weights, first: weights[first][:-1].contiguous()}, path)
    refused("aren't those of the config")
    save_file({k: v for k, v in weights.items() if k != first}, path)
    refused(r"1 are missing, such as [\w.]+\.$")


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "made"]


def test_a_tokenizer_that_only_allennlp_has(archive, alone, tmp_path, monkeypatch):
    path = archive(tokenizer={"type": "letters_digits"})
    elmo = TransformerElmo.open(path)
    assert elmo.words("abc12 d") == ["abc", "12", "d"]
    elmo.save(tmp_path / "folder")
    folder = alone(tmp_path / "folder")
    monkeypatch.setattr("transformer_elmo.with_allennlp.load", lambda: "which isn't here")
    split = TransformerElmo.open(folder, tokenizer="just_spaces")
    assert split.words("abc12 d") == ["abc12", "d"]
    elmo = TransformerElmo.open(folder)
    assert elmo.embed([["the", "cat"]])[0].shape[0] == 2
    with pytest.raises(ConfigurationError, match=r'letters_digits.*tokenizer="just_spaces"'):
        elmo.embed(["the cat"])


def test_the_model_card(archive, tmp_path):
    path = archive()
    (path.parent / "metrics.json").write_text('{"best_validation_perplexity": 42.32}')
    TransformerElmo.open(path.parent).save(tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "42.32" in card and "train.txt" in card and "TransformerElmo.open" in card
    # The name is on no index.
    assert "pip install PATH" in card and "pip install transformer-elmo" not in card
    # Once more through a folder, and nothing is lost.
    TransformerElmo.open(tmp_path / "folder").save(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card


@pytest.mark.parametrize("activation", ["relu", "relu_squared"])
def test_an_activation_is_written_where_it_is_not_the_original_one(activation):
    """Earlier versions refuse keys that they don't know."""
    config = ModelConfig(
        WordIdsConfig(5, 16),
        ContextualizerConfig(16, 32, 1, activation=activation),
        TextConfig(),
        words_name="tokens",
    )
    value = json.loads(json.dumps(config.to_json()))
    assert ("activation" in value["contextualizer"]) == (activation != "relu")
    assert ModelConfig.from_json(value, "config.json") == config
    section = experiment_of(config)["model"]["contextualizer"]
    assert section.get("activation", "relu") == activation
    assert ("activation" in section) == (activation != "relu")
    assert model_config_of(experiment_of(config), {}).contextualizer == config.contextualizer


@contextmanager
def bound_by_permissions():
    """As a user whom they bind."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_permissions(archive):
    """What is written has the umask's mode, and what may not be read is said to be that."""
    path = archive()
    # Nobody else may look into pytest's folders.
    with tempfile.TemporaryDirectory() as name:
        folder, run = Path(name, "folder"), Path(name, "run")
        before = os.umask(0o027)
        try:
            TransformerElmo.open(path).save(folder)
        finally:
            os.umask(before)
        modes = {file.stat().st_mode & 0o777 for file in folder.iterdir()}
        assert modes == {0o640} and folder.stat().st_mode & 0o777 == 0o750
        shutil.copytree(path.parent, run)
        for file in (Path(name), *Path(name).rglob("*")):
            file.chmod(0o755 if file.is_dir() else 0o644)
        for model, names in (
            (folder, ("config.json", "model.safetensors", "vocabulary.txt", "")),
            (run, ("config.json", "weights.th", "vocabulary/tokens.txt", "")),
            (run / "model.tar.gz", ("",)),
        ):
            with bound_by_permissions():
                TransformerElmo.open(model)
            for file in (model / name if name else model for name in names):
                mode = file.stat().st_mode
                file.chmod(0)
                with bound_by_permissions(), pytest.raises(ConfigurationError) as error:
                    TransformerElmo.open(model)
                file.chmod(mode)
                assert "Permission denied" in str(error.value), file
                assert file.name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["fifo", "device", "missing", "folder"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.txt"])
def test_what_is_no_file(folder, name, kind):
    """Neither waits without end nor reads without end; a folder that lacks one is still one."""
    (folder / name).unlink()
    if kind == "fifo":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    elif kind == "folder":
        (folder / name).mkdir()
    expected = {"missing": "No such file", "folder": "Is a directory"}.get(kind, "pipe or a device")
    with pytest.raises(ConfigurationError, match=expected) as error:
        TransformerElmo.open(folder)
    assert str(folder / name) in str(error.value)


def test_what_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    expected = r"no config\.json.*model\.safetensors.*weights\.th"
    for path, message in ((tmp_path, expected), (tmp_path / "fifo", "pipe or a device")):
        with pytest.raises(ConfigurationError, match=message):
            TransformerElmo.open(path)


def test_a_model_that_no_folder_has_a_place_for(make_model, tmp_path):
    one_way = {"type": "lstm", "input_size": DIM, "hidden_size": 8}
    section = model_config(contextualizer=one_way, type="language_model")
    path = write_archive(tmp_path / "run", experiment_config(model=section), make_model(**section))
    opened = load_archive(path)
    for elmo in (
        TransformerElmo.open(path),
        TransformerElmo(opened.model, opened.dataset_reader),
    ):
        with pytest.raises(ConfigurationError, match=r"no place for .* contextualizer is a Lstm"):
            elmo.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
