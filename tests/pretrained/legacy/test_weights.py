"""Tensors that have other names in AllenNLP 2, and files beside them."""

import json

import pytest
import torch
from allennlp.nn import util as nn_util

from transformer_elmo.commands.cli import main
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy import archived_files, modern_weights
from transformer_elmo.pretrained.unpacking import unpack

OLD = {
    "_matrix_attention._similarity_function._weight_vector": torch.ones(2),
    "_mention_pruner._scorer.0._module._linear_layers.0.weight": torch.ones(3),
    "_mention_pruner._scorer.1._module.weight": torch.ones(4),
    "_text_field_embedder.token_embedder_tokens.weight": torch.ones(5),
    "encoder._module.layer_0.input_linearity.weight": torch.ones(6),
    "encoder._module.layer_0.state_linearity.bias": torch.ones(7),
    "e._elmo_lstm.forward_layer_0.input_linearity.weight": torch.ones(8),
    "e._elmo_lstm.forward_layer_0.state_projection.weight": torch.ones(9),
    "new.layer_0.cell.input_linearity.weight": torch.ones(10),
}
LSTM = [
    "encoder._module.layer_0.cell.input_linearity.weight",
    "encoder._module.layer_0.cell.state_linearity.bias",
]


def names(model):
    return list(modern_weights(OLD, {"model": model, "iterator": "basic"}))


def test_names():
    first, *others = OLD
    others[3:5] = LSTM
    assert names({"type": "bidaf"}) == ["_matrix_attention._weight_vector", *others]
    assert names({"type": "coref"}) == [
        first,
        "_mention_feedforward._module._linear_layers.0.weight",
        "_mention_scorer._module.weight",
        *others[2:],
    ]
    assert names({"type": "my_model"}) == [first, *others]
    modern = {"model": {"type": "bidaf"}, "data_loader": {"batch_size": 2}}
    assert modern_weights(OLD, modern) is OLD


def test_files_that_an_archive_has(tmp_path):
    (tmp_path / "fta").mkdir()
    (tmp_path / "fta" / "a.b").write_text("x")
    assert archived_files(tmp_path) == {}
    names = tmp_path / "files_to_archive.json"
    names.write_text(json.dumps({"a.b": "/old", "gone": "/older"}))
    assert archived_files(tmp_path) == {"a.b": (tmp_path / "fta" / "a.b").resolve()}
    for text in (b"{", b"3", b"[[3, 4]]", b'{"a\\u0000b": 1}', b"\xff"):
        names.write_bytes(text)
        with pytest.raises(ConfigurationError, match=r"files_to_archive\.json (is n|holds n)o"):
            archived_files(tmp_path)
    for key in ("../a", "/etc/passwd", "", "."):
        names.write_text(json.dumps({key: "x"}))
        with pytest.raises(ConfigurationError, match="outside its archive"):
            archived_files(tmp_path)


def test_in_an_archive_and_in_what_it_is_converted_to(tmp_path, vocabulary, write_archive):
    similarity = {"similarity_function": {"type": "cosine"}}
    config = {"model": {"type": "bidaf", **similarity}, "iterator": "basic"}
    old, new = write_archive("old", config, OLD, vocabulary), tmp_path / "new.tar.gz"
    assert main(["convert", str(old), str(new)]) == 0
    expected = names({"type": "bidaf"})
    for archive in (old, new):
        folder = tmp_path / f"{archive.name}-unpacked"
        folder.mkdir()
        unpack(archive, folder)
        assert list(nn_util.read_state_dict(folder / "weights.th")) == expected
    assert list(torch.load(folder / "weights.th")) == expected


def test_what_hides_a_program_is_not_converted(tmp_path, vocabulary, write_archive, capsys):
    old = write_archive("old", {"model": "coref", "iterator": "basic"}, {"a": print}, vocabulary)
    assert main(["convert", str(old), str(tmp_path / "new.tar.gz")]) == 1
    assert "other than tensors" in capsys.readouterr().err
    assert not (tmp_path / "new.tar.gz").exists()


def test_a_file_beside_them_that_is_no_config(tmp_path):
    (tmp_path / "config.json").write_text("{ // of another program")
    torch.save(OLD, tmp_path / "weights.th")
    assert list(nn_util.read_state_dict(tmp_path / "weights.th")) == list(OLD)
