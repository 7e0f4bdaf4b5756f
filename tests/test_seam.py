import inspect
import io
import json
import os
import pickle
import tarfile

import pytest
import torch
from allennlp.commands import evaluate
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError, check_for_gpu
from allennlp.data import Vocabulary
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer, SingleIdTokenIndexer
from allennlp.data.tokenizers import spacy_tokenizer
from allennlp.models import archival
from allennlp.models.archival import load_archive
from allennlp.nn import util as nn_util
from allennlp.nn.initializers import PretrainedModelInitializer
from allennlp.predictors import Predictor
from allennlp.training import gradient_descent_trainer
from allennlp.training.learning_rate_schedulers import LearningRateScheduler

from transformer_elmo import SimpleLanguageModelingDatasetReader, seam
from transformer_elmo.legacy.predictors import modern_predictor

MODERN = {
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


@pytest.fixture(autouse=True)
def installed():
    seam.install()


@pytest.fixture
def config_file(tmp_path):
    def write(config):
        path = tmp_path / "config.jsonnet"
        path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
        return path

    return write


def test_a_second_installation_changes_nothing():
    before = (Params.from_file.__func__, Vocabulary.set_from_file, archival.extracted_archive)
    seam.install()
    assert before == (
        Params.from_file.__func__,
        Vocabulary.set_from_file,
        archival.extracted_archive,
    )


def test_signatures_are_allennlps():
    # It builds a vocabulary from a config by them.
    assert list(inspect.signature(Vocabulary.from_files).parameters) == [
        "directory",
        "padding_token",
        "oov_token",
    ]
    assert list(inspect.signature(Params.from_file).parameters) == [
        "params_file",
        "params_overrides",
        "ext_vars",
    ]


class TestParams:
    def stock(self, *args):
        return getattr(Params.from_file.__func__, seam._WRAPPED)(Params, *args)

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

    def test_old_configs_and_overrides(self, config_file, caplog):
        old = {key: value for key, value in MODERN.items() if key != "data_loader"}
        old["iterator"] = {"type": "basic", "batch_size": 5}
        with caplog.at_level("INFO", logger="transformer_elmo"):
            params = Params.from_file(config_file(old), '{"iterator": {"batch_size": 7}}')
        assert params["data_loader"].params == {"batch_size": 7, "shuffle": True}
        assert "iterator" in caplog.text
        params = Params.from_file(config_file(MODERN), '{"iterator.batch_size": 7}')
        assert params["data_loader"].params == {"batch_size": 7}

    def test_an_override_that_nothing_looks_at(self, config_file):
        with pytest.raises(ConfigurationError, match="itertor"):
            Params.from_file(config_file(MODERN), '{"itertor": {"batch_size": 3}}')

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
            Params.from_file(config_file(MODERN), '{"train_data_path": std.extVar("ANOTHER_ONE")}')

    def test_other_errors_of_jsonnet_are_its_own(self, config_file):
        with pytest.raises(RuntimeError, match="STATIC ERROR"):
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


class TestVocabulary:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "vocabulary"
        folder.mkdir()
        (folder / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")
        (folder / "labels.txt").write_text("A\nB\n")
        return folder

    def test_good_ones_are_allennlps(self, folder):
        (folder / "tokens.txt").write_text("@@UNKNOWN@@\nthe\nrain", encoding="utf-8")
        vocabulary = Vocabulary.from_files(folder)
        assert vocabulary.get_token_to_index_vocabulary("tokens") == {
            "@@PADDING@@": 0,
            "@@UNKNOWN@@": 1,
            "the": 2,
            "rain": 3,
        }
        built = Vocabulary.from_params(Params({"type": "from_files", "directory": str(folder)}))
        assert built == vocabulary

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (b"<S>\n<UNK>\nthe\n", r"tokens\.txt has no line @@UNKNOWN@@.*Line 2 is <UNK>"),
            (b"the\n", r"tokens\.txt has no line @@UNKNOWN@@"),
            (b"", r"tokens\.txt has no line @@UNKNOWN@@"),
            (b"@@UNKNOWN@@\na\nb\na\n", r"tokens\.txt, line 4: the word 'a' is also on line 2"),
            (b"@@UNKNOWN@@\na\n\nb\n", r"tokens\.txt, line 3: this line is empty"),
            (b"@@UNKNOWN@@\n\n\n", r"tokens\.txt, line 3: the word '' is also on line 2"),
            (b"@@UNKNOWN@@\n@@PADDING@@\n", r"tokens\.txt has the entry for padding"),
            (b"@@UNKNOWN@@\na\n\xff\n", r"tokens\.txt, line 3: a byte that is not UTF-8 \(0xff\)"),
        ],
    )
    def test_bad_ones_are_told_by_file_and_line(self, folder, words, message):
        (folder / "tokens.txt").write_bytes(words)
        with pytest.raises(ConfigurationError, match=message):
            Vocabulary.from_files(folder)

    def test_a_folder_among_the_files(self, folder):
        (folder / "more").mkdir()
        with pytest.raises(ConfigurationError, match="more is a folder"):
            Vocabulary.from_files(folder)

    def test_without_the_file_of_namespaces(self, folder):
        (folder / "non_padded_namespaces.txt").unlink()
        with pytest.raises(ConfigurationError, match=r"non_padded_namespaces\.txt"):
            Vocabulary.from_files(folder)


class TestWeights:
    @pytest.mark.parametrize("new_format", [True, False])
    def test_good_ones_are_allennlps(self, tmp_path, new_format):
        state = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
        path = tmp_path / "weights.th"
        torch.save(state, path, _use_new_zipfile_serialization=new_format)
        read = nn_util.read_state_dict(path)
        assert list(read) == ["a", "b.c"]
        assert torch.equal(read["a"], state["a"])
        assert list(nn_util.read_state_dict(path, strip_prefix="b.", strict=False)) == ["a", "c"]
        assert list(nn_util.read_state_dict(path, ignore=["^a$"])) == ["b.c"]

    @pytest.mark.parametrize("new_format", [True, False])
    def test_no_pickle_is_run(self, tmp_path, new_format):
        torch.save(Hostile(), tmp_path / "w.th", _use_new_zipfile_serialization=new_format)
        with pytest.raises(ConfigurationError, match=r"w\.th holds something other than tensors"):
            nn_util.read_state_dict(tmp_path / "w.th")
        (tmp_path / "plain.th").write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(ConfigurationError, match=r"plain\.th"):
            nn_util.read_state_dict(tmp_path / "plain.th")
        assert not Hostile.was_run

    @pytest.mark.parametrize("content", [b"", b"weights", bytes(5000)])
    def test_damaged_ones_are_told_by_name(self, tmp_path, content):
        (tmp_path / "weights.th").write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"weights\.th"):
            nn_util.read_state_dict(tmp_path / "weights.th")

    def test_what_holds_no_names(self, tmp_path):
        torch.save([torch.ones(1)], tmp_path / "weights.th")
        with pytest.raises(ConfigurationError, match="holds a list"):
            nn_util.read_state_dict(tmp_path / "weights.th")

    def test_torch_can_be_made_to_load_no_pickles(self, tmp_path):
        """What torch below 2.6 needs, where `weights_only=False` is what callers get by default."""
        torch.save(Hostile(), tmp_path / "w.th")
        with pytest.raises(pickle.UnpicklingError), seam._weights_only():
            torch.load(tmp_path / "w.th", weights_only=False)
        assert not Hostile.was_run
        assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


class Hostile:
    was_run = False

    def __reduce__(self):
        return (_run, ())


def _run():
    Hostile.was_run = True
    return {}


class TestArchives:
    @pytest.fixture
    def write(self, tmp_path):
        def write(config=MODERN, leave_out=()):
            vocabulary = Vocabulary(tokens_to_add={"tokens": ["a"], "labels": ["X", "Y"]})
            folder = tmp_path / "vocabulary"
            vocabulary.save_to_files(str(folder))
            weights = io.BytesIO()
            shapes = {
                "text_field_embedder.token_embedder_tokens.weight": (3, 3),
                "encoder._module.weight_ih_l0": (8, 3),
                "encoder._module.weight_hh_l0": (8, 2),
                "encoder._module.bias_ih_l0": (8,),
                "encoder._module.bias_hh_l0": (8,),
                "tag_projection_layer._module.weight": (2, 2),
                "tag_projection_layer._module.bias": (2,),
            }
            torch.save({name: torch.rand(shape) for name, shape in shapes.items()}, weights)
            contents = {
                "config.json": json.dumps(config).encode(),
                "weights.th": weights.getvalue(),
            }
            for file in sorted(folder.iterdir()):
                if not file.name.startswith("."):
                    contents[f"vocabulary/{file.name}"] = file.read_bytes()
            path = tmp_path / "model.tar.gz"
            with tarfile.open(path, "w:gz") as tar:
                for name, content in contents.items():
                    if not any(name.startswith(start) for start in leave_out):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
            return path

        return write

    def test_a_good_one(self, write):
        model = load_archive(write()).model
        assert model.vocab.get_token_index("Y", "labels") == 1

    def test_on_a_gpu_that_is_not_there(self, write):
        number = torch.cuda.device_count()
        with pytest.raises(ConfigurationError, match=f"GPU {number} .*--cuda-device"):
            load_archive(write(), cuda_device=number)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("devices", [0, [0, 1], [torch.device("cpu"), 1]])
    def test_training_on_a_gpu_that_is_not_there(self, devices):
        with pytest.raises(ConfigurationError, match=r"GPU [01].*trainer\.cuda_device"):
            check_for_gpu(devices)
        check_for_gpu([-1, torch.device("cpu")])

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            ("config.json", r"model\.tar\.gz has no config\.json"),
            ("weights.th", r"model\.tar\.gz has no weights"),
            ("vocabulary", r"model\.tar\.gz has no folder vocabulary"),
            ("vocabulary/non", r"model\.tar\.gz has no non_padded_namespaces\.txt"),
        ],
    )
    def test_one_that_lacks_a_part(self, write, missing, message):
        with pytest.raises(ConfigurationError, match=message):
            load_archive(write(leave_out=[missing]))

    @pytest.mark.parametrize("name", ["subprocess.Popen", "os.system", "builtins.exec"])
    def test_a_config_calls_no_function(self, write, name):
        model = {**MODERN["model"], "encoder": {"type": name, "args": "true"}}
        with pytest.raises(ConfigurationError, match=f"{name}.*Don't trust"):
            load_archive(write({**MODERN, "model": model}))

    def test_a_config_may_name_classes_by_their_modules(self, write):
        name = "allennlp.models.simple_tagger.SimpleTagger"
        archive = load_archive(write({**MODERN, "model": {**MODERN["model"], "type": name}}))
        assert type(archive.model).__name__ == "SimpleTagger"

    def test_a_vocabulary_of_duplicates_opens_as_it_was_trained(self, write, tmp_path, caplog):
        path = write()
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
        labels = tmp_path / "unpacked" / "vocabulary" / "labels.txt"
        labels.write_text("X\nY\nX\n")
        with tarfile.open(path, "w:gz") as tar:
            for file in (tmp_path / "unpacked").iterdir():
                tar.add(file, arcname=file.name)
        assert load_archive(path).model.vocab.get_vocab_size("labels") == 2
        assert "the word 'X' is also on line 1" in caplog.text

    def test_the_pretrained_initializer_reads_an_archive(self, write):
        initializer = PretrainedModelInitializer(str(write(leave_out=["config.json"])))
        assert "tag_projection_layer._module.bias" in initializer.weights


class TestSpacy:
    @pytest.fixture(autouse=True)
    def no_models(self, monkeypatch):
        def missing(*options):
            raise SystemExit("no network\nat all")

        monkeypatch.setattr(seam, "LOADED_SPACY_MODELS", {})
        self.get = lambda *options: seam._get_spacy_model(missing, *options)

    def test_words_take_no_model(self, caplog):
        words = [str(token) for token in self.get("en_core_web_sm", False)("Don't! It's 3 p.m.")]
        assert words == ["Do", "n't", "!", "It", "'s", "3", "p.m."]
        assert "en_core_web_sm is not installed" in caplog.text
        assert "no network)" in caplog.text

    @pytest.mark.parametrize(
        "options",
        [("en_core_web_sm",), ("en_core_web_sm", False, True), ("xyz_core_news_sm", False)],
    )
    def test_tags_do(self, options):
        with pytest.raises(ConfigurationError, match=f"python -m spacy download {options[0]}"):
            self.get(*options)

    def test_a_reader_of_words_asks_for_none(self, monkeypatch):
        asked = []
        monkeypatch.setattr(
            spacy_tokenizer, "get_spacy_model", lambda *options: asked.append(options)
        )
        tags = SingleIdTokenIndexer(feature_name="tag_")
        for indexers in (None, {"a": ELMoTokenCharactersIndexer()}, {"a": tags}):
            SimpleLanguageModelingDatasetReader(token_indexers=indexers)
        assert [options[1] for options in asked] == [False, False, True]


def test_predictors_by_their_old_names(lm_archive, monkeypatch):
    monkeypatch.setattr(spacy_tokenizer, "get_spacy_model", lambda *options: None)
    predictor = Predictor.from_path(lm_archive, "sentence-tagger")
    assert type(predictor).__name__ == "SentenceTaggerPredictor"
    assert modern_predictor("machine-comprehension", ["reading_comprehension"]) == (
        "reading_comprehension"
    )
    for name, known in (("my-own", ["my-own", "my_own"]), ("gone-now", ["other"])):
        assert modern_predictor(name, known) == name


class TestTraining:
    @pytest.mark.parametrize("limit", [0.1, 1e6])
    def test_the_norm_of_sparse_gradients_is_that_of_dense_ones(self, limit):
        parameters = {}
        for sparse in (True, False):
            torch.manual_seed(1)
            layers = [torch.nn.Embedding(5, 3, sparse=sparse), torch.nn.Linear(3, 2)]
            torch.nn.Sequential(*layers)(torch.tensor([1, 3, 1])).pow(2).sum().backward()
            parameters[sparse] = [p for layer in layers for p in layer.parameters()]
        norms = [
            gradient_descent_trainer.clip_grad_norm_(parameters[sparse], limit)
            for sparse in (True, False)
        ]
        assert torch.isclose(*norms)
        for sparse, dense in zip(parameters[True], parameters[False]):
            assert torch.allclose(sparse.grad.to_dense(), dense.grad)

    def test_the_scheduler_that_waits_for_a_plateau(self):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        options = {"type": "reduce_on_plateau", "factor": 0.5, "patience": 0, "mode": "max"}
        scheduler = LearningRateScheduler.from_params(Params(options), optimizer=optimizer)
        for metric in (1.0, 0.5, 2.0, 1.0):
            scheduler.step(metric)
        assert optimizer.param_groups[0]["lr"] == 0.25


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
        with pytest.raises(ConfigurationError, match=r"config\.json of .*model\.tar\.gz can't be"):
            self.opened(archive(config))

    def test_they_may_have_comments_and_what_they_are_given(self, archive):
        config = "{a: 1, b: std.extVar('GIVEN'),} // by hand"
        assert self.opened(archive(config), ext_vars={"GIVEN": "c"}) == {"a": 1, "b": "c"}
