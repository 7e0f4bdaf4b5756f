"""What `Params.from_file` makes of configs and overrides, and what of AllenNLP is changed."""

import copy
import io
import json
import os
import tarfile
from typing import Any, Dict

import pytest
from allennlp.commands import evaluate
from allennlp.common import Params, Registrable
from allennlp.data import Tokenizer, Vocabulary
from allennlp.models import archival
from allennlp.models.archival import load_archive
from allennlp.modules.seq2seq_encoders import PassThroughEncoder, Seq2SeqEncoder
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
    assert len(targets) == len(set(targets)) <= 15
    assert all(patch.reason for patch in patches.patches())
    for target in (
        "allennlp.common.params.Params.from_file",
        "allennlp.commands.evaluate.evaluate_from_archive",
        "allennlp.models.archival.extracted_archive",
        "allennlp.models.archival._load_model",
        "allennlp.nn.util.read_state_dict",
    ):
        assert target in targets
    assert not any("Vocabulary" in target for target in targets)


def test_names_of_allennlp_are_its_own():
    for base, name in (
        (Tokenizer, "spacy"),
        (Vocabulary, "from_files"),
        (Predictor, "sentence_tagger"),
    ):
        assert base.by_name(name).__module__.startswith("allennlp."), name
        ours = base.resolve_class_name(f"lm_{name}")[0]
        assert ours.__module__.startswith("transformer_elmo."), name


class TestParams:
    @pytest.mark.parametrize(
        "overrides",
        ["", '{"trainer.optimizer": "sgd"}', {"trainer": {"num_epochs": 2}, "evaluation": {}}],
    )
    @pytest.mark.parametrize("config", [MODERN, {"iterator": 3, "trainer": {"shuffle": True}}])
    def test_other_configs_and_overrides_are_allennlps(self, config_file, config, overrides):
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
            ({"dataset_reader": None}, " = "),
            ({"": 3}, " = "),
            ({"trainer.a.b": 3}, r"unused keys.*: trainer\.a\.b"),
            ({"itertor": {"batch_size": 3}}, "itertor"),
            ({"trainer.pateince": 3}, r"trainer\.pateince.*Is it patience"),
            ({"trainer": {"callbcks": 3}}, r"trainer\.callbcks.*Is it callbacks"),
        ],
    )
    def test_an_override_that_cannot_be(self, config_file, overrides, said):
        with pytest.raises(ConfigurationError, match=said):
            Params.from_file(config_file(ON_TOP), json.dumps(overrides))
        if "trainer" in overrides:
            with pytest.raises(ConfigurationError, match=said):
                Params.from_file(config_file({**ON_TOP, **overrides}))

    def test_names_that_users_registered_are_theirs(self, config_file):
        model = {**ON_TOP["model"], "encoder": {"type": "character-encoding"}}
        path = config_file({**ON_TOP, "model": model})
        assert Params.from_file(path)["model"]["encoder"]["type"] == "character_encoding"
        Seq2SeqEncoder.register("character-encoding")(PassThroughEncoder)
        try:
            assert Params.from_file(path)["model"]["encoder"]["type"] == "character-encoding"
        finally:
            del Registrable._registry[Seq2SeqEncoder]["character-encoding"]

    def test_old_configs_and_overrides(self, config_file, caplog):
        old = {key: value for key, value in ON_TOP.items() if key != "data_loader"}
        old["iterator"] = {"type": "basic", "batch_size": 5}
        with caplog.at_level("INFO", logger="transformer_elmo"):
            params = Params.from_file(config_file(old), '{"iterator": {"batch_size": 7}}')
        assert params["data_loader"].params == {"batch_size": 7, "shuffle": True}
        assert "iterator" in caplog.text
        params = Params.from_file(config_file(ON_TOP), '{"iterator.batch_size": 7}')
        assert params["data_loader"].params == {"batch_size": 7}

    def test_variables_that_are_not_set(self, config_file, monkeypatch):
        monkeypatch.delenv("BIDIRECTIONAL_LM_TRAIN_PATH", raising=False)
        monkeypatch.setenv("THIS_ONE_IS_SET", "1")
        path = config_file(
            "{ a: std.extVar('BIDIRECTIONAL_LM_TRAIN_PATH'), b: std.extVar(\"ANOTHER_ONE\"),"
            " c: std.extVar('THIS_ONE_IS_SET') }"
        )
        with pytest.raises(ConfigurationError, match="BIDIRECTIONAL_LM_TRAIN_PATH: the") as raised:
            Params.from_file(path)
        message = str(raised.value)
        assert str(path) in message and "THIS_ONE_IS_SET" not in message
        for name in ("BIDIRECTIONAL_LM_TRAIN_PATH", "ANOTHER_ONE"):
            assert f"export {name}=" in message
        variables = {"BIDIRECTIONAL_LM_TRAIN_PATH": "x", "ANOTHER_ONE": "y"}
        assert Params.from_file(path, ext_vars=variables).params == {"a": "x", "b": "y", "c": "1"}
        with pytest.raises(ConfigurationError, match=r"STATIC ERROR.*Unknown variable: b"):
            Params.from_file(config_file("{ a: b }"))
        with pytest.raises(ConfigurationError, match="export ANOTHER_ONE="):
            Params.from_file(config_file(ON_TOP), '{"train_data_path": std.extVar("ANOTHER_ONE")}')

    def test_a_home_that_can_not_be_written(self, config_file, tmp_path, monkeypatch):
        """Of a config and of an archive, AllenNLP's own functions read local files all the same."""
        (tmp_path / "home").write_text("no folder")
        monkeypatch.setattr("allennlp.common.file_utils.CACHE_DIRECTORY", str(tmp_path / "home"))
        path = config_file(ON_TOP)
        assert Params.from_file(path)["train_data_path"] == "x"
        assert archival.cached_path(path) == str(path)
        # Nothing is left behind.
        assert sorted(os.listdir(tmp_path)) == ["config.jsonnet", "home"]


class TestEvaluation:
    @pytest.fixture
    def evaluated(self, lm_archive, tmp_path):
        (tmp_path / "text").write_text("the dog ran\n")

        def evaluated(override):
            text = str(tmp_path / "text")
            return evaluate.evaluate_from_archive(lm_archive, text, cmd_overrides=override)

        return evaluated

    @pytest.mark.parametrize(
        "override",
        [
            {"trainer.num_epochs": 3},
            '{"trainer": {"cuda_device": -1, "num_epochs": 3}}',
            {"train_data_path": "x"},
            {"distributed": {"cuda_devices": [-1, -1]}},
            {"iterator": {"base_iterator": {"max_tokens": 5}}},
            # No sentence is left out.
            {"dataset_reader.max_sequence_length": 3},
            {"dataset_reader": {"base_reader": {"max_sequence_length": 3}}},
        ],
    )
    def test_an_override_that_it_does_not_look_at(self, evaluated, override):
        key = next(iter(json.loads(override) if isinstance(override, str) else override))
        with pytest.raises(ConfigurationError, match=rf"^{key}.* = "):
            evaluated(override)

    @pytest.mark.parametrize(
        "override",
        [
            {"dataset_reader": {"max_sequence_length": None}},
            # The device may be named twice.
            '{"trainer": {"cuda_device": -1}}',
        ],
    )
    def test_one_without_an_effect(self, evaluated, override):
        metrics = evaluated(override)
        assert (metrics["num_sentences"], metrics["num_tokens"]) == (1, 4)

    def test_a_part_of_the_model_section(self, lm_archive):
        for part in ({"dropout": 0.3}, {"contextualizer": {"dropout": 0.0}}):
            load_archive(lm_archive, overrides={"model": part})
        with pytest.raises((ConfigurationError, TypeError), match="dropuot"):
            load_archive(lm_archive, overrides={"model": {"dropuot": 0.3}})


class TestArchivedConfigs:
    def opened(self, tmp_path, config):
        path = tmp_path / "model.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            member = tarfile.TarInfo("config.json")
            member.size = len(config)
            tar.addfile(member, io.BytesIO(config.encode()))
        with archival.extracted_archive(path) as folder:
            return Params.from_file(os.path.join(folder, "config.json")).params

    @pytest.mark.parametrize(
        "config",
        [
            "{a: std.extVar('HOME')}",
            "{a: importstr '/etc/hostname'}",
            "std.makeArray(1e9, function(i) i)",
            '{"a": 1 + 1}',
            "[" * 9_999,
        ],
    )
    def test_nothing_in_them_is_evaluated(self, tmp_path, config):
        with pytest.raises(ConfigurationError, match=r"config\.json of .*tar\.gz is not JSON"):
            self.opened(tmp_path, config)

    def test_they_are_read_as_they_stand(self, tmp_path):
        assert self.opened(tmp_path, '{"a": 1, "b": ["c"], // d\n}') == {"a": 1, "b": ["c"]}
