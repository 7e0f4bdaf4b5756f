"""Whatever stands where something else was expected: a result, or one error that says what."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pretrained.legacy.conftest import CONFIGS
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy import (
    apply_overrides,
    check_evaluation_overrides,
    check_trainer_keys,
    find_key,
    legacy_keys,
    merges_into,
    modern_weights,
    modernize,
    shared_with_validation,
)
from transformer_elmo.pretrained.legacy.merging import unflattened

MODERN = {
    "dataset_reader": {"type": "interleaving", "readers": {"a": {"type": "snli"}}},
    "validation_dataset_reader": {"type": "simple_language_modeling"},
    "model": {"type": "bidirectional_language_model", "text_field_embedder": {}},
    "vocabulary": {"type": "from_files", "directory": "words"},
    "data_loader": {"batch_sampler": {"type": "bucket", "batch_size": 4}},
    "validation_data_loader": {"type": "language_modeling", "max_tokens": 4},
    "trainer": {"optimizer": "adam", "callbacks": [{"type": "tensorboard"}]},
}
# Old keys that the configs of the dialects don't have.
RARE = {
    "dataset_reader": {
        "type": "multiprocess",
        "base_reader": {"type": "snli", "coding_scheme": "BIOUL", "tokenizer": "word"},
    },
    "model": {
        "type": "bidaf",
        "similarity_function": {"type": "linear", "combination": "x,y"},
        "source_embedder": {"elmo": {"type": "elmo_token_embedder"}, "allow_unmatched_keys": True},
        "constraint_type": "BIOUL",
        "layer_norm": False,
    },
    "vocabulary": {"directory_path": "words", "extend": True, "min_count": {"tokens": 2}},
    "validation_iterator": {"type": "basic", "skip_smaller_batches": True, "cache_instances": True},
    "trainer": {
        "type": "callback",
        "callbacks": [{"type": "checkpoint", "checkpointer": {"a": 1}}, "validate"],
        "tensorboard_writer": {"summary_interval": 3},
        "checkpointer": {"num_serialized_models_to_keep": 3},
        "gradient_accumulation_batch_size": 8,
    },
}
BASES = [*CONFIGS.values(), MODERN, RARE]


def dotted_keys(value, path=""):
    below = value if isinstance(value, dict) else {}
    if isinstance(value, list):
        below = {str(i): part for i, part in enumerate(value)}
    for key, part in below.items():
        at = f"{path}.{key}" if path else key
        yield at
        yield from dotted_keys(part, at)


PATHS = sorted({path for config in BASES for path in dotted_keys(config)})
KEYS = [*sorted({key for path in PATHS for key in path.split(".")}), "", ".", "a.b", "²", "\0"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.sampled_from([2.5, 1e300, float("inf"), float("nan"), 10**400])
    | st.sampled_from(["", "5", "true", "word", "basic", "bucket", "multiprocess", "spacy", "é"]),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS), below, max_size=3)
    ),
    max_leaves=8,
)
PLACES = st.sampled_from(PATHS) | st.lists(st.sampled_from(KEYS), min_size=1, max_size=3).map(
    ".".join
)


@st.composite
def configs(draw):
    """A config with something else in some of its places, or sections in it of other configs."""
    config = copy.deepcopy(draw(st.sampled_from(BASES)))
    other = draw(st.sampled_from(BASES))
    for key in draw(st.lists(st.sampled_from(sorted(other)), max_size=2)):
        config[key] = copy.deepcopy(other[key])
    for path in draw(st.lists(st.sampled_from(PATHS), max_size=3)):
        place = find_key(config, path)
        if place:
            place[0][place[1]] = draw(JSON)
    config.update(draw(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=1)))
    return config


OVERRIDES = st.dictionaries(PLACES, JSON, max_size=3)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(configs(), OVERRIDES)
def test_a_result_or_one_clear_error(config, overrides):
    before = repr((config, overrides))
    for function in (modernize, lambda config: apply_overrides(config, overrides)):
        try:
            modern, changes = function(config)
        except ConfigurationError as error:
            assert " = " in str(error) or "unused keys" in str(error)
            assert "\n" not in str(error)
        else:
            assert isinstance(modern, dict)
            for change in changes:
                assert "\n" not in str(change)
    assert repr((config, overrides)) == before


@settings(max_examples=150, deadline=None)
@given(configs(), OVERRIDES, JSON)
def test_the_smaller_functions(config, overrides, anything):
    assert all(isinstance(key, str) for key in legacy_keys(config))
    assert legacy_keys(anything) == [] or isinstance(anything, dict)
    assert set(shared_with_validation(config, overrides)) >= set(overrides)
    for key, value in overrides.items():
        assert merges_into(key, config.get(key), value) in (True, False)
        assert len(find_key(config, key)) in (0, 2)
    modern_weights({"_matrix_attention._similarity_function.w": 1}, config)
    modern_weights({}, anything)
    for function, argument in (
        (unflattened, overrides),
        (check_evaluation_overrides, overrides),
        (check_trainer_keys, anything),
        (check_trainer_keys, config.get("trainer")),
    ):
        try:
            function(argument)
        except ConfigurationError as error:
            assert " = " in str(error)


@settings(max_examples=200, deadline=None)
@given(configs())
def test_old_is_what_changes(config):
    """A config that isn't old is left alone, and one that is has its old keys in the changes."""
    keys = legacy_keys(config)
    try:
        modern, changes = modernize(config)
    except ConfigurationError:
        assert keys
        return
    if not keys:
        assert modern is config
        assert changes == []
        return
    assert set(keys) <= {change.path for change in changes}
    assert repr(modern) != repr(config)


@pytest.mark.parametrize("base", ["0.7", "0.8", "0.9", "tagger", "modern"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"model": 3},
        {"model": None},
        {"trainer": []},
        {"trainer": True},
        {"iterator": {"base_iterator": 5}},
        {"iterator": [1]},
        {"iterator.batch_size": {"a": 1}},
        {"iterator": {"base_iterator": {"sorting_keys": 5}}},
        {"dataset_reader": None},
        {"dataset_reader": 2.5},
        {"vocabulary": [3]},
        {"data_loader": 3},
        {"distributed": False},
        {"": 3},
        {"model.": {"": 3}, "": 3},
        {".": 3},
        {"iterator.": 3},
        {"iterator.type": {}},
        {"iterator.base_iterator.maximum_samples_per_batch": [["num_tokens"], 3]},
    ],
)
def test_an_override_of_another_type_is_named(old_configs, base, overrides):
    config = {**old_configs, "modern": MODERN}[base]
    first = list(overrides)[-1].split(".")[0] or r'(""|\.)'
    with pytest.raises(ConfigurationError, match=rf"^{first}[\w.]* = "):
        apply_overrides(config, overrides)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ({"model": 3}, "model"),
        ({"trainer": [1]}, "trainer"),
        ({"vocabulary": False}, "vocabulary"),
        ({"dataset_reader": None}, "dataset_reader"),
        (
            {"dataset_reader": {"type": "multiprocess", "base_reader": 5}},
            r"dataset_reader\.base_reader",
        ),
        ({"dataset_reader": {"tokenizer": {"word_splitter": 5}}}, r"dataset_reader\.tokenizer\."),
        ({"dataset_reader": {"type": "seq2seq", "source_token_indexers": 5}}, "dataset_reader"),
        ({"trainer": {"type": "callback", "callbacks": 5}}, r"trainer\.callbacks"),
        ({"trainer": {"type": "callback", "callbacks": [5]}}, r"trainer\.callbacks\.0"),
        ({"trainer": {"callbacks": 5, "summary_interval": 2}}, r"trainer\.callbacks"),
        ({"trainer": {"tensorboard_writer": 5}}, r"trainer\.tensorboard_writer"),
        ({"trainer": {"cuda_device": [None]}}, r"trainer\.cuda_device"),
        ({"model": {"text_field_embedder": {"embedder_to_indexer_map": 5}}}, "model"),
        ({"iterator": {"sorting_keys": [[["a"], "b"]]}}, r"iterator\.sorting_keys\.0"),
    ],
)
def test_a_part_of_an_old_config_of_another_type_is_named(old_configs, part, key):
    config = {**old_configs["tagger"], **part}
    with pytest.raises(ConfigurationError, match=rf"^{key}[\w.]* = .*: (expected|just_spaces)"):
        modernize(config)


def test_objects_within_objects_without_end():
    part = {}
    for _ in range(2000):
        part = {"a": part}
    for function in (modernize, legacy_keys, lambda config: apply_overrides(config, {})):
        with pytest.raises(ConfigurationError, match="within one another"):
            function({**MODERN, "model": part})


def test_strange_values_in_a_modern_config_are_allennlps_matter():
    for part in (
        {"trainer": {"patience": "three", "callbacks": 5, "checkpointer": {"a": []}}},
        {"trainer": {"checkpointer": {"num_serialized_models_to_keep": "all"}}},
        {"model": {"type": ["a"], "text_field_embedder": 5, "layer_norm": True}},
        {"dataset_reader": {"type": {}, "tokenizer": 3, "token_indexers": [2]}},
        {"vocabulary": 3, "data_loader": [], "unheard_of": {"iterator": 3}},
    ):
        config = {**MODERN, **part}
        text = json.dumps(config)
        assert modernize(config) == (config, [])
        assert json.dumps(config) == text
