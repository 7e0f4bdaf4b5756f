import copy
import inspect
import json
import logging

import pytest
from allennlp.common import Registrable
from allennlp.modules.token_embedders import EmptyEmbedder, TokenEmbedder
from allennlp.training import GradientDescentTrainer

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy import (
    Change,
    check_trainer_keys,
    legacy_keys,
    log_changes,
    modernize,
)
from transformer_elmo.pretrained.legacy.report import Report
from transformer_elmo.pretrained.legacy.trainer import TRAINER_KEYS

MODERN = {
    "dataset_reader": {"type": "simple_language_modeling", "tokenizer": {"type": "just_spaces"}},
    "train_data_path": "train.txt",
    "vocabulary": {"type": "from_files", "directory": "words"},
    "model": {
        "type": "bidirectional-language-model",
        "text_field_embedder": {
            "token_embedders": {
                "token_characters": {
                    "type": "character_encoding",
                    # A modern config may leave the namespace out, and means the default by it.
                    "embedding": {"embedding_dim": 4},
                    "encoder": {"type": "cnn-highway"},
                }
            }
        },
        "initializer": {"regexes": [["a", "normal"]]},
    },
    "data_loader": {"batch_sampler": {"type": "bucket", "batch_size": 4}},
    "trainer": {"type": "gradient_descent", "cuda_device": -1, "my_callbacks_own_key": 1},
    "a_key_of_my_own": {"lazy": True},
}


MODERN_TOP = {key: value for key, value in MODERN.items() if key != "a_key_of_my_own"}
UNMATCHED = {"allow_unmatched_keys": True}


def converted(config):
    return modernize(config)[0]


def lm(**changes):
    return {
        "dataset_reader": {
            "type": "simple_language_modeling",
            "tokenizer": {"type": "just_spaces"},
        },
        "train_data_path": "train.txt",
        "model": {"type": "language_model"},
        "trainer": {},
        **changes,
    }


def tagger(**changes):
    return {
        "dataset_reader": {"type": "sequence_tagging"},
        "train_data_path": "train.tsv",
        "model": {"type": "simple_tagger"},
        "iterator": {"type": "basic"},
        "trainer": {},
        **changes,
    }


class TestModernConfigs:
    def test_nothing_is_touched(self):
        before = json.dumps(MODERN)
        config, changes = modernize(MODERN)
        assert config is MODERN
        assert json.dumps(config) == before
        assert changes == []

    @pytest.mark.parametrize(
        "part",
        [
            {"dataset_reader": {"type": "my_reader", "lazy": True}},
            {"model": {"type": "m", "text_field_embedder": {"type": "mine", "a": {"type": "b"}}}},
            {"model": {"type": "m", "text_field_embedder": {"_pretrained": {"archive_file": "a"}}}},
            {"trainer": {"type": "my_trainer", "shuffle": True}},
            {"vocabulary": {"type": "my_vocabulary", "directory_path": "d"}},
            {"model": "simple_tagger", "dataset_reader": "my_reader", "vocabulary": "empty"},
        ],
    )
    def test_what_other_classes_may_well_say_is_no_sign(self, part):
        assert legacy_keys({**MODERN, **part}) == []

    def test_what_shows_that_a_config_is_old(self):
        old = {
            **MODERN,
            "dataset_reader": {"type": "snli", "lazy": True, "coding_scheme": "BIOUL"},
            "trainer": {"shuffle": True, "opt_level": "O1", "patience": "3"},
            "validation_iterator": None,
        }
        # The others are converted, too, but AllenNLP 2 may well be told the same.
        expected = ["dataset_reader.lazy", "trainer.shuffle", "validation_iterator"]
        assert legacy_keys(old) == expected

    def test_what_could_be_said_of_an_old_config_alone_is_no_sign(self):
        """Everything that is converted, dropped or refused only where something else is old."""
        parts = {
            "dataset_reader": {
                "type": "simple_language_modeling",
                "tokenizer": {"type": "just_spaces", "end_tokens": ["a"]},
                "coding_scheme": "BIOUL",
            },
            "model": {
                "type": "bidirectional-language-model",
                "bidirectional": True,
                "remove_bos_eos": True,
                "layer_norm": True,
            },
            "vocabulary": {"type": "default", "unheard_of": 3},
            "trainer": {
                "patience": "three",
                "opt_level": "O1",
                "tensorboard_writer": {"a": 1},
                "checkpointer": {"num_serialized_models_to_keep": "all"},
                "num_epoch": 3,
            },
            "trian_data_path": "x",
        }
        config = {**MODERN_TOP, **parts}
        assert modernize(config) == (config, [])
        assert legacy_keys(config) == []
        for key, part in parts.items():
            with pytest.raises(ConfigurationError, match=rf"^{key}\b"):
                if key == "dataset_reader":
                    part = {"type": "snli", "tokenizer": part["tokenizer"]}
                modernize({**MODERN_TOP, key: part, "iterator": "basic"})

    def test_an_embedder_of_a_users_own_with_such_options_is_no_sign(self):
        embedder = {"type": "mine", "words": {"type": "embedding"}, **UNMATCHED}
        config = {**MODERN, "model": {"type": "m", "text_field_embedder": embedder}}
        assert modernize(config) == (config, [])

    def test_the_old_config_is_not_changed(self, old_configs):
        for config in old_configs.values():
            before = copy.deepcopy(config)
            modernize(config)
            assert config == before

    def test_no_part_of_a_converted_config_is_another(self, old_configs):
        # Whoever reads a config takes it apart.
        def parts(value):
            if isinstance(value, (dict, list)):
                yield id(value)
                for below in value.values() if isinstance(value, dict) else value:
                    yield from parts(below)

        for config in old_configs.values():
            seen = list(parts(converted(json.loads(json.dumps(config)))))
            assert len(seen) == len(set(seen))

    def test_a_converted_config_has_nothing_old(self, old_configs):
        for config in old_configs.values():
            modern = converted(config)
            assert legacy_keys(modern) == []
            assert modernize(modern) == (modern, [])


class TestDialects:
    def test_of_0_7(self, old_configs):
        modern, changes = modernize(old_configs["0.7"])
        model = modern["model"]
        assert model["type"] == "bidirectional-language-model"
        assert set(model["text_field_embedder"]) == {"token_embedders"}
        embedders = model["text_field_embedder"]["token_embedders"]
        assert embedders["tokens"] == {"type": "empty"}
        assert embedders["token_characters"]["type"] == "character_encoding"
        assert model["initializer"] == {
            "regexes": [[".*bias", {"type": "constant", "val": 0}]],
            "prevent_regexes": ["_contextualizer"],
        }
        assert not {"remove_bos_eos", "do_layer_norm", "loss_scale"} & set(model)
        assert modern["data_loader"] == {"type": "language_modeling", "batch_size": 8}
        assert "lazy" not in modern["dataset_reader"]
        assert modern["vocabulary"] == old_configs["0.7"]["vocabulary"]
        dropped = {change.path for change in changes if change.dropped}
        assert dropped == {"model.remove_bos_eos", "model.loss_scale"}

    def test_of_0_8(self, old_configs):
        modern, changes = modernize(old_configs["0.8"])
        assert modern["dataset_reader"]["type"] == "simple_language_modeling"
        assert modern["dataset_reader"]["tokenizer"] == {"type": "just_spaces"}
        assert modern["vocabulary"] == {"type": "from_files", "directory": "/nowhere/vocabulary"}
        assert modern["data_loader"] == {
            "type": "language_modeling",
            "max_tokens": 300,
            "batch_size": 64,
            "max_instances_in_memory": 512,
        }
        assert modern["distributed"] == {"cuda_devices": [0, 1]}
        assert "cuda_device" not in modern["trainer"]
        assert modern["trainer"]["checkpointer"] == {"keep_most_recent_by_count": 2}
        assert modern["trainer"]["callbacks"] == [
            {"type": "tensorboard", "should_log_learning_rate": True}
        ]
        dropped = {change.path for change in changes if change.dropped}
        assert dropped == {
            "dataset_reader.num_workers",
            "dataset_reader.epochs_per_read",
            "dataset_reader.output_queue_size",
            "iterator.num_workers",
            "iterator.output_queue_size",
            "iterator.base_iterator.biggest_batch_first",
            "iterator.base_iterator.padding_noise",
        }

    def test_of_0_9(self, old_configs):
        modern, changes = modernize(old_configs["0.9"])
        assert modern["vocabulary"] == {"type": "from_files", "directory": "/nowhere/vocabulary"}
        assert modern["validation_data_loader"] == {
            "type": "language_modeling",
            "batch_size": 4,
            "shuffle": False,
        }
        assert modern["trainer"]["cuda_device"] == 0
        assert "distributed" not in modern
        assert modern["trainer"]["callbacks"] == [
            {
                "type": "tensorboard",
                "summary_interval": 10,
                "distribution_interval": 50,
                "batch_size_interval": 5,
                "should_log_parameter_statistics": False,
            }
        ]
        assert modern["trainer"]["checkpointer"] == {"save_every_num_seconds": 600}
        assert "trainer.keep_serialized_model_every_num_seconds" in {
            change.path for change in changes if change.dropped
        }

    def test_of_a_tagger(self, old_configs):
        modern = converted(old_configs["tagger"])
        indexers = modern["dataset_reader"]["token_indexers"]
        assert indexers["elmo"] == {"type": "elmo_characters"}
        embedders = modern["model"]["text_field_embedder"]["token_embedders"]
        assert set(embedders) == set(indexers) == {"tokens", "characters", "elmo"}
        assert embedders["characters"] == {"type": "empty"}
        assert modern["model"]["regularizer"] == {
            "regexes": [["scalar_parameters", {"type": "l2", "alpha": 0.1}]]
        }
        sampler = {
            "type": "bucket",
            "batch_size": 4,
            "sorting_keys": ["tokens"],
            "padding_noise": 0.0,
        }
        assert modern["data_loader"] == {
            "batch_sampler": sampler,
            "max_instances_in_memory": 10_000,
            "batches_per_epoch": 3,
        }
        # Evaluation sees every instance, and in an order that doesn't change.
        assert modern["validation_data_loader"] == {
            "batch_sampler": {**sampler, "shuffle": False},
            "max_instances_in_memory": 10_000,
        }
        assert modern["trainer"]["num_gradient_accumulation_steps"] == 2


class TestReaders:
    def test_another_multiprocess_reader_is_sharded(self):
        reader = {
            "type": "multiprocess",
            "base_reader": {"type": "sequence_tagging"},
            "num_workers": 3,
        }
        modern = converted(tagger(dataset_reader=reader, validation_dataset_reader=reader))
        expected = {"type": "sharded", "base_reader": {"type": "sequence_tagging"}}
        assert modern["dataset_reader"] == modern["validation_dataset_reader"] == expected

    @pytest.mark.parametrize(
        ("splitter", "expected"),
        [
            ({"type": "just_spaces"}, {"type": "just_spaces"}),
            ("letters_digits", {"type": "letters_digits"}),
            ({}, {"type": "spacy", "pos_tags": False}),
            (
                {"type": "spacy", "language": "en", "pos_tags": True},
                {"type": "spacy", "pos_tags": True, "language": "en_core_web_sm"},
            ),
        ],
    )
    def test_word_splitters(self, splitter, expected):
        tokenizer = {"type": "word", "word_splitter": splitter}
        reader = {"type": "snli", "tokenizer": tokenizer}
        assert converted(tagger(dataset_reader=reader))["dataset_reader"]["tokenizer"] == expected

    @pytest.mark.parametrize("kind", ["simple", "nltk", "openai", "bert-basic", "one_of_mine"])
    def test_a_splitter_that_is_gone_is_an_error(self, kind):
        reader = {"type": "snli", "tokenizer": {"type": "word", "word_splitter": {"type": kind}}}
        with pytest.raises(
            ConfigurationError, match=r"dataset_reader\.tokenizer\.word_splitter\.type"
        ):
            modernize(tagger(dataset_reader=reader))

    def test_boundaries_of_the_tokenizer_lie_inside_those_of_the_reader(self):
        reader = {
            "type": "simple_language_modeling",
            "start_tokens": ["<S>"],
            "tokenizer": {
                "type": "word",
                "word_splitter": {"type": "just_spaces"},
                "start_tokens": ["<T>"],
                "end_tokens": ["</T>"],
            },
        }
        modern = converted(lm(dataset_reader=reader))["dataset_reader"]
        assert modern["tokenizer"] == {"type": "just_spaces"}
        assert modern["start_tokens"] == ["<S>", "<T>"]
        assert modern["end_tokens"] == ["</T>"]

    def test_boundaries_that_nothing_can_add_are_an_error(self):
        tokenizer = {"type": "word", "word_splitter": "just_spaces", "end_tokens": ["@@END@@"]}
        with pytest.raises(ConfigurationError, match=r"dataset_reader\.tokenizer\.end_tokens"):
            modernize(tagger(dataset_reader={"type": "snli", "tokenizer": tokenizer}))

    def test_filters_and_stemmers(self):
        tokenizer = {
            "type": "word",
            "word_splitter": {"type": "just_spaces"},
            "word_filter": {"type": "pass_through"},
            "word_stemmer": {"type": "porter"},
        }
        modern, changes = modernize(tagger(dataset_reader={"type": "snli", "tokenizer": tokenizer}))
        assert modern["dataset_reader"]["tokenizer"] == {"type": "just_spaces"}
        dropped = [change.path for change in changes if change.dropped]
        assert dropped == ["dataset_reader.tokenizer.word_stemmer"]

    @pytest.mark.parametrize(
        ("reader", "key"),
        [
            ("simple_language_modeling", "tokenizer"),
            ("snli", "tokenizer"),
            ("seq2seq", "source_tokenizer"),
        ],
    )
    def test_the_old_default_tokenizer_looks_for_no_tags(self, reader, key):
        expected = {"type": "spacy", "pos_tags": False}
        for said in ({}, {key: None}, {key: {}}):
            modern = converted(tagger(dataset_reader={"type": reader, **said}))
            assert modern["dataset_reader"][key] == expected
        other = {"type": reader, key: {"type": "character"}}
        assert converted(tagger(dataset_reader=other))["dataset_reader"] == other
        split_already = {"type": "sequence_tagging"}
        assert converted(tagger(dataset_reader=split_already))["dataset_reader"] == split_already

    def test_a_tokenizer_without_a_type_is_one_of_words(self):
        reader = {
            "type": "snli",
            "tokenizer": {"end_tokens": ["@@NULL@@"]},
            "token_indexers": {
                "c": {"type": "characters", "character_tokenizer": {"end_tokens": [259]}}
            },
            "my_tokenizer": {"size": 3},
        }
        modern = converted(tagger(dataset_reader=reader))["dataset_reader"]
        assert modern == {
            **reader,
            "tokenizer": {"type": "spacy", "pos_tags": False, "end_tokens": ["@@NULL@@"]},
        }

    def test_of_several_readers_each(self):
        each = {"type": "snli", "lazy": True, "tokenizer": {"type": "word", "word_splitter": {}}}
        reader = {"type": "interleaving", "readers": {"a": each}}
        assert converted(tagger(dataset_reader=reader))["dataset_reader"] == {
            "type": "interleaving",
            "readers": {"a": {"type": "snli", "tokenizer": {"type": "spacy", "pos_tags": False}}},
        }

    @pytest.mark.parametrize(
        ("each", "key", "expected"),
        [
            ({"type": "sequence_tagging", "lazy": True}, "lazy", {"type": "sequence_tagging"}),
            (
                {"type": "multiprocess", "base_reader": {"type": "sequence_tagging"}},
                "type",
                {"type": "sharded", "base_reader": {"type": "sequence_tagging"}},
            ),
        ],
    )
    def test_one_of_several_readers_shows_that_a_config_is_old(self, each, key, expected):
        reader = {"type": "interleaving", "readers": {"a": each}}
        config = {**MODERN_TOP, "dataset_reader": reader, "trainer": {}}
        assert legacy_keys(config) == [f"dataset_reader.readers.a.{key}"]
        assert converted(config)["dataset_reader"]["readers"] == {"a": expected}

    def test_tag_indexers(self):
        indexers = {"pos": {"type": "pos_tag", "coarse_tags": True, "namespace": "pos"}}
        reader = {"type": "sequence_tagging", "token_indexers": indexers}
        assert converted(tagger(dataset_reader=reader))["dataset_reader"]["token_indexers"] == {
            "pos": {
                "type": "single_id",
                "namespace": "pos",
                "feature_name": "pos_",
                "default_value": "NONE",
            }
        }

    def test_coding_scheme(self):
        reader = {"type": "conll2003", "coding_scheme": "BIOUL"}
        assert converted(tagger(dataset_reader=reader))["dataset_reader"] == {
            "type": "conll2003",
            "convert_to_coding_scheme": "BIOUL",
        }


class TestVocabularies:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ({"directory_path": "d"}, {"type": "from_files", "directory": "d"}),
            (
                {"directory_path": "d", "extend": True, "min_count": {"tokens": 2}},
                {"type": "extend", "directory": "d", "min_count": {"tokens": 2}},
            ),
            ({"type": "default", "max_vocab_size": 5, "extend": False}, {"max_vocab_size": 5}),
            (
                {"directory_path": "d", "max_vocab_size": 5, "oov_token": "?"},
                {"type": "from_files", "directory": "d", "oov_token": "?"},
            ),
        ],
    )
    def test_are_converted(self, old, new):
        assert converted(tagger(vocabulary=old))["vocabulary"] == new

    def test_one_that_says_nothing_is_gone(self):
        assert "vocabulary" not in converted(tagger(vocabulary={"extend": False}))

    @pytest.mark.parametrize(
        ("old", "key"), [({"extend": True}, "extend"), ({"directory_paht": "d"}, "directory_paht")]
    )
    def test_errors_name_the_key(self, old, key):
        with pytest.raises(ConfigurationError, match=rf"vocabulary\.{key}"):
            modernize(tagger(vocabulary=old))


class TestModels:
    def test_the_first_models_layer_norm_is_an_error(self):
        model = {"type": "bidirectional-language-model", "do_layer_norm": True}
        with pytest.raises(ConfigurationError, match=r"model\.do_layer_norm"):
            modernize(lm(model=model, iterator={}))

    def test_an_embedder_of_two_indexers_is_an_error(self):
        embedder = {
            "token_embedders": {"bert": {"type": "bert-pretrained"}},
            "embedder_to_indexer_map": {"bert": ["bert", "bert-offsets"]},
        }
        model = {"type": "simple_tagger", "text_field_embedder": embedder}
        with pytest.raises(ConfigurationError, match=r"embedder_to_indexer_map\.bert"):
            modernize(tagger(model=model))

    @pytest.mark.parametrize("said", [{"source_token_indexers": {"chars": "characters"}}, {}])
    def test_an_embedder_of_a_source(self, said):
        model = {"type": "m", "source_embedder": {"token_embedders": {}, **UNMATCHED}}
        reader = {"type": "seq2seq", **said}
        modern = converted(tagger(model=model, dataset_reader=reader))
        assert "token_indexers" not in modern["dataset_reader"]
        names = set(modern["dataset_reader"]["source_token_indexers"])
        assert set(modern["model"]["source_embedder"]["token_embedders"]) == names

    def test_an_argument_that_is_not_given(self):
        embedder = {
            "token_embedders": {"tokens": {"type": "embedding"}},
            "embedder_to_indexer_map": {"tokens": ["tokens", None]},
        }
        model = {"type": "m", "text_field_embedder": embedder}
        modern = converted(tagger(model=model))["model"]["text_field_embedder"]
        assert modern == {"token_embedders": {"tokens": {"type": "embedding"}}}

    @pytest.mark.parametrize("mapping", [{}, None])
    def test_a_map_of_nothing(self, mapping):
        embedder = {"token_embedders": {}, "embedder_to_indexer_map": mapping}
        config = {**tagger(model={"type": "m", "text_field_embedder": embedder}), "data_loader": {}}
        del config["iterator"]
        assert legacy_keys(config) == ["model.text_field_embedder.embedder_to_indexer_map"]
        modern, changes = modernize(config)
        empty = {"tokens": {"type": "empty"}} if mapping == {} else {}
        assert modern["model"]["text_field_embedder"] == {"token_embedders": empty}
        assert "it maps nothing" in [change.reason for change in changes]

    def test_an_embedder_by_any_name(self):
        model = {"type": "mine", "words": {"token_embedders": {}, **UNMATCHED}}
        assert converted(tagger(model=model))["model"] == {
            "type": "mine",
            "words": {"token_embedders": {"tokens": {"type": "empty"}}},
        }
        other = {"type": "mine", "words": {**UNMATCHED}}
        assert converted(tagger(model=other))["model"] == other

    def test_the_old_default_namespace_of_characters_is_kept(self):
        embedder = {
            "token_embedders": {
                "characters": {"type": "character_encoding", "embedding": {"embedding_dim": 4}}
            }
        }
        model = {"type": "simple_tagger", "text_field_embedder": embedder}
        modern = converted(tagger(model=model))["model"]
        embedding = modern["text_field_embedder"]["token_embedders"]["characters"]["embedding"]
        assert embedding == {"embedding_dim": 4, "vocab_namespace": "token_characters"}

    def test_a_name_that_somebody_took_is_no_sign(self):
        embedder = {"token_embedders": {"c": {"type": "character-encoding"}}}
        config = {**MODERN, "model": {"type": "simple_tagger", "text_field_embedder": embedder}}
        assert legacy_keys(config) == ["model.text_field_embedder.token_embedders.c.type"]
        TokenEmbedder.register("character-encoding")(EmptyEmbedder)
        try:
            assert legacy_keys(config) == []
        finally:
            del Registrable._registry[TokenEmbedder]["character-encoding"]

    @pytest.mark.parametrize(
        ("similarity", "attention"),
        [
            (
                {"type": "linear", "combination": "x,y", "tensor_1_dim": 2, "tensor_2_dim": 3},
                {"type": "linear", "combination": "x,y", "tensor_1_dim": 2, "tensor_2_dim": 3},
            ),
            (
                {"type": "bilinear", "tensor_1_dim": 2, "tensor_2_dim": 3},
                {"type": "bilinear", "matrix_1_dim": 2, "matrix_2_dim": 3},
            ),
            ({"type": "dot_product", "scale_output": False}, {"type": "dot_product"}),
            ({}, {"type": "dot_product"}),
            ("cosine", {"type": "cosine"}),
        ],
    )
    def test_similarity_functions(self, similarity, attention):
        config = {**MODERN, "model": {"type": "esim", "similarity_function": similarity}}
        assert legacy_keys(config) == ["model.similarity_function"]
        modern = converted(tagger(model=config["model"]))
        assert modern["model"] == {"type": "esim", "matrix_attention": attention}
        mine = {**MODERN, "model": {"type": "my_model", "similarity_function": similarity}}
        assert legacy_keys(mine) == []

    @pytest.mark.parametrize(
        ("similarity", "key"),
        [
            ({"type": "multiheaded"}, "type"),
            # It multiplied by what scaling divides by.
            ({"type": "dot_product", "scale_output": True}, "scale_output"),
        ],
    )
    def test_similarity_functions_that_are_gone(self, similarity, key):
        model = {"type": "bidaf", "similarity_function": similarity}
        with pytest.raises(ConfigurationError, match=rf"model\.similarity_function\.{key}"):
            modernize(tagger(model=model))

    def test_constraint_type(self):
        modern = converted(tagger(model={"type": "crf_tagger", "constraint_type": "BIOUL"}))
        assert modern["model"] == {
            "type": "crf_tagger",
            "label_encoding": "BIOUL",
            "constrain_crf_decoding": True,
        }


class TestIterators:
    @pytest.mark.parametrize(
        ("iterator", "loader"),
        [
            ({"type": "basic"}, {"batch_size": 32, "shuffle": True}),
            ("basic", {"batch_size": 32, "shuffle": True}),
            (
                {"sorting_keys": [["a", "num_tokens"], ["b", "num_tokens"], ["a", "length"]]},
                {"batch_sampler": {"type": "bucket", "batch_size": 32, "sorting_keys": ["a", "b"]}},
            ),
            (
                {"type": "bucket", "batch_size": 4, "skip_smaller_batches": True},
                {"batch_sampler": {"type": "bucket", "batch_size": 4, "drop_last": True}},
            ),
            (
                {"type": "basic", "batch_size": "4", "skip_smaller_batches": "false"},
                {"batch_size": 4, "shuffle": True},
            ),
            (
                {"type": "epoch_tracking_bucket", "batch_size": 4},
                {"batch_sampler": {"type": "bucket", "batch_size": 4}},
            ),
            (
                {"type": "basic", "maximum_samples_per_batch": ["num_tokens", 100]},
                {"batch_sampler": {"type": "max_tokens_sampler", "max_tokens": 100}},
            ),
            (
                {
                    "type": "multiprocess",
                    "num_workers": 2,
                    "base_iterator": {
                        "type": "basic",
                        "batch_size": 8,
                        "max_instances_in_memory": 64,
                    },
                },
                {"batch_size": 8, "shuffle": True, "max_instances_in_memory": 64, "num_workers": 2},
            ),
        ],
    )
    def test_of_other_models(self, iterator, loader):
        assert converted(tagger(iterator=iterator))["data_loader"] == loader

    def test_a_validation_iterator_that_says_nothing(self):
        assert converted(tagger(validation_iterator=None)) == converted(tagger())

    def test_shuffle_comes_from_the_trainer(self):
        modern = converted(tagger(trainer={"shuffle": False}))
        assert modern["data_loader"] == {"batch_size": 32}
        assert "validation_data_loader" not in modern
        modern = converted(lm(iterator={"batch_size": 4}, trainer={"shuffle": False}))
        assert modern["data_loader"]["shuffle"] is False

    def test_instances_per_epoch_of_a_language_model(self):
        modern = converted(lm(iterator={"batch_size": 4, "instances_per_epoch": 10}))
        assert modern["data_loader"]["batches_per_epoch"] == 3
        assert modern["validation_data_loader"] == {"type": "language_modeling", "batch_size": 4}

    def test_words_that_are_hard_to_find_keep_their_processes(self):
        reader = {"type": "simple_language_modeling", "tokenizer": {"type": "spacy"}}
        iterator = {"type": "multiprocess", "base_iterator": {"type": "basic"}, "num_workers": 3}
        modern = converted(lm(dataset_reader=reader, iterator=iterator))
        assert modern["data_loader"]["num_workers"] == 3

    @pytest.mark.parametrize(
        ("iterator", "key"),
        [
            ({"partition_key": "dataset", "type": "homogeneous_batch"}, r"iterator\.type"),
            ({"type": "basic", "batchsize": 3}, r"iterator\.batchsize"),
            ({"type": "bucket", "padding_noise": "some"}, r"iterator\.padding_noise"),
            ({"type": "basic", "batch_size": "many"}, r"iterator\.batch_size"),
            (
                {"type": "basic", "maximum_samples_per_batch": 5},
                r"iterator\.maximum_samples_per_batch",
            ),
            (
                {"type": "multiprocess", "base_iterator": {"type": "basic", "workers": 3}},
                r"iterator\.base_iterator\.workers",
            ),
        ],
    )
    def test_errors_name_the_key(self, iterator, key):
        with pytest.raises(ConfigurationError, match=key):
            modernize(tagger(iterator=iterator))


class TestTrainers:
    def test_made_of_callbacks(self):
        trainer = {
            "type": "callback",
            "optimizer": {"type": "sgd", "lr": 0.1},
            "num_epochs": 2,
            "callbacks": [
                "validate",
                {"type": "checkpoint", "checkpointer": {"num_serialized_models_to_keep": 3}},
                {"type": "track_metrics", "patience": 3, "validation_metric": "+accuracy"},
                {"type": "gradient_norm_and_clip", "grad_norm": 5.0},
                {"type": "log_to_tensorboard", "summary_interval": 7},
            ],
        }
        assert converted(tagger(trainer=trainer))["trainer"] == {
            "optimizer": {"type": "sgd", "lr": 0.1},
            "num_epochs": 2,
            "patience": 3,
            "validation_metric": "+accuracy",
            "grad_norm": 5.0,
            "checkpointer": {"keep_most_recent_by_count": 3},
            "callbacks": [{"type": "tensorboard", "summary_interval": 7}],
        }

    def test_all_models_are_kept(self):
        for number in (None, -1):
            modern = converted(tagger(trainer={"num_serialized_models_to_keep": number}))
            assert modern["trainer"] == {"checkpointer": {"keep_most_recent_by_count": None}}

    def test_numbers_in_strings(self):
        trainer = {"cuda_device": "0,1", "patience": "3", "grad_norm": "0.5", "num_epochs": 2}
        modern = converted(tagger(trainer=trainer))
        assert modern["distributed"] == {"cuda_devices": [0, 1]}
        assert modern["trainer"] == {"patience": 3, "grad_norm": 0.5, "num_epochs": 2}
        assert converted({**MODERN_TOP, "trainer": {"cuda_device": "-1"}})["trainer"] == {
            "cuda_device": -1
        }
        with pytest.raises(ConfigurationError, match=r'trainer\.patience = "three"'):
            modernize(tagger(trainer={"patience": "three"}))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("num_serialized_models_to_keep", "all"),
            ("cuda_device", ["gpu"]),
            ("gradient_accumulation_batch_size", "some"),
            ("checkpointer", {"num_serialized_models_to_keep": "all"}),
        ],
    )
    def test_what_is_no_number_is_named(self, key, value):
        with pytest.raises(ConfigurationError, match=rf"trainer\.{key}.* expected a number"):
            modernize(tagger(trainer={key: value}))

    def test_a_callback_that_is_gone(self):
        trainer = {"type": "callback", "callbacks": [{"type": "post-to-url", "url": "a"}]}
        modern, changes = modernize(tagger(trainer=trainer))
        assert modern["trainer"] == {}
        assert [change.path for change in changes if change.dropped] == ["trainer.callbacks.0"]

    def test_several_devices_do_not_save_by_time(self):
        trainer = {"cuda_device": [0, 1], "model_save_interval": 60}
        modern, changes = modernize(tagger(trainer=trainer))
        assert modern["trainer"] == {}
        assert [change.path for change in changes if change.dropped] == [
            "trainer.model_save_interval"
        ]

    def test_the_default_type_and_a_modern_loader(self):
        config = {
            **tagger(trainer={"type": "default", "shuffle": False}),
            "data_loader": {"batch_size": 2},
        }
        del config["iterator"]
        modern = converted(config)
        assert modern["trainer"] == {}
        assert modern["data_loader"] == {"batch_size": 2, "shuffle": False}

    def test_keys_of_the_versions_in_between(self):
        trainer = {
            "shuffle": True,
            "opt_level": "O1",
            "tensorboard_writer": {"summary_interval": 5, "histogram_interval": 9},
        }
        modern, changes = modernize(tagger(trainer=trainer))
        assert modern["trainer"] == {
            "callbacks": [
                {"type": "tensorboard", "summary_interval": 5, "distribution_interval": 9}
            ]
        }
        assert [change.path for change in changes if change.dropped] == ["trainer.opt_level"]

    def test_what_was_dropped_from_a_checkpointer_is_gone(self):
        trainer = {"checkpointer": {"keep_serialized_model_every_num_seconds": 5}}
        assert converted(tagger(trainer=trainer))["trainer"] == {"checkpointer": {}}

    def test_no_callbacks_beside_those_for_tensorboard(self):
        modern = converted(tagger(trainer={"callbacks": None, "summary_interval": 3}))
        callbacks = [{"type": "tensorboard", "summary_interval": 3}]
        assert modern["trainer"] == {"callbacks": callbacks}

    def test_an_unknown_key_is_an_error(self):
        # AllenNLP 2 would swallow it.
        with pytest.raises(ConfigurationError, match=r"trainer\.num_epoch = 3"):
            modernize(tagger(trainer={"num_epoch": 3}))

    def test_the_known_keys_are_allennlps(self):
        parameters = inspect.signature(GradientDescentTrainer.from_partial_objects).parameters
        given = {"model", "serialization_dir", "data_loader", "validation_data_loader", "kwargs"}
        # Its constructor still looks for the second of these in its `kwargs`.
        theirs = (set(parameters) - given) | {"type", "run_sanity_checks"}
        assert theirs | {"max_bad_steps"} == TRAINER_KEYS and "max_bad_steps" not in theirs
        source = inspect.getsource(GradientDescentTrainer.__init__)
        assert '"run_sanity_checks" in kwargs' in source

    @pytest.mark.parametrize(
        ("key", "near"),
        [
            ("pateince", "patience"),
            ("checkpointr", "checkpointer"),
            ("callbcks", "callbacks"),
            ("num_epoch", "num_epochs"),
            ("learning_rate_schedular", "learning_rate_scheduler"),
        ],
    )
    def test_a_misspelled_key_of_a_modern_one(self, key, near):
        for kind in ({}, {"type": "gradient_descent"}):
            trainer = {**kind, "optimizer": "adam", key: 3}
            message = rf"^trainer\.{key} = 3: a trainer has no such key.* Is it {near}\?$"
            with pytest.raises(ConfigurationError, match=message):
                check_trainer_keys(trainer)
        with pytest.raises(ConfigurationError, match=rf"^a\.b\.{key} = "):
            check_trainer_keys({key: 3}, "a.b")

    def test_a_key_that_is_like_no_other(self):
        with pytest.raises(ConfigurationError, match=r"^trainer\.zzz = 3: .*ignore it\.$"):
            check_trainer_keys({"zzz": 3})

    @pytest.mark.parametrize(
        "trainer",
        [dict.fromkeys(TRAINER_KEYS - {"type"}), {"type": "mine", "zzz": 3}, {}, "mine", None, []],
    )
    def test_keys_that_are_in_order(self, trainer):
        check_trainer_keys(trainer)

    def test_an_unknown_key_at_the_top_is_an_error(self):
        with pytest.raises(ConfigurationError, match="trian_data_path"):
            modernize(tagger(trian_data_path="x"))


def test_every_change_is_one_line_of_the_log(old_configs, caplog):
    with caplog.at_level(logging.INFO, logger="transformer_elmo"):
        _, changes = modernize(old_configs["0.8"])
        log_changes(changes)
    assert len(caplog.records) == len(changes)
    for record, change in zip(caplog.records, changes):
        assert "\n" not in record.getMessage()
        assert change.path in record.getMessage()
        assert record.levelno == (logging.WARNING if change.dropped else logging.INFO)
    assert "iterator.num_workers = 2 -> dropped" in caplog.text
    assert (
        'vocabulary.directory_path = "/nowhere/vocabulary" -> vocabulary.directory' in caplog.text
    )


class TestReports:
    def test_what_counts_only_if_something_else_is_old(self):
        report = Report()
        report.if_old.moved("a", 1, "b", 2)
        report.if_old.refused("c", 1, "no.")
        report.added("d", 1, "a default")
        assert report.legacy_keys == []
        report.needless("e", 1, "it is so")
        report.refused("f", 1, "no.")
        report.dropped("e", 1, "it is so")
        assert report.legacy_keys == ["e", "f"]
        assert [change.path for change in report.changes] == ["a", "d", "e", "e"]
        with pytest.raises(ConfigurationError, match=r"^c = 1: no\.$"):
            report.check()

    def test_what_the_user_says_now_must_have_an_effect(self):
        for given, path in (("a.b", "a.b"), ("a", "a.b"), ("a.b.c", "a.b")):
            report = Report([given])
            report.dropped(path, 1, "it is gone")
            assert report.changes == []
            with pytest.raises(ConfigurationError, match=f"^{given} = 1: this override"):
                report.check()
        report = Report(["a.bc"])
        report.dropped("a.b", 1, "it is gone")
        assert report.changes == [Change("a.b", 1, reason="it is gone", dropped=True)]
