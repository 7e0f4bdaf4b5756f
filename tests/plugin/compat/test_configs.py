import copy
import inspect
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path
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

ROOT = Path(__file__).resolve().parents[3]

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
    "trainer": {"optimizer": "adam"},
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


def test_a_second_installation_changes_nothing():
    before = vars(Params)["from_file"].__func__, archival.extracted_archive, patches.patches()
    configs.install()
    assert before == (
        vars(Params)["from_file"].__func__,
        archival.extracted_archive,
        patches.patches(),
    )


def test_all_that_is_changed_is_listed_with_its_reason():
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


def test_names_of_allennlp_are_its_own():
    for base, name in (
        (Tokenizer, "spacy"),
        (Vocabulary, "from_files"),
        (Predictor, "sentence_tagger"),
    ):
        assert base.by_name(name).__module__.startswith("allennlp."), name
        ours = base.resolve_class_name(f"lm_{name}")[0]
        assert ours.__module__.startswith("transformer_elmo."), name


def test_what_allennlp_lacks_is_told(caplog):
    patches.wrap(archival, "no_such_function", print, "to see what happens")
    assert "AllenNLP has no allennlp.models.archival.no_such_function" in caplog.text


def test_another_version_is_told(monkeypatch, caplog):
    patches.check_version()
    assert not caplog.text
    monkeypatch.setattr("allennlp.version.VERSION", "3.0.0")
    patches.check_version()
    assert "made for AllenNLP 2.10.1, and this is 3.0.0" in caplog.text


def test_signatures_are_allennlps():
    assert list(inspect.signature(Params.from_file).parameters) == [
        "params_file",
        "params_overrides",
        "ext_vars",
    ]


class TestParams:
    def stock(self, *args):
        return getattr(vars(Params)["from_file"].__func__, _WRAPPED)(Params, *args)

    @pytest.mark.parametrize(
        "overrides",
        [
            "",
            "{}",
            '{"trainer.optimizer": "sgd"}',
            {"trainer": {"num_epochs": 2}},
            '{"data_loader": {"batch_size": 3}, "evaluation": {"type": "simple"}}',
        ],
    )
    def test_modern_configs_and_overrides_are_allennlps(self, config_file, overrides):
        path = config_file(MODERN)
        ours, stock = Params.from_file(path, overrides), self.stock(path, overrides)
        assert type(ours) is Params
        assert json.dumps(ours.params) == json.dumps(stock.params)

    def test_files_that_are_no_experiments_are_allennlps(self, config_file):
        path = config_file({"iterator": 3, "trainer": {"shuffle": True}})
        overrides = '{"anything": 3}'
        assert Params.from_file(path, overrides).params == self.stock(path, overrides).params

    def test_what_allennlp_refuses_it_refuses_still(self, config_file):
        with pytest.raises(ValueError, match="unused keys"):
            Params.from_file(config_file(MODERN), '{"trainer.a.b": 3}')

    @pytest.mark.parametrize(
        "overrides", ['{"model": 3}', '{"trainer": []}', '{"dataset_reader": null}', '{"": 3}']
    )
    def test_an_override_of_another_type(self, config_file, overrides):
        with pytest.raises(ConfigurationError, match=" = "):
            Params.from_file(config_file(ON_TOP), overrides)

    def test_an_override_without_a_place_is_one_clear_error(self, config_file):
        with pytest.raises(ConfigurationError, match=r"unused keys.*: trainer\.a\.b"):
            Params.from_file(config_file(ON_TOP), '{"trainer.a.b": 3}')

    def test_names_that_users_registered_are_theirs(self, config_file):
        model = {**ON_TOP["model"], "encoder": {"type": "character-encoding"}}
        path = config_file({**ON_TOP, "model": model})
        assert Params.from_file(path)["model"]["encoder"]["type"] == "character_encoding"
        Seq2SeqEncoder.register("character-encoding")(PassThroughEncoder)
        try:
            assert Params.from_file(path)["model"]["encoder"]["type"] == "character-encoding"
        finally:
            del Registrable._registry[Seq2SeqEncoder]["character-encoding"]

    @pytest.mark.parametrize("key", ["pateince", "checkpointr", "callbcks"])
    def test_misspelled_keys_of_the_trainer(self, config_file, key):
        right = {"pateince": "patience", "checkpointr": "checkpointer", "callbcks": "callbacks"}
        for config, overrides in (
            ({**ON_TOP, "trainer": {**ON_TOP["trainer"], key: 3}}, ""),
            (ON_TOP, json.dumps({f"trainer.{key}": 3})),
            (ON_TOP, json.dumps({"trainer": {key: 3}})),
        ):
            with pytest.raises(ConfigurationError, match=f"trainer.{key}.*Is it {right[key]}"):
                Params.from_file(config_file(config), overrides)

    def test_old_configs_and_overrides(self, config_file, caplog):
        old = {key: value for key, value in ON_TOP.items() if key != "data_loader"}
        old["iterator"] = {"type": "basic", "batch_size": 5}
        with caplog.at_level("INFO", logger="transformer_elmo"):
            params = Params.from_file(config_file(old), '{"iterator": {"batch_size": 7}}')
        assert params["data_loader"].params == {"batch_size": 7, "shuffle": True}
        assert "iterator" in caplog.text
        params = Params.from_file(config_file(ON_TOP), '{"iterator.batch_size": 7}')
        assert params["data_loader"].params == {"batch_size": 7}

    def test_an_override_that_nothing_looks_at(self, config_file):
        with pytest.raises(ConfigurationError, match="itertor"):
            Params.from_file(config_file(ON_TOP), '{"itertor": {"batch_size": 3}}')

    def test_variables_that_are_not_set(self, config_file, monkeypatch):
        monkeypatch.delenv("BIDIRECTIONAL_LM_TRAIN_PATH", raising=False)
        monkeypatch.delenv("ANOTHER_ONE", raising=False)
        monkeypatch.setenv("THIS_ONE_IS_SET", "1")
        path = config_file(
            "{ a: std.extVar('BIDIRECTIONAL_LM_TRAIN_PATH'), b: std.extVar(\"ANOTHER_ONE\"),"
            " c: std.extVar('THIS_ONE_IS_SET') }"
        )
        with pytest.raises(ConfigurationError) as raised:
            Params.from_file(path)
        message = str(raised.value)
        assert str(path) in message
        assert "BIDIRECTIONAL_LM_TRAIN_PATH: the training text" in message
        assert "export BIDIRECTIONAL_LM_TRAIN_PATH=" in message
        assert "export ANOTHER_ONE=" in message
        assert "THIS_ONE_IS_SET" not in message
        variables = {"BIDIRECTIONAL_LM_TRAIN_PATH": "x", "ANOTHER_ONE": "y"}
        assert Params.from_file(path, ext_vars=variables).params == {"a": "x", "b": "y", "c": "1"}

    def test_variables_of_overrides(self, config_file, monkeypatch):
        monkeypatch.delenv("ANOTHER_ONE", raising=False)
        with pytest.raises(ConfigurationError, match="export ANOTHER_ONE="):
            Params.from_file(config_file(ON_TOP), '{"train_data_path": std.extVar("ANOTHER_ONE")}')

    def test_other_errors_of_jsonnet_are_shown(self, config_file):
        with pytest.raises(ConfigurationError, match=r"STATIC ERROR.*Unknown variable: b"):
            Params.from_file(config_file("{ a: b }"))


class TestEvaluation:
    @pytest.mark.parametrize(
        "override",
        [
            {"trainer.num_epochs": 3},
            {"trainer": {"cuda_device": -1, "num_epochs": 3}},
            {"train_data_path": "x"},
            {"distributed": {"cuda_devices": [-1, -1]}},
        ],
    )
    @pytest.mark.parametrize("written", [dict, json.dumps])
    def test_an_override_that_it_does_not_look_at(self, lm_archive, tmp_path, override, written):
        (tmp_path / "text").write_text("the dog ran\n")
        with pytest.raises(ConfigurationError, match=f"^{next(iter(override))} = "):
            evaluate.evaluate_from_archive(
                lm_archive, str(tmp_path / "text"), cmd_overrides=written(override)
            )

    @pytest.mark.parametrize(
        "override",
        [
            {"dataset_reader.max_sequence_length": 3},
            {"dataset_reader": {"base_reader": {"max_sequence_length": 3}}},
        ],
    )
    def test_no_sentence_is_left_out(self, lm_archive, tmp_path, override):
        (tmp_path / "text").write_text("the dog ran\n")
        with pytest.raises(ConfigurationError, match=r"^dataset_reader\.max_sequence_length = 3"):
            evaluate.evaluate_from_archive(
                lm_archive, str(tmp_path / "text"), cmd_overrides=override
            )
        without = {"dataset_reader": {"max_sequence_length": None}}
        metrics = evaluate.evaluate_from_archive(
            lm_archive, str(tmp_path / "text"), cmd_overrides=without
        )
        assert metrics["num_sentences"] == 1

    def test_the_device_may_be_named_twice(self, lm_archive, tmp_path):
        (tmp_path / "text").write_text("the dog ran\n")
        metrics = evaluate.evaluate_from_archive(
            lm_archive, str(tmp_path / "text"), cmd_overrides='{"trainer": {"cuda_device": -1}}'
        )
        assert metrics["num_tokens"] == 4

    def test_a_part_of_the_model_section(self, lm_archive, tmp_path):
        for part in ({"dropout": 0.3}, {"contextualizer": {"dropout": 0.0}}):
            load_archive(lm_archive, overrides={"model": part})
        with pytest.raises((ConfigurationError, TypeError), match="dropuot"):
            load_archive(lm_archive, overrides={"model": {"dropuot": 0.3}})


class TestArchivedConfigs:
    @pytest.fixture
    def archive(self, tmp_path):
        def write(config):
            path = tmp_path / "model.tar.gz"
            with tarfile.open(path, "w:gz") as tar:
                member = tarfile.TarInfo("config.json")
                member.size = len(config)
                tar.addfile(member, io.BytesIO(config.encode()))
            return path

        return write

    def opened(self, path, **options):
        with archival.extracted_archive(path) as folder:
            return Params.from_file(os.path.join(folder, "config.json"), **options).params

    @pytest.mark.parametrize(
        "config", ["{a: std.extVar('HOME')}", "{a: importstr '/etc/hostname'}", "{a: ", "[" * 9_999]
    )
    def test_they_see_no_other_files_and_no_variables(self, archive, config, monkeypatch):
        monkeypatch.setenv("HOME", "a secret")
        with pytest.raises(ConfigurationError, match=r"config\.json of .*tar\.gz is not JSON"):
            self.opened(archive(config))

    @pytest.mark.parametrize(
        "config",
        ["local f(x) = f(x + 1); f(0)", "std.makeArray(1e9, function(i) i)", '{"a": 1 + 1}'],
    )
    def test_nothing_in_them_is_evaluated(self, archive, config):
        with pytest.raises(ConfigurationError, match="is not JSON"):
            self.opened(archive(config))

    def test_they_are_read_as_they_stand(self, archive):
        assert self.opened(archive('{"a": 1, "b": ["c"]}')) == {"a": 1, "b": ["c"]}

    def test_comments_and_commas_at_the_end(self, archive):
        """As an archive of allennlp-models' own has them; strings keep what looks like them."""
        config = r"""{ // "a": 0,
            "a": "s3://b,}", /* "}, */ "b": ["\"//,]", 1 # one
            , /* two */ ], "c": "/*", "d": {"e": "#",},
        }"""
        expected = {"a": "s3://b,}", "b": ['"//,]', 1], "c": "/*", "d": {"e": "#"}}
        assert self.opened(archive(config)) == expected


@pytest.mark.slow
def test_a_home_that_can_not_be_written(tmp_path):
    """Of a config and of an archive, AllenNLP's own functions read local files all the same."""
    (tmp_path / "config.json").write_text(json.dumps({**ON_TOP, "train_data_path": "x"}))
    program = (
        "import transformer_elmo; from allennlp.common import Params; "
        "from allennlp.models.archival import cached_path; "
        "print(Params.from_file('config.json')['train_data_path'], cached_path('config.json'))"
    )
    (tmp_path / "home").write_text("no folder")
    seed = str(random.randrange(2**32))
    print("PYTHONHASHSEED", seed)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={
            **{k: v for k, v in os.environ.items() if k != "ALLENNLP_CACHE_ROOT"},
            **{"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)},
            **{"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["x", "config.json"]
    # Nothing is left behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "home"]
