import json
import os
import pickle
import shutil
import tarfile
from typing import Any

import pytest
import torch
from allennlp.commands.train import train_model
from allennlp.common import Params
from allennlp.models.archival import load_archive
from allennlp.nn import util as nn_util
from allennlp.nn.initializers import PretrainedModelInitializer

from transformer_elmo.errors import ConfigurationError


@pytest.fixture
def folder(lm_archive, tmp_path):
    """What is in a language model's archive."""
    no_archive = shutil.ignore_patterns("*.gz")
    return shutil.copytree(lm_archive.parent, tmp_path / "model", ignore=no_archive)


def packed(folder):
    path = folder.parent / "model.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in os.listdir(folder):
            tar.add(folder / name, name)
    return path


def change(path, old, new):
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


class Hostile:
    was_run = False

    def __reduce__(self):
        return setattr, (Hostile, "was_run", True)


def test_names_that_were_once_our_own(folder, tmp_path):
    """A language model's `spacy` and `from_files` are ours, in an archive and in a config."""
    config = json.loads((folder / "config.json").read_text())
    config["dataset_reader"]["tokenizer"] = {"type": "spacy", "pos_tags": False}
    (folder / "config.json").write_text(json.dumps(config))
    reader: Any = load_archive(packed(folder)).dataset_reader
    assert type(reader.tokenizer).__module__.startswith("transformer_elmo.")
    (tmp_path / "train.txt").write_text("the cat sat\n" * 9)
    config["vocabulary"] = {"type": "from_files", "directory": str(folder / "vocabulary")}
    config["train_data_path"] = str(tmp_path / "train.txt")
    train_model(Params(config), str(tmp_path / "run"))
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["vocabulary"]["type"] == "lm_from_files"
    assert written["dataset_reader"]["tokenizer"]["type"] == "lm_spacy"


@pytest.mark.parametrize("new_format", [True, False])
def test_weights_of_a_language_model(tmp_path, new_format):
    """Which they are by the config beside them."""
    (tmp_path / "config.json").write_text('{"model": {"type": "language_model"}}')
    state = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
    path = tmp_path / "weights.th"
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    read = nn_util.read_state_dict(path)
    assert list(read) == ["a", "b.c"] and torch.equal(read["a"], state["a"])
    assert list(nn_util.read_state_dict(path, strip_prefix="b.", strict=False)) == ["a", "c"]
    assert list(nn_util.read_state_dict(path, ignore=["^a$"])) == ["b.c"]
    # No pickle is run, and what is damaged is told by its name.
    torch.save(Hostile(), path, _use_new_zipfile_serialization=new_format)
    hostile = path.read_bytes()
    for content in (hostile, pickle.dumps(Hostile()), b"", bytes(5000)):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"weights\.th"):
            nn_util.read_state_dict(path)
    # Without a config it's anyone's, and torch's own refusal.
    (tmp_path / "config.json").unlink()
    path.write_bytes(hostile)
    with pytest.raises(pickle.UnpicklingError):
        nn_util.read_state_dict(path)
    assert not Hostile.was_run


@pytest.mark.parametrize(
    "file, old, new, said",
    [
        ("config.json", '"filters": [[1, 8]', '"filters": [[2, 8]', r"char_conv_0.*\[8, 8, 1\]"),
        ("config.json", '"num_layers": 2', '"num_layers": 1', r"Unexpected key.*layers\.1\."),
        ("config.json", '"num_layers": 2', '"num_layers": 3', r"Missing key.*layers\.2\."),
        ("vocabulary/non_padded_namespaces.txt", "*labels", "tokens", r"softmax_w\.weight"),
    ],
)
def test_weights_of_another_model_are_told_in_one_line(folder, file, old, new, said):
    change(folder / file, old, new)
    with pytest.raises(ConfigurationError, match=said) as raised:
        load_archive(str(folder))
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_on_a_gpu_that_is_not_there(lm_archive):
    number = torch.cuda.device_count()
    with pytest.raises(ConfigurationError, match=f"GPU {number} .*--cuda-device"):
        load_archive(lm_archive, cuda_device=number)


@pytest.mark.parametrize(
    "missing, message",
    [
        ("config.json", "no config.json"),
        ("weights.th", "no weights"),
        ("vocabulary", "no folder vocabulary"),
        ("vocabulary/non_padded_namespaces.txt", "no non_padded_namespaces.txt"),
    ],
)
def test_one_that_lacks_a_part(folder, missing, message):
    shutil.move(folder / missing, folder.parent / "elsewhere")
    with pytest.raises(ConfigurationError, match=rf"model\.tar\.gz has {message}"):
        load_archive(packed(folder))


@pytest.mark.parametrize("name", ["subprocess.Popen", "builtins.exec"])
@pytest.mark.parametrize("kind", ["simple_tagger", "bidirectional_language_model"])
def test_a_config_calls_no_function(folder, name, kind):
    config = json.loads((folder / "config.json").read_text())
    config["model"] = {"type": kind, "encoder": {"type": name, "args": "true"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match=f"{name}.*Don't trust"):
        load_archive(packed(folder))


def test_a_config_may_name_classes_by_their_modules(folder):
    name = "bidirectional_language_model_transformer"
    of_module = "transformer_elmo.plugin.contextualizer.BidirectionalLanguageModelTransformer"
    change(folder / "config.json", name, of_module)
    model = load_archive(packed(folder)).model
    assert type(model).__name__ == "BidirectionalLanguageModel"


def test_a_vocabulary_of_duplicates_opens_as_it_was_trained(folder, caplog):
    (folder / "vocabulary" / "labels.txt").write_text("X\nY\nX\n")
    archive = load_archive(packed(folder))
    assert archive.model.vocab.get_vocab_size("labels") == 2
    assert "the word 'X' is also on line 1" in caplog.text


def test_the_pretrained_initializer_reads_an_archive(folder):
    (folder / "config.json").unlink()
    initializer = PretrainedModelInitializer(str(packed(folder)))
    assert "_softmax_loss.softmax_w.weight" in initializer.weights
