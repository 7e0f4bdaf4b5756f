import pytest

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy import apply_overrides, modernize, shared_with_validation

DOCUMENTED = {"iterator": {"base_iterator": {"maximum_samples_per_batch": ["num_tokens", 500]}}}
READER = {"type": "simple_language_modeling", "tokenizer": {"type": "just_spaces"}}
LM = {"dataset_reader": READER, "model": {"type": "bidirectional-language-model"}, "trainer": {}}
TAGGER = {
    "dataset_reader": {"type": "sequence_tagging"},
    "model": {"type": "simple_tagger"},
    "trainer": {},
}


def over(config, overrides):
    return apply_overrides(config, overrides)[0]


class TestTheDocumentedLine:
    @pytest.mark.parametrize("dialect", ["0.7", "0.8", "0.9"])
    def test_over_old_configs(self, old_configs, dialect):
        modern = over(old_configs[dialect], DOCUMENTED)
        assert modern["data_loader"]["max_tokens"] == 500
        # Evaluation takes this one if there is one.
        assert modern.get("validation_data_loader", {"max_tokens": 500})["max_tokens"] == 500

    @pytest.mark.parametrize("dialect", ["0.7", "0.8", "0.9"])
    def test_over_what_training_wrote(self, old_configs, dialect):
        config, _ = modernize(old_configs[dialect])
        modern = over(config, DOCUMENTED)
        assert modern["data_loader"] == {**config["data_loader"], "max_tokens": 500}
        if "validation_data_loader" in config:
            assert modern["validation_data_loader"] == {
                **config["validation_data_loader"],
                "max_tokens": 500,
            }

    def test_over_a_loader_of_ours_with_all_its_keys(self):
        loader = {
            "type": "language_modeling",
            "max_tokens": 2000,
            "distinct_words": True,
            "seed": 3,
            "shuffle": False,
        }
        modern = over({**LM, "data_loader": loader}, DOCUMENTED)
        assert modern["data_loader"] == {**loader, "max_tokens": 500}

    @pytest.mark.parametrize(
        "loader",
        [
            {"batch_size": 16, "shuffle": True},
            {"type": "multiprocess", "batch_sampler": {"type": "bucket", "batch_size": 16}},
        ],
    )
    def test_over_a_language_model_of_allennlp_models(self, loader):
        modern = over({**LM, "data_loader": loader}, DOCUMENTED)
        assert modern["data_loader"] == {
            "type": "language_modeling",
            "max_tokens": 500,
            "batch_size": 16,
        }

    def test_over_another_model(self):
        loader = {"batch_sampler": {"type": "bucket", "batch_size": 16, "sorting_keys": ["tokens"]}}
        modern = over({**TAGGER, "data_loader": loader}, DOCUMENTED)
        assert modern["data_loader"] == {
            "batch_sampler": {
                "type": "max_tokens_sampler",
                "max_tokens": 500,
                "sorting_keys": ["tokens"],
            }
        }

    def test_keys_beside_it(self, old_configs):
        overrides = {
            "iterator": {
                "base_iterator": {
                    "maximum_samples_per_batch": ["num_tokens", 500],
                    "batch_size": 7,
                    "max_instances_in_memory": 99,
                }
            }
        }
        expected = {"max_tokens": 500, "batch_size": 7, "max_instances_in_memory": 99}
        for config in (old_configs["0.8"], modernize(old_configs["0.8"])[0]):
            loader = over(config, overrides)["data_loader"]
            assert loader == {"type": "language_modeling", **expected}


class TestSpellings:
    @pytest.mark.parametrize("dialect", ["0.7", "0.8", "0.9"])
    @pytest.mark.parametrize(
        "overrides",
        [
            {"iterator.batch_size": 7},
            {"iterator": {"batch_size": 7}},
            {"iterator.base_iterator.batch_size": 7},
            {"iterator": {"type": "basic", "batch_size": 7}},
            {"iterator": {"type": "multiprocess", "base_iterator": {"batch_size": 7}}},
        ],
    )
    def test_with_and_without_the_wrapper(self, old_configs, dialect, overrides):
        for config in (old_configs[dialect], modernize(old_configs[dialect])[0]):
            modern = over(config, overrides)
            assert modern["data_loader"]["batch_size"] == 7

    def test_modern_ones_do_as_allennlp_2_does(self, old_configs):
        for config in (old_configs["0.8"], modernize(old_configs["0.8"])[0]):
            modern = over(config, {"data_loader.max_tokens": 77})
            assert modern["data_loader"]["max_tokens"] == 77
            assert modern["data_loader"]["batch_size"] == 64
            whole = {"batch_size": 3}
            assert over(config, {"data_loader": whole})["data_loader"] == whole

    def test_a_modern_one_that_could_only_fail_goes_over_the_loader(self, old_configs):
        for config in (old_configs["0.8"], modernize(old_configs["0.8"])[0]):
            loader = over(config, {"data_loader": {"max_tokens": 77}})["data_loader"]
            assert loader["type"] == "language_modeling"
            assert loader["max_tokens"] == 77

    def test_old_configs_merge_deeply(self, old_configs):
        config = old_configs["0.8"]
        modern = over(config, {"trainer": {"cuda_device": -1}, "model": {"dropout": 0.3}})
        assert modern["trainer"]["cuda_device"] == -1
        assert modern["trainer"]["optimizer"] == config["trainer"]["optimizer"]
        assert "distributed" not in modern
        assert modern["model"]["dropout"] == 0.3
        assert modern["model"]["contextualizer"] == config["model"]["contextualizer"]

    def test_modern_configs_do_not(self, old_configs):
        config, _ = modernize(old_configs["0.8"])
        assert over(config, {"trainer": {"num_epochs": 3}})["trainer"] == {"num_epochs": 3}

    def test_a_section_without_a_type_could_only_fail_and_goes_over_the_model(self, old_configs):
        config, _ = modernize(old_configs["0.8"])
        model = over(config, {"model": {"dropout": 0.3, "contextualizer": {"dropout": 0.2}}})[
            "model"
        ]
        contextualizer = {**config["model"]["contextualizer"], "dropout": 0.2}
        assert model == {**config["model"], "dropout": 0.3, "contextualizer": contextualizer}
        reader = over(config, {"dataset_reader": {"max_sequence_length": 9}})["dataset_reader"]
        assert reader == {**config["dataset_reader"], "max_sequence_length": 9}
        for whole in ({"type": "simple_tagger"}, {"_pretrained": {"archive_file": "x"}}):
            assert over(config, {"model": whole})["model"] == whole

    def test_of_the_reader_within_the_wrapper(self, old_configs):
        reader = over(old_configs["0.8"], {"dataset_reader": {"max_sequence_length": 9}})[
            "dataset_reader"
        ]
        assert reader["max_sequence_length"] == 9
        assert reader["start_tokens"] == ["<S>"]

    @pytest.mark.parametrize("base", [{"max_sequence_length": 9}, {}])
    def test_of_the_wrapper_of_the_reader(self, old_configs, base):
        override = {"type": "multiprocess", "base_reader": base}
        reader = over(old_configs["0.8"], {"dataset_reader": override})["dataset_reader"]
        assert reader == {**READER, **reader, "max_sequence_length": 9 if base else 60}

    @pytest.mark.parametrize("path", ["", "token_embedders."])
    def test_of_token_embedders_with_and_without_the_key_around_them(self, old_configs, path):
        # The tagger's has none, the language model's has one.
        modern = over(
            old_configs["tagger"], {f"model.text_field_embedder.{path}elmo.archive_file": "moved"}
        )
        embedders = modern["model"]["text_field_embedder"]["token_embedders"]
        assert set(embedders) == {"tokens", "characters", "elmo"}
        assert embedders["elmo"]["archive_file"] == "moved"
        assert embedders["elmo"]["remove_bos_eos"] is True
        modern = over(
            old_configs["0.8"], {f"model.text_field_embedder.{path}token_characters.dropout": 0.5}
        )
        embedder = modern["model"]["text_field_embedder"]
        assert set(embedder) == {"token_embedders"}
        assert embedder["token_embedders"]["token_characters"]["dropout"] == 0.5
        assert embedder["token_embedders"]["token_characters"]["type"] == "character_encoding"

    def test_a_tokenizer_in_place_of_one_that_is_gone(self, old_configs):
        config = old_configs["0.9"]
        config["dataset_reader"]["tokenizer"]["word_splitter"] = {"type": "nltk"}
        modern = over(config, {"dataset_reader.tokenizer": {"type": "just_spaces"}})
        assert modern["dataset_reader"]["tokenizer"] == {"type": "just_spaces"}

    def test_an_old_vocabulary_over_a_modern_config(self):
        config = {**LM, "data_loader": {"batch_size": 2}}
        modern = over(config, {"vocabulary": {"directory_path": "d"}})
        assert modern["vocabulary"] == {"type": "from_files", "directory": "d"}

    def test_of_a_list_by_index(self, old_configs):
        modern = over(old_configs["0.7"], {"model.initializer.0.1.val": 5})
        assert modern["model"]["initializer"]["regexes"] == [
            [".*bias", {"type": "constant", "val": 5}]
        ]

    def test_of_the_validation_iterator(self, old_configs):
        for config in (old_configs["0.8"], modernize(old_configs["0.8"])[0]):
            modern = over(config, {"validation_iterator": {"batch_size": 3}})
            assert modern["validation_data_loader"]["batch_size"] == 3
            assert modern["validation_data_loader"]["max_tokens"] == 300
            assert modern["data_loader"]["batch_size"] == 64

    def test_processes_where_the_user_wants_them(self, old_configs):
        for config in (old_configs["0.8"], modernize(old_configs["0.8"])[0]):
            assert over(config, {"iterator.num_workers": 3})["data_loader"]["num_workers"] == 3


class TestErrors:
    @pytest.mark.parametrize(
        ("overrides", "key"),
        [
            ({"itertor": {"batch_size": 3}}, "itertor"),
            ({"itertor.batch_size": 3}, r"itertor\.batch_size"),
            (
                {"iterator": {"base_iterator": {"nonsense": 1}}},
                r"iterator\.base_iterator\.nonsense",
            ),
            (
                {"iterator.base_iterator.padding_noise": 0.3},
                r"iterator\.base_iterator\.padding_noise",
            ),
            ({"iterator": {"output_queue_size": 3}}, r"iterator\.output_queue_size"),
            ({"iterator.base_iterator.batch_size": 0}, r"iterator\.base_iterator\.batch_size"),
            ({"iterator.base_iterator.type": "mine"}, r"iterator\.base_iterator\.type"),
            (
                {"iterator.base_iterator.maximum_samples_per_batch": ["num_token_characters", 5]},
                r"iterator\.base_iterator\.maximum_samples_per_batch",
            ),
            ({"iterator": 3}, "iterator"),
        ],
    )
    def test_an_override_without_meaning_is_named(self, old_configs, overrides, key):
        for config in (old_configs["0.8"], modernize(old_configs["0.8"])[0]):
            with pytest.raises(ConfigurationError, match=key):
                apply_overrides(config, overrides)

    def test_keys_of_an_old_config_that_are_dropped_are_errors_in_an_override(self, old_configs):
        overrides = {"trainer": {"keep_serialized_model_every_num_seconds": 5}}
        with pytest.raises(
            ConfigurationError, match=r"trainer\.keep_serialized_model_every_num_seconds"
        ):
            apply_overrides(old_configs["0.9"], overrides)

    def test_a_loader_that_batches_its_own_way(self):
        config = {**TAGGER, "data_loader": {"type": "multitask", "scheduler": {"batch_size": 3}}}
        with pytest.raises(ConfigurationError, match=r"data_loader\.type = multitask"):
            apply_overrides(config, DOCUMENTED)

    def test_contradictions(self, old_configs):
        with pytest.raises(ConfigurationError, match=r"iterator\.batch_size"):
            apply_overrides(old_configs["0.7"], {"iterator": "basic", "iterator.batch_size": 3})


def test_what_is_said_of_the_data_loader_is_meant_for_the_one_evaluation_uses():
    reader = {"type": "simple_language_modeling"}
    ours = {"type": "language_modeling", "max_tokens": 50}
    config = {
        "dataset_reader": reader,
        "model": {"type": "bidirectional_language_model"},
        "data_loader": ours,
        "validation_data_loader": {**ours, "shuffle": False},
    }
    dotted = {"data_loader.max_tokens": 7}
    assert shared_with_validation(config, dotted) == {
        **dotted,
        "validation_data_loader.max_tokens": 7,
    }
    for overrides in (
        {"trainer.num_epochs": 1},
        {"data_loader.max_tokens": 7, "validation_data_loader.max_tokens": 8},
    ):
        assert shared_with_validation(config, overrides) == overrides

    # Where there is no place for it in the other loader, it is for the first alone.
    other = {**config, "validation_data_loader": {"batch_size": 8}}
    sampler = {"type": "bucket", "batch_size": 2}
    for alone in (
        {"data_loader.batch_sampler.max_tokens": 9},
        {"data_loader.batch_sampler": sampler},
    ):
        assert shared_with_validation(other, alone) == alone

    # Models of other kinds are AllenNLP's own matter.
    tagger = {
        **config,
        "dataset_reader": {"type": "sequence_tagging"},
        "model": {"type": "simple_tagger"},
        "data_loader": {"batch_sampler": {"type": "bucket", "batch_size": 4}},
        "validation_data_loader": {"batch_size": 4},
    }
    overrides = {"data_loader.batch_sampler.batch_size": 2}
    assert shared_with_validation(tagger, overrides) == overrides


def test_a_batch_of_both_limits_over_a_stock_sampler():
    config = {
        "dataset_reader": {"type": "simple_language_modeling"},
        "model": {"type": "bidirectional_language_model"},
        "data_loader": {
            "batch_sampler": {
                "type": "max_tokens_sampler",
                "max_tokens": 100,
                "sorting_keys": ["source"],
            }
        },
    }
    override = {"maximum_samples_per_batch": ["num_tokens", 500], "batch_size": 6}
    modern, _ = apply_overrides(config, {"iterator": {"base_iterator": override}})
    loader = modern["data_loader"]
    assert loader["type"] == "language_modeling"
    assert (loader["max_tokens"], loader["batch_size"]) == (500, 6)


def test_a_tokenizer_named_in_a_word():
    config = {
        "dataset_reader": {"type": "simple_language_modeling", "tokenizer": "word"},
        "iterator": {"type": "basic", "batch_size": 4},
        "model": {"type": "bidirectional_language_model"},
    }
    modern, _ = apply_overrides(config, {})
    assert modern["dataset_reader"]["tokenizer"]["type"] == "spacy"
