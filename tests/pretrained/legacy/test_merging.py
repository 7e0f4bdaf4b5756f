"""Overrides of modern configs: ours, beside AllenNLP's own function."""

import copy
import json

import pytest
from allennlp.common import params
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy.overrides import merged, unflattened, with_overrides

# Few different keys, so that overrides hit something.
KEYS = st.sampled_from(["a", "b", "0", "1", "", "a.b", "b.0"])
VALUES = st.recursive(
    st.none() | st.integers(0, 3) | st.text("ab", max_size=1),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)
PATHS = st.lists(KEYS, min_size=1, max_size=4).map(".".join)


def outcome(function, *arguments):
    try:
        # As text, in which the order of the keys counts.
        return json.dumps(function(*arguments))
    except ValueError as error:
        assert "unused keys" in str(error) or "expected list or dict" in str(error)
        return "refused"


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(OBJECTS | st.lists(VALUES, max_size=3), st.dictionaries(PATHS, VALUES, max_size=3))
@example({"a": [{"b": 1}]}, {"a.0.b": 2})
@example({"a": [{"b": 1}]}, {"a.0.c": 2, "a.1": 3})
@example({"a.b": 1, "a": {"b": 2}}, {"a.b": 3})
@example({"a": {"b": 1}}, {"a": 2, "a.b": 3})
def test_what_allennlp_does(config, overrides):
    before = copy.deepcopy((config, overrides))
    expected = outcome(params.with_overrides, config, overrides)
    assert outcome(with_overrides, config, overrides) == expected
    assert (config, overrides) == before


def test_what_comes_back_shares_nothing():
    config, overrides = {"a": {"b": [1]}, "c": []}, {"a.b": [[2]], "d": {"e": []}}
    new = with_overrides(config, overrides)
    new["a"]["b"][0].append(3)
    new["c"].append(3)
    new["d"]["e"].append(3)
    assert (config, overrides) == ({"a": {"b": [1]}, "c": []}, {"a.b": [[2]], "d": {"e": []}})


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"a.b": 1}, "a.b"),
        ({"c.d.e": 1}, "c.d.e"),
        ({"c.l.5": 1, "c.l.0.x": 2}, r"c\.l\.0\.x"),
        ({"nothing.here": 1, "a": 2, "nor.here": 3}, r"nothing\.here, nor\.here"),
    ],
)
def test_a_key_without_a_place_is_named(overrides, named):
    config = {"a": 3, "c": {"l": [1]}}
    # Callers expect either.
    for kind in (ConfigurationError, ValueError):
        with pytest.raises(kind, match=f"unused keys.*: {named}"):
            with_overrides(config, overrides)


def test_dotted_keys():
    overrides = {"a.b": 1, "a.c.d": 2, "a": {"b": 3, "e": {}}, "": 4, ".": 5}
    with pytest.raises(ConfigurationError, match=r"^\. = 5: the same overrides say that  is 4"):
        unflattened(overrides)
    del overrides["."]
    nested = unflattened(overrides)
    assert nested == {"a": {"b": 3, "c": {"d": 2}, "e": {}}, "": 4}


@pytest.mark.parametrize("order", [1, -1])
def test_contradictions_in_either_order(order):
    overrides = dict([("iterator", "basic"), ("iterator.batch_size", 3)][::order])
    with pytest.raises(ConfigurationError, match="the same overrides say"):
        unflattened(overrides)


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES)
def test_merging_is_replacing_where_there_is_nothing_to_merge(original, override):
    new = merged(original, override)
    if isinstance(original, dict) and isinstance(override, dict):
        assert new.keys() == original.keys() | override.keys()
        for key in new:
            part = override.get(key, original.get(key))
            assert new[key] == (merged(original[key], part) if key in original else part)
    elif not (isinstance(original, list) and isinstance(override, dict)):
        assert new == override


def test_merging_into_lists():
    assert merged([1, {"a": 2}], {"1": {"a": 3}}) == [1, {"a": 3}]
    for numbers in ({"2": 3}, {"0": 3, "x": 4}, {"-1": 3}, {"²": 3}, {"9" * 5000: 3}, {}):
        assert merged([1, 2], numbers) == numbers
