"""Whatever stands where something else was expected: a result, or one error that says what."""

import copy
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pretrained.legacy.conftest import CASES, WHOLE
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
    without_this_package,
)

ALL = [*WHOLE.values(), *chain.from_iterable(CASES.values())]
BASES = [case["old"] for case in ALL if isinstance(case["old"], dict)]


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
OVERRIDES = st.dictionaries(PLACES, JSON, max_size=3)


@st.composite
def configs(draw):
    """A config with something else in some of its places, or sections in it of other configs."""
    config, other = (copy.deepcopy(draw(st.sampled_from(BASES))) for _ in range(2))
    for key in draw(st.lists(st.sampled_from(sorted(other)), max_size=2)) if other else ():
        config[key] = other[key]
    for path in draw(st.lists(st.sampled_from(PATHS), max_size=3)):
        place = find_key(config, path)
        if place:
            place[0][place[1]] = draw(JSON)
    config.update(draw(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=1)))
    return config


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(configs(), OVERRIDES, JSON)
def test_a_result_or_one_clear_error(config, overrides, anything):
    before = repr((config, overrides))
    modern_weights({"_matrix_attention._similarity_function.w": 1}, config)
    assert modern_weights({}, anything) == {}
    assert set(shared_with_validation(config, overrides)) >= set(overrides)
    for function, *arguments in (
        (modernize, config),
        (without_this_package, config),
        (apply_overrides, config, overrides),
        (check_evaluation_overrides, overrides),
        (check_trainer_keys, anything),
        (check_trainer_keys, config.get("trainer")),
    ):
        try:
            modern, changes = function(*arguments) or ({}, [])
        except ConfigurationError as error:
            assert " = " in str(error) or "unused keys" in str(error)
            assert "\n" not in str(error)
            assert function is not modernize or is_old(config)
            continue
        assert isinstance(modern, dict) and not any("\n" in str(change) for change in changes)
        if function is modernize:
            # What isn't old is left alone, and what is comes with a line for it.
            assert bool(changes) == is_old(config) == (modern is not config)
    assert repr((config, overrides)) == before
