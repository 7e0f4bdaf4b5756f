"""What `Params.from_file` makes of configs and overrides, and what of AllenNLP is changed."""

import copy
import json
import os
import tarfile
from typing import Any, Dict, List

import pytest
from allennlp.commands import evaluate
from allennlp.common import Params
from allennlp.data import DataLoader, DatasetReader, Tokenizer, Vocabulary
from allennlp.models import Model, archival
from allennlp.models.archival import load_archive
from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
from allennlp.modules.token_embedders import TokenEmbedder
from allennlp.predictors import Predictor

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import patches
from transformer_elmo.plugin.compat import configs
from transformer_elmo.plugin.patches import _WRAPPED

MODERN: Dict[str, Any] = {
    "dataset_reader": {"type": "sequence_tagging"},
    "train_data_path": "x",
    "model": {
        "type": "simple_tagger",
        "text_field_embedder": {
            "token_embedders": {"tokens": {"type": "embedding", "embedding_dim": 3}}
        },
        "encoder": {"type": "lstm", "input_size": 3, "hidden_size": 2},
    },
    "data_loader": {"batch_size": 2},
    "trainer": {"optimizer": "adam", "max_bad_steps": 3},
}
ON_TOP: Dict[str, Any] = copy.deepcopy(MODERN)
ON_TOP["model"]["text_field_embedder"]["token_embedders"]["elmo"] = {
    "type": "language_model_token_embedder",
    "archive_file": "lm",
}


@pytest.fixture
def config_file(tmp_path):
    def write(config):
        path = tmp_path / "config.jsonnet"
        path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
        return path

    return write


def test_what_is_changed_is_listed_with_its_reason_and_once():
    before = vars(Params)["from_file"].__func__, patches.patches()
    configs.install()
    assert before == (vars(Params)["from_file"].__func__, patches.patches())
    targets = [patch.target for patch in patches.patches()]
    assert "allennlp.common.params.Params.from_file" in targets
    assert len(targets) == len(set(targets)) <= 15
    assert all(patch.reason for patch in patches.patches())


def test_names_of_allennlp_are_its_own():
    names: List[Any] = [(Tokenizer, "spacy"), (Vocabulary, "from_files")]
    for base, name in [*names, (Predictor, "sentence_tagger")]:
        assert base.by_name(name).__module__.startswith("allennlp."), name
        ours = base.resolve_class_name(f"lm_{name}")[0]
        assert ours.__module__.startswith("transformer_elmo."), name


def test_names_of_allennlp_models_are_ours_and_its_classes_stay():
    """Imported after this package; other orders are in `test_with_allennlp`."""
    theirs = pytest.importorskip("allennlp_models.lm").models.language_model.LanguageModel
    assert theirs.__module__ == "allennlp_models.lm.models.language_model"
    names: List[Any] = [
        (Model, "language_model"),
        (Model, "bidirectional-language-model"),
        (Model, "bidirectional_language_model"),
        (DatasetReader, "simple_language_modeling"),
        (DataLoader, "language_modeling"),
        (Seq2SeqEncoder, "bidirectional_language_model_transformer"),
        (TokenEmbedder, "language_model_token_embedder"),
        (TokenEmbedder, "bidirectional_lm_token_embedder"),
    ]
    for base, name in names:
        assert base.by_name(name).__module__.startswith("transformer_elmo."), name


@pytest.mark.parametrize(
    "overrides",
    ["", '{"trainer.optimizer": "sgd"}', {"trainer": {"num_epochs": 2}, "evaluation": {}}],
)
@pytest.mark.parametrize("config", [MODERN, {"iterator": 3, "trainer": {"shuffle": True}}])
def test_configs_and_overrides_of_other_models_are_allennlps(config_file, config, overrides):
    path = config_file(config)
    ours = Params.from_file(path, overrides)
    stock = getattr(vars(Params)["from_file"].__func__, _WRAPPED)(Params, path, overrides)
    assert type(ours) is Params and json.dumps(ours.params) == json.dumps(stock.params)
    with pytest.raises(ValueError, match="unused keys"):
        Params.from_file(path, '{"trainer.a.b": 3}')


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"model": 3}, " = "),
        ({"trainer.a.b": 3}, r"unused keys.*: trainer\.a\.b"),
        ({"itertor": {"batch_size": 3}}, "itertor"),
        ({"trainer.pateince": 3}, r"trainer\.pateince.*Is it patience"),
    ],
)
def test_an_override_that_cannot_be(config_file, overrides, said):
    with pytest.raises(ConfigurationError, match=said):
        Params.from_file(config_file(ON_TOP), json.dumps(overrides))


def test_old_configs_and_overrides(config_file, caplog):
    old = {key: value for key, value in ON_TOP.items() if key != "data_loader"}
    old["iterator"] = {"type": "basic", "batch_size": 5}
    with caplog.at_level("INFO", logger="transformer_elmo"):
        params = Params.from_file(config_file(old), '{"iterator": {"batch_size": 7}}')
    assert params["data_loader"].params == {"batch_size": 7, "shuffle": True}
    assert "iterator" in caplog.text
    params = Params.from_file(config_file(ON_TOP), '{"iterator.batch_size": 7}')
    assert params["data_loader"].params == {"batch_size": 7}


def test_variables_that_are_not_set(config_file, monkeypatch):
    names = ["BIDIRECTIONAL_LM_TRAIN_PATH", "ANOTHER_ONE"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("THIS_ONE_IS_SET", "1")
    path = config_file(
        "{ a: std.extVar('BIDIRECTIONAL_LM_TRAIN_PATH'), b: std.extVar(\"ANOTHER_ONE\"),"
        " c: std.extVar('THIS_ONE_IS_SET') }"
    )
    said = rf"{path} reads(.|\n)*export {names[0]}=(.|\n)*export {names[1]}="
    with pytest.raises(ConfigurationError, match=said) as raised:
        Params.from_file(path)
    assert "THIS_ONE_IS_SET" not in str(raised.value)
    read = Params.from_file(path, ext_vars=dict(zip(names, "xy")))
    assert read.params == {"a": "x", "b": "y", "c": "1"}
    with pytest.raises(ConfigurationError, match="export ANOTHER_ONE="):
        Params.from_file(config_file(ON_TOP), '{"train_data_path": std.extVar("ANOTHER_ONE")}')
    with pytest.raises(ConfigurationError, match=r"STATIC ERROR.*Unknown variable: b"):
        Params.from_file(config_file("{ a: b }"))


def test_a_home_that_can_not_be_written(config_file, tmp_path, monkeypatch):
    """Of a config and of an archive, AllenNLP's own functions read local files all the same."""
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setattr("allennlp.common.file_utils.CACHE_DIRECTORY", str(tmp_path / "home"))
    path = config_file(ON_TOP)
    assert Params.from_file(path)["train_data_path"] == "x"
    assert archival.cached_path(path) == str(path)
    # Nothing is left behind.
    assert sorted(os.listdir(tmp_path)) == ["config.jsonnet", "home"]


@pytest.mark.parametrize(
    "override, key",
    [
        ({"train_data_path": "x"}, "train_data_path"),
        ('{"trainer": {"cuda_device": -1, "num_epochs": 3}}', "trainer"),
        ({"iterator": {"base_iterator": {"max_tokens": 5}}}, "iterator"),
        # No sentence is left out.
        ({"dataset_reader.max_sequence_length": 3}, "dataset_reader.max_sequence_length"),
        ({"dataset_reader": {"base_reader": {"max_sequence_length": 3}}}, "dataset_reader"),
        # The device may be named twice.
        ('{"trainer": {"cuda_device": -1}}', None),
        ({"dataset_reader": {"max_sequence_length": None}}, None),
    ],
)
def test_overrides_that_evaluation_does_not_look_at(lm_archive, tmp_path, override, key):
    text = tmp_path / "text"
    text.write_text("the dog ran\n")
    if key is None:
        metrics = evaluate.evaluate_from_archive(lm_archive, str(text), cmd_overrides=override)
        assert (metrics["num_sentences"], metrics["num_tokens"]) == (1, 4)
        return
    with pytest.raises(ConfigurationError, match=rf"^{key}.* = "):
        evaluate.evaluate_from_archive(lm_archive, str(text), cmd_overrides=override)


def test_overrides_of_an_archive_s_model(lm_archive):
    for part in ({"dropout": 0.3}, {"contextualizer": {"dropout": 0.0}}):
        load_archive(lm_archive, overrides={"model": part})
    with pytest.raises((ConfigurationError, TypeError), match="dropuot"):
        load_archive(lm_archive, overrides={"model": {"dropuot": 0.3}})


@pytest.mark.parametrize(
    "config, expected",
    [
        ('{"a": 1, "b": ["c"], // d\n}', {"a": 1, "b": ["c"]}),
        ("{a: std.extVar('HOME')}", None),
        ("{a: importstr '/etc/hostname'}", None),
        ("std.makeArray(1e9, function(i) i)", None),
        ("[" * 9_999, None),
    ],
)
def test_configs_in_archives_are_read_and_not_evaluated(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(config)
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "config.json", "config.json")
    with archival.extracted_archive(tmp_path / "model.tar.gz") as folder:
        path = os.path.join(folder, "config.json")
        if expected is not None:
            assert Params.from_file(path).params == expected
            return
        with pytest.raises(ConfigurationError, match=r"config\.json of .*tar\.gz is not JSON"):
            Params.from_file(path)
