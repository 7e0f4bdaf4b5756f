"""Tensors that have other names in AllenNLP 2."""

import torch
from allennlp.nn import util as nn_util

from transformer_elmo import seam
from transformer_elmo.archive import unpack
from transformer_elmo.legacy.__main__ import main
from transformer_elmo.legacy.weights import modern_weights

OLD = {
    "_matrix_attention._similarity_function._weight_vector": torch.ones(2),
    "_mention_pruner._scorer.0._module._linear_layers.0.weight": torch.ones(3),
    "_mention_pruner._scorer.1._module.weight": torch.ones(4),
    "_text_field_embedder.token_embedder_tokens.weight": torch.ones(5),
}


def names(model):
    return list(modern_weights(OLD, {"model": model}))


def test_names():
    assert names({"type": "bidaf"}) == ["_matrix_attention._weight_vector", *list(OLD)[1:]]
    assert names({"type": "coref"}) == [
        "_matrix_attention._similarity_function._weight_vector",
        "_mention_feedforward._module._linear_layers.0.weight",
        "_mention_scorer._module.weight",
        list(OLD)[3],
    ]
    for model in ({"type": "my_model"}, {}, "coref", None):
        assert names(model) == list(OLD)
    assert modern_weights(OLD, None) == OLD


def test_in_a_folder_and_in_a_converted_archive(tmp_path, vocabulary, write_archive):
    seam.install()
    config = {
        "dataset_reader": {"type": "squad"},
        "model": {"type": "bidaf", "similarity_function": {"type": "cosine"}},
        "iterator": "basic",
    }
    old = write_archive("old", config, OLD, vocabulary)
    assert main([str(old), str(tmp_path / "new.tar.gz")]) == 0
    expected = names({"type": "bidaf"})
    for archive in (old, tmp_path / "new.tar.gz"):
        folder = tmp_path / f"{archive.name}-unpacked"
        folder.mkdir()
        unpack(archive, folder)
        assert list(nn_util.read_state_dict(folder / "weights.th")) == expected
    assert list(torch.load(folder / "weights.th")) == expected


def test_what_hides_a_program_is_not_converted(tmp_path, vocabulary, write_archive, capsys):
    config = {"dataset_reader": {"type": "coref"}, "model": {"type": "coref"}, "iterator": "basic"}
    old = write_archive("old", config, {"a": print}, vocabulary)
    assert main([str(old), str(tmp_path / "new.tar.gz")]) == 1
    assert "other than tensors" in capsys.readouterr().err
    assert not (tmp_path / "new.tar.gz").exists()
