"""How overrides are applied; what they become over old configs is in golden/overrides.json."""

import json

import pytest
from allennlp.common import params

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy import shared_with_validation
from transformer_elmo.pretrained.legacy.overrides import merged, unflattened, with_overrides


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        ({"a": 2, "c.l.0.b": [[2]], "d": {"e": []}, "c.new": 3}, ""),
        ({"c.l.1": {"x": 1}, "c": {"l": 2}}, "c.l.1"),
        ({"c.d.e": 1}, "c.d.e"),
        ({"c.l.5": 1, "c.l.0.b": 2, "c.l.-1": 3, "c.l.²": 4}, "c.l.5, c.l.-1, c.l.²"),
        ({"nothing.here": 1, "a": 2, "nor.here": 3}, "nothing.here, nor.here"),
    ],
)
def test_over_a_modern_config(overrides, unused):
    """As AllenNLP's own function has it; a key without a place is named."""
    config = {"a": 3, "c": {"l": [{"b": 1}, 2]}}
    before = json.dumps((config, overrides))
    if unused:
        with pytest.raises(ValueError, match=r"unused keys|expected list or dict"):
            params.with_overrides(config, overrides)
        with pytest.raises(ConfigurationError, match=f"nothing there to change: {unused}\\.$"):
            with_overrides(config, overrides)
    else:
        new = with_overrides(config, overrides)
        # As text, in which the order of the keys counts.
        assert json.dumps(new) == json.dumps(params.with_overrides(config, overrides))
        new["c"]["l"][0]["b"][0].append(3)
        new["d"]["e"].append(3)
    assert json.dumps((config, overrides)) == before


def test_dotted_keys_and_contradictions():
    nested = unflattened({"a.b": 1, "a.c.d": 2, "a": {"b": 3, "e": {}}, "": 4})
    assert nested == {"a": {"b": 3, "c": {"d": 2}, "e": {}}, "": 4}
    both = [("iterator", "basic"), ("iterator.batch_size", 3)]
    for overrides in (dict(both), dict(reversed(both)), {"": 4, ".": 5}):
        with pytest.raises(ConfigurationError, match="the same overrides say"):
            unflattened(overrides)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"a": {"b": 2}, "d": 3}, {"a": {"b": 2, "c": 1}, "l": [1, {"a": 2}], "d": 3}),
        ({"l": {"1": {"a": 3}}}, {"a": {"b": 1, "c": 1}, "l": [1, {"a": 3}]}),
        *(({"l": new}, {"a": {"b": 1, "c": 1}, "l": new}) for new in ({"2": 3}, {}, {"²": 1})),
    ],
)
def test_over_an_old_config(override, expected):
    """Merged at every depth, as AllenNLP 0.9 did it."""
    assert merged({"a": {"b": 1, "c": 1}, "l": [1, {"a": 2}]}, override) == expected


OURS = {"type": "language_modeling", "max_tokens": 50}
MODEL = {
    "dataset_reader": {"type": "simple_language_modeling"},
    "model": {"type": "bidirectional_language_model"},
}
TAGGER = {"dataset_reader": {"type": "sequence_tagging"}, "model": {"type": "simple_tagger"}}
SAMPLER = {"type": "bucket", "batch_size": 2}


@pytest.mark.parametrize(
    ("config", "loader", "overrides", "is_shared"),
    [
        (MODEL, OURS, {"data_loader.max_tokens": 7}, True),
        (MODEL, OURS, {"trainer.num_epochs": 1}, False),
        (MODEL, OURS, {"data_loader.max_tokens": 7, "validation_data_loader.max_tokens": 8}, False),
        # Where there is no place for it in the other loader, it is for the first alone.
        (MODEL, {"batch_size": 8}, {"data_loader.batch_sampler.max_tokens": 9}, False),
        (MODEL, {"batch_size": 8}, {"data_loader.batch_sampler": SAMPLER}, False),
        (MODEL, {"batch_sampler": SAMPLER}, {"data_loader.batch_sampler.batch_size": 2}, True),
        # Models of other kinds are AllenNLP's own matter.
        (TAGGER, {"batch_sampler": SAMPLER}, {"data_loader.batch_sampler.batch_size": 2}, False),
    ],
)
def test_the_data_loader_that_evaluation_uses(config, loader, overrides, is_shared):
    shared = {f"validation_{k}": v for k, v in overrides.items() if is_shared}
    config = {**config, "data_loader": {}, "validation_data_loader": loader}
    assert shared_with_validation(config, overrides) == {**overrides, **shared}
