"""
Old configs beside new ones, as the files in golden/ have them.

Those named after versions are whole configs. The others are lists of cases: `old` is a config, or
the name of a whole one, or of what it is converted to ("0.8 converted"). Of such a case `new` and
`log` say only what differs from the whole one's; a section that is null isn't there. Those of
stock.json are configs of this package, for allennlp-models alone.
"""

import copy
import logging

import pytest
from allennlp.common import Registrable
from allennlp.modules.token_embedders import EmptyEmbedder, TokenEmbedder

from tests.pretrained.legacy.conftest import CASES, WHOLE
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy import (
    apply_overrides,
    is_old,
    log_changes,
    modernize,
    without_this_package,
)


def cases(*names):
    return [
        pytest.param(case, id=f"{name} {number}: {case['name']}")
        for name in names
        for number, case in enumerate(CASES[name])
    ]


def lines(changes):
    return ["DROPPED " * change.dropped + str(change) for change in changes]


def parts(value):
    """The objects and lists in a config, by their identity."""
    if isinstance(value, (dict, list)):
        yield id(value)
        for below in value.values() if isinstance(value, dict) else value:
            yield from parts(below)


@pytest.mark.parametrize("case", [*WHOLE.values(), *cases(*sorted(CASES.keys() - {"stock"}))])
def test_as_written(case, caplog):
    old, new, log, known = case["old"], case.get("new"), case.get("log"), []
    if isinstance(old, str):
        name, _, converted = old.partition(" ")
        old, whole = WHOLE[name]["new" if converted else "old"], WHOLE[name]
        known = [] if converted else whole["log"]
        new = {**whole["new"], **(new or {})}
        new = {key: value for key, value in new.items() if value is not None}
    config, overrides = copy.deepcopy((old, case.get("overrides", {})))
    caplog.set_level(logging.INFO, logger="transformer_elmo")
    if "error" in case:
        with pytest.raises(ConfigurationError) as raised:
            apply_overrides(config, overrides)
        assert str(raised.value) == case["error"]
        return
    modern, changes = apply_overrides(config, overrides)
    log_changes(changes, "old.json")
    logged = [
        "DROPPED " * (record.levelno == logging.WARNING)
        + record.getMessage().removeprefix("AllenNLP 0.x config of old.json: ")
        for record in caplog.records
    ]
    assert logged == lines(changes)
    assert [line for line in logged if line not in known] == log
    assert modern == (old if new is None else new)
    assert (config, overrides) == (old, case.get("overrides", {}))

    # Whoever reads a config takes it apart, so that no part of it may be another.
    seen = list(parts(modern))
    assert len(seen) == len(set(seen))
    # Nothing old is left, and what isn't old is the same object.
    assert not is_old(modern)
    assert modernize(modern) == (modern, []) and modernize(modern)[0] is modern


@pytest.mark.parametrize("case", cases("stock"))
def test_without_this_package(case):
    config = copy.deepcopy(case["old"])
    if "error" in case:
        with pytest.raises(ConfigurationError) as raised:
            without_this_package(config)
        assert str(raised.value) == case["error"]
        return
    new, changes = without_this_package(config)
    assert (new, lines(changes)) == (case["new"], case["log"])
    assert config == case["old"]


def test_a_name_that_somebody_took_is_no_sign():
    embedder = {"token_embedders": {"c": {"type": "character-encoding"}}}
    model = {"type": "simple_tagger", "text_field_embedder": embedder}
    config = {"dataset_reader": {"type": "sequence_tagging"}, "model": model}
    assert is_old(config)
    TokenEmbedder.register("character-encoding")(EmptyEmbedder)
    try:
        assert not is_old(config)
    finally:
        del Registrable._registry[TokenEmbedder]["character-encoding"]


def test_objects_within_objects_without_end():
    part = {}
    for _ in range(2000):
        part = {"a": part}
    for function in (modernize, lambda config: apply_overrides(config, {})):
        with pytest.raises(ConfigurationError, match="within one another"):
            function({**WHOLE["0.8"]["old"], "model": part})
