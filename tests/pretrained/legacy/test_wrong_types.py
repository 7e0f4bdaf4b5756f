"""Whatever stands where something else was expected: a result, or one error that says what."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pretrained.legacy.conftest import CONFIGS, WHOLE
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy import (
    apply_overrides,
    check_evaluation_overrides,
    check_trainer_keys,
    find_key,
    is_old,
    modern_weights,
    modernize,
    shared_with_validation,
)

MODERN = WHOLE["2.x"]["old"]
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
        "callbacks": ["validate"],
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
    modern_weights({"_matrix_attention._similarity_function.w": 1}, config)
    assert modern_weights({}, anything) == {}
    assert set(shared_with_validation(config, overrides)) >= set(overrides)
    for function, argument in (
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
    """A config that isn't old is left alone, and one that is comes with a line for what was old."""
    try:
        modern, changes = modernize(config)
    except ConfigurationError:
        assert is_old(config)
        return
    assert bool(changes) == is_old(config) == (modern is not config)
