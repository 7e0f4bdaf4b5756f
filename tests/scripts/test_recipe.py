"""The benchmark of recipes: which runs it makes, its arithmetic, and where it goes on."""

import math
import sys
from argparse import Namespace

import pytest

from tests.small_lm import random_sentences


@pytest.fixture
def recipe(script_module):
    return script_module("recipe")


def made(row, loss):
    return {**row, "curve": [math.exp(loss + 1), math.exp(loss)], "seconds": 5.0}


def test_rates_are_chosen_by_seed_0(recipe):
    options = Namespace(sizes=["1x16"], variants=["baseline", "muon"], rates=[0.1, 0.2], seeds=2)
    options.steps, options.tokens, rows = 10, 200, []
    first = recipe.missing(options, rows)
    assert [(r["variant"], r["rate"], r["seed"]) for r in first] == [
        (variant, rate, 0) for variant in options.variants for rate in options.rates
    ]
    # What isn't tuned yet waits.
    rows = [made(row, abs(row["rate"] - 0.1 * (1 + (row["variant"] == "muon")))) for row in first]
    assert {row["variant"] for row in recipe.missing(options, rows[:3]) if row["seed"]} == {
        "baseline"
    }
    rest = recipe.missing(options, rows)
    assert [(r["variant"], r["rate"], r["seed"]) for r in rest] == [
        ("baseline", 0.1, 1),
        ("muon", 0.2, 1),
    ]
    rows += [made(row, 3.0 - (row["variant"] == "muon")) for row in rest]
    assert recipe.missing(options, rows) == []
    lines = list(recipe.table(options, rows))
    assert "| muon | 0.100 | 0.000 |" in lines
    # Differences of the seeds are 0 and -1.
    assert lines[-1].startswith("| muon, 0.2 | 2 | -0.500 | 0.500 | 2.000, 1.000 | 5 |")


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(recipe, tmp_path, capsys, monkeypatch):
    text = tmp_path / "text"
    text.write_text("\n".join(random_sentences(700)))
    arguments = ["--text", str(text), "--sizes", "1x16", "--steps", "5", "--samples", "0"]
    arguments += ["--variants", "baseline", "linear_decay + muon", "--rates", "0.01"]
    for seeds in ("1", "2"):
        command = ["recipe.py", str(tmp_path / "out"), *arguments, "--seeds", seeds]
        monkeypatch.setattr(sys, "argv", command)
        recipe.main()
    rows = recipe.runs.lines_of(tmp_path / "out" / "recipe.jsonl")
    assert [row["seed"] for row in rows] == [0, 0, 1, 1]
    assert all(len(row["curve"]) == 5 and 1 < row["curve"][-1] < 1000 for row in rows)
    assert "| linear_decay + muon, 0.01 | 2 | " in capsys.readouterr().out
