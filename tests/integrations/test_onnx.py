"""The graph itself, its card, what OnnxElmo adds to it, and exports that can't be."""

import random
import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from tests.integrations.small_model import (
    CHARACTERS,
    DIM,
    OTHER,
    WORDS,
    assert_close,
    reference_vectors,
    small_model,
)
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.commands.cli import main
from transformer_elmo.integrations.onnx import OnnxElmo
from transformer_elmo.nn import reference
from transformer_elmo.nn.transformer import PositionalEncoding
from transformer_elmo.pretrained import onnx as exporter
from transformer_elmo.pretrained.folder import save_folder
from transformer_elmo.text.word_table import character_ids


@pytest.fixture(scope="session")
def onnxruntime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    return pytest.importorskip("onnxruntime")


def random_sentences(count, longest):
    generator = random.Random(count)
    letters = "abcdefghéß東"
    return [
        [
            generator.choice([*WORDS, "<P>", "".join(generator.choices(letters, k=k % 60 + 1))])
            for k in generator.choices(range(300), k=generator.randint(1, longest))
        ]
        for _ in range(count)
    ]


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (3, 7), (2, 150)])
def test_batches_of_all_shapes(onnxruntime, models, shape):
    sentences = random_sentences(*shape)
    found = OnnxElmo(models["characters"]).embed(sentences, "all")
    assert_close(found, reference_vectors(models["characters"], sentences))
    # They don't hold on to the whole batch.
    assert all(rows.base is None or rows.base.nbytes == rows.nbytes for rows in found)


def test_another_model(onnxruntime, tmp_path, monkeypatch):
    """
    In training, in half precision, multiplied in bfloat16, which the graph isn't; its weights
    beside the graph, its table of 8 positions, and longer sentences.
    """
    monkeypatch.setattr(PositionalEncoding.__init__, "__defaults__", (8,))
    monkeypatch.setattr(exporter, "MOST_WITHIN", 0)
    monkeypatch.setattr(reference, "NUM_POSITIONS", 8)
    model, reader = small_model(replace(OTHER, precision="bfloat16"))
    model.train()
    before = [*model.parameters()]
    write = partial(exporter.write_onnx, model)
    save_folder(model, reader, tmp_path / "made", dtype="float16", more=write)
    # Whoever is training it meanwhile sees nothing; its graph is without dropout all the same.
    assert all(module.training for module in model.modules())
    assert all(p is q and p.requires_grad for p, q in zip(before, model.parameters(), strict=True))
    folder = (tmp_path / "made").rename(tmp_path / "moved")
    save_folder(model, reader, tmp_path / "source")
    assert {"model.onnx", "model.onnx.data"} < {path.name for path in folder.iterdir()}
    sentences = random_sentences(5, 20)
    expected = reference_vectors(tmp_path / "source", sentences)
    assert_close(OnnxElmo(folder).embed(sentences, "all"), expected)


@pytest.mark.parametrize(
    ("kind", "name", "rest"), [("characters", "characters", (50,)), ("ids", "token_ids", ())]
)
def test_inputs_and_outputs(onnxruntime, models, kind, name, rest):
    import onnx

    model = onnx.load(models[kind] / "model.onnx")
    onnx.checker.check_model(model)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    session = onnxruntime.InferenceSession(models[kind] / "model.onnx")
    words, lengths = session.get_inputs()
    (layers,) = session.get_outputs()
    assert (words.name, lengths.name, layers.name) == (name, "lengths", "layers")
    assert words.type == lengths.type == "tensor(int64)" and layers.type == "tensor(float)"
    assert [layers.shape[0], layers.shape[3]] == [3, 2 * DIM]
    assert words.shape[2:] == list(rest) and all(isinstance(n, str) for n in words.shape[:2])
    for shape in ((0, 0), (0, 3), (2, 0), (2, 3)):
        no_words, no_lengths = np.zeros((*shape, *rest), np.int64), np.zeros(shape[0], np.int64)
        (found,) = session.run(None, {name: no_words, "lengths": no_lengths})
        assert found.shape[1:3] == shape and not found.any()
    # For a session of one's own.
    ours, sentences = OnnxElmo(models[kind]), ["the cat", ["sat"]]
    inputs = ours.inputs(sentences)
    assert inputs["lengths"].tolist() == [4, 3]
    (found,) = session.run(None, inputs)
    assert_close([found[:, 0, 1:3], found[:, 1, 1:2]], ours.embed(sentences, "all"))
    assert not found[:, 1, 3].any()


def test_the_card_says_how_words_become_numbers(onnxruntime, models):
    card = (models["characters"] / "README.md").read_text(encoding="utf-8")
    assert "`characters` | int64 (batch, words, 50)" in card
    assert f"float32 (3, batch, words, {2 * DIM})" in card
    assert "begins with `<S>` and ends with `</S>`" in card
    first, most, last, padding = map(
        int, re.search(r"word: (\d+), .* \((\d+) at most\), (\d+), and (\d+) to", card).groups()
    )
    single = {word: int(number) for number, word in re.findall(r"(\d+) for `([^`]+)`", card)}
    assert set(single) == {"<S>", "</S>", "<P>"}
    for word in [*WORDS, "<P>", "naïve", "東京", "x" * 47, "y" * 60]:
        middle = [single[word]] if word in single else [b + 1 for b in word.encode()[:most]]
        ids = [first, *middle, last]
        expected = character_ids([word], CHARACTERS.own_characters)[0].tolist()
        assert [*ids, *[padding] * (50 - len(ids))] == expected
    assert "`token_ids` | int64 (batch, words)" in (models["ids"] / "README.md").read_text()


def test_options(onnxruntime, models):
    options: Any = {"providers": ["CPUExecutionProvider"], "tokenizer": list, "segment_length": 16}
    ours = OnnxElmo(models["characters"], **options)
    elmo = TransformerElmo.open(models["characters"], "cpu", segment_length=16)
    sentences, weights = random_sentences(1, 70), [0.5, -2.0, 3.0]
    found = ours.embed(sentences, weights=weights)
    assert_close(found, elmo.embed(sentences, weights=weights))
    assert ours.embed(["abc"])[0].shape == (3, 2 * DIM)


def test_damaged_folders(onnxruntime, folder, models, tmp_path):
    with pytest.raises(ConfigurationError, match=r"no model.onnx.*--onnx"):
        OnnxElmo(folder)
    for name, content, message in (
        ("model.onnx", (models["ids"] / "model.onnx").read_bytes()[:500], "can't be opened"),
        ("config.json", b"{", "is not JSON"),
        ("vocabulary.txt", b"</S>\n<S>\n", "the vocabulary has 2 words, the weights 17"),
    ):
        damaged = shutil.copytree(models["ids"], tmp_path / name)
        (damaged / name).write_bytes(content)
        with pytest.raises(ConfigurationError, match=message):
            OnnxElmo(damaged)


def test_missing_packages(onnxruntime, folder, models, monkeypatch, capsys):
    message = "needs the package {}.*pip install onnx onnxscript onnxruntime"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=message.format("onnxruntime")):
        OnnxElmo(models["ids"])
    for name in ("onnxscript", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
        # Before the model is looked for, which may take long.
        assert main(["export", str(folder / "none"), str(folder.parent / "new"), "--onnx"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(message.format(name), line)
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_what_cannot_be_written_leaves_the_old_folder(onnxruntime, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    elmo = TransformerElmo.open(folder)
    for error in (RuntimeError("exporter"), KeyboardInterrupt("stop")):
        monkeypatch.setattr(torch.onnx, "export", Mock(side_effect=error))
        with pytest.raises(type(error), match=str(error)):
            elmo.save(folder, onnx=True, replace=True)
        assert [path.name for path in folder.parent.iterdir()] == ["folder"]
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
