"""What is opened is what was written: one flipped bit, a NaN, a word too many is seen."""

import json
import pickle
import random
import re
import shutil
import tarfile

import numpy as np
import pytest
import torch
from allennlp.models.archival import load_archive
from safetensors.torch import load_file, save_file

from tests.small_lm import experiment_config
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.pretrained.legacy.overrides import with_overrides

SENTENCES = ["the cat sat"]


@pytest.fixture
def run(lm_archive, tmp_path):
    """The folder of a training run."""
    run = shutil.copytree(lm_archive.parent, tmp_path / "run")
    (run / "model.tar.gz").unlink()
    return run


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def packed(run):
    with tarfile.open(run.parent / "model.tar.gz", "w:gz") as tar:
        for file in ("config.json", "vocabulary", "weights.th"):
            tar.add(run / file, arcname=file)
    return run.parent / "model.tar.gz"


def used(path):
    elmo = TransformerElmo.open(path)
    return elmo.embed(SENTENCES), elmo.score(SENTENCES)


def refused(path, message):
    """Here, and under AllenNLP."""
    for opened in (used, load_archive):
        with pytest.raises(ConfigurationError, match=message) as error:
            opened(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["folder/model.safetensors", "run/weights.th"])
def test_a_flipped_bit(folder, run, tmp_path, name):
    path = tmp_path / name
    whole, (vectors, scores), generator = path.read_bytes(), used(path.parent), random.Random(3)
    header = 8 + int.from_bytes(whole[:8], "little") if path.suffix == ".safetensors" else 0
    places = [generator.randrange(end) for end in [len(whole)] * 40 + [2000] * 20]
    for place in places:
        flip(path, place, generator.randrange(8))
        try:
            found = used(path.parent)
        except ConfigurationError as error:
            assert str(path.parent) in str(error) and "\n" not in str(error)
            assert place < header or not header or "checksum" in str(error)
        else:
            # Between two members, in a space, or in a name of the metadata that nobody asks for.
            assert place < header or not header
            assert np.array_equal(found[0][0], vectors[0]) and found[1] == scores
        path.write_bytes(whole)


def test_the_softmax_is_looked_at_when_it_is_used(folder, run, tmp_path):
    softmax = load_file(folder / "model.safetensors")["_softmax_loss.softmax_w.weight"].clone()
    for path in (folder / "model.safetensors", run / "weights.th"):
        flip(path, path.read_bytes().index(softmax.numpy().tobytes()) + 400)
        elmo = TransformerElmo.open(path.parent)
        assert len(elmo.embed(SENTENCES)) == 1
        for use in (
            lambda elmo: elmo.score(SENTENCES),
            lambda elmo: elmo.evaluate(SENTENCES),
            lambda elmo: elmo.save(tmp_path / "saved"),
            pickle.dumps,
        ):
            with pytest.raises(ConfigurationError, match="is damaged"):
                use(TransformerElmo.open(path.parent))
        elmo.save(tmp_path / path.name, with_softmax=False)
        with pytest.raises(ConfigurationError, match="is damaged"):
            load_archive(path.parent)
    assert not (tmp_path / "saved").exists()


def test_what_somebody_writes_into_the_softmax_is_theirs(folder):
    elmo = TransformerElmo.open(folder)
    with torch.no_grad():
        for parameter in elmo.model.softmax.parameters():
            parameter.mul_(0.5)
    assert elmo.score(SENTENCES)


@pytest.mark.parametrize("part", ["_contextualizer", "_softmax_loss"])
def test_a_nan_is_never_opened_without_a_word(folder, run, part):
    weights = torch.load(run / "weights.th")
    name = next(n for n, t in weights.items() if n.startswith(part) and t.dim() == 2)
    weights[name][1, 1] = float("nan")
    torch.save(weights, run / "weights.th")
    archive = packed(run)
    del weights["_last_average_loss"]
    save_file(weights, folder / "model.safetensors")
    for path in (run, archive, folder):
        refused(path, f"{name} has a NaN")


def test_files_without_checksums_open(folder, run):
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors")
    expected = used(folder)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, run / "weights.th")
    finally:
        torch.serialization.set_crc32_options(True)
    assert np.array_equal(used(run)[0][0], expected[0][0])
    torch.save(weights, run / "weights.th", _use_new_zipfile_serialization=False)
    assert np.array_equal(used(run)[0][0], expected[0][0])


def test_what_nobody_reads(run):
    weights = torch.load(run / "weights.th")
    weights["_last_average_loss"].fill_(float("nan"))
    # Views have no checksums of their own.
    both = torch.randn(2, 5)
    torch.save({**weights, "one": both[0], "other": both[:, 1]}, run / "weights.th")
    assert used(run)


def test_names_of_weights_have_a_checksum(run):
    path = run / "weights.th"
    flip(path, path.read_bytes().index(b"_contextualizer"))
    refused(run, r"weights\.th .*is damaged: Bad CRC-32")


@pytest.mark.parametrize("more", [True, False])
def test_a_word_too_many_or_too_few(run, folder, more):
    for path in (run / "vocabulary" / "tokens.txt", folder / "vocabulary.txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        new = [*lines, "more"] if more else lines[:-1]
        path.write_text("\n".join(new) + "\n", encoding="utf-8")
    for path in (run, folder, packed(run)):
        expected = f"{path}: the vocabulary has {len(new)} words, the weights {len(lines)}."
        refused(path, re.escape(expected))


def test_another_word_in_a_model_folder(folder):
    path = folder / "vocabulary.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[5], lines[6] = lines[6], lines[5]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    refused(folder, r"vocabulary\.txt is damaged.*these \d+")


def test_namespaces_that_are_not_utf8(run):
    (run / "vocabulary" / "non_padded_namespaces.txt").write_bytes(b"*labels\xff\n")
    refused(packed(run), r"^(?!.*/vocabulary/).* of .*model\.tar\.gz.* UTF-8")


@pytest.mark.parametrize(
    "path, value",
    [
        ("contextualizer.num_layers", 10**9),
        ("contextualizer.hidden_dim", 10**8),
        ("text_field_embedder.token_embedders.token_characters.encoder.filters", [[1, 10**9]]),
    ],
)
def test_sizes_that_no_weight_has(run, path, value):
    config = with_overrides(experiment_config(), {f"model.{path}": value})
    (run / "config.json").write_text(json.dumps(config))
    refused(run, re.escape(str(run)))
