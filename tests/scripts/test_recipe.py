"""The benchmark of paired runs: its design, its arithmetic, and where it goes on after a stop."""

import argparse
import importlib.util
import json
import random
import time
from pathlib import Path

import pytest

from tests.small_lm import random_sentences

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark" / "recipe.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up.
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(__import__("sys").modules, "recipe", module)
        spec.loader.exec_module(module)
        yield module


def test_the_design_has_all_combinations(recipe):
    levels = {tuple(recipe.is_on(f, v) for f in recipe.FACTORS[:3]) for v in recipe.DESIGN}
    assert len(levels) == len(recipe.DESIGN) == 8 and recipe.DESIGN[0] == recipe.BASELINE
    assert not any(recipe.is_on("muon", variant) for variant in recipe.DESIGN)


def test_effects_are_found_again(recipe):
    true = dict(zip(recipe.FACTORS, (-0.03, 0.02, 0.0)))
    noise = random.Random(0)
    results = {}
    for seed in range(3):
        for variant in recipe.DESIGN:
            run = recipe.Run("2x64", variant, 0.005, seed, 10, 500)
            on = sum(value for name, value in true.items() if recipe.is_on(name, variant))
            results[run] = {"loss": 5 + seed + on + noise.gauss(0, 0.002)}
    # A seed that isn't complete doesn't count.
    results[recipe.Run("2x64", "baseline", 0.005, 3, 10, 500)] = {"loss": 100.0}
    lines = list(recipe.effects(list(results), results))
    assert "24 runs, 3 seeds" in lines[1]
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert len(rows) == len(true)
    for row, (name, value) in zip(rows, true.items()):
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[0] == name
        assert float(cells[1]) == pytest.approx(value, abs=0.003)
        assert 0.0004 < float(cells[2]) < 0.0016


def test_planned_runs_follow_the_best_rates(recipe):
    options = argparse.Namespace(
        **{"rates": [0.1, 0.2], "sizes": ["1x16", "2x32"], "seeds": 2, "steps": 10, "tokens": 500},
        **{"large_batch": 1000, "variants": None, "factorial": False},
    )
    plan, results = recipe.Plan(options), {}
    first = [run for run in plan.runs(results) if run.tokens == options.tokens]
    assert {(run.variant, run.rate) for run in first} == {
        (variant, rate) for variant in (recipe.BASELINE, recipe.RECIPE) for rate in options.rates
    }
    for run in first:
        results[run] = {"loss": run.rate if run.variant == recipe.BASELINE else -run.rate}
    rest = [run for run in plan.runs(results) if run not in results]
    assert all(
        run.rate == 0.1 for run in rest if run.variant == recipe.BASELINE and run.tokens == 500
    )
    assert {run.rate for run in rest if run.steps == 6} == {0.2}
    assert {run.variant for run in rest if run.tokens == 1000} == {recipe.BASELINE, "muon"}


def test_chosen_variants_are_tuned_with_one_seed(recipe):
    options = argparse.Namespace(
        **{"rates": [0.1, 0.2], "sizes": ["1x16"], "seeds": 3, "steps": 10, "tokens": 500},
        **{"variants": ["baseline", "muon"], "factorial": False, "share": 0.6},
    )
    plan, results = recipe.Plan(options), {}
    first = list(plan.runs(results))
    assert {(run.variant, run.rate, run.seed, run.steps) for run in first} == {
        (variant, rate, 0, 10) for variant in options.variants for rate in options.rates
    }
    for run in first[:-1]:
        results[run] = {"loss": abs(run.rate - 0.1 * (1 + (run.variant == "muon")))}
    # What isn't tuned yet waits.
    assert {run.variant for run in plan.runs(results) if run.seed} == {"baseline"}
    results[first[-1]] = {"loss": 0.0}
    rest = [run for run in plan.runs(results) if run not in results]
    assert [(run.variant, run.rate, run.seed, run.steps) for run in rest] == [
        ("muon", 0.2, 0, 6),
        *(("baseline", 0.1, 1, 10), ("muon", 0.2, 1, 10), ("muon", 0.2, 1, 6)),
        *(("baseline", 0.1, 2, 10), ("muon", 0.2, 2, 10), ("muon", 0.2, 2, 6)),
    ]
    # One rate is the best, tried or not.
    options.rates = [0.1]
    assert {run.seed for run in plan.runs({})} == {0, 1, 2}


def test_pairs(recipe):
    found = recipe.compared({0: 4.9, 1: 4.7, 5: 1.0}, {0: 5.0, 1: 5.0, 2: 5.0})
    assert found == pytest.approx((2, -0.2, 0.1))


def test_schedules(recipe):
    noam = [recipe.factor("noam", step, 40) for step in (1, 4, 16)]
    assert noam == pytest.approx([0.25, 1.0, 0.5])
    falling = [recipe.factor("warmup_stable_decay", step, 40) for step in (2, 4, 16, 28, 40)]
    assert falling == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])


def test_it_goes_on_where_it_stopped(recipe, tmp_path, capfd):
    text = tmp_path / "text"
    text.write_text("\n".join(random_sentences(300)))
    variants = ["baseline", "linear_decay"]
    options = {
        **{"out": tmp_path / "out", "text": text, "sizes": ["1x16"], "steps": 4, "tokens": 200},
        **{"large_batch": 400, "rates": [0.01], "heldout": 10, "seconds": 60.0, "jobs": 1},
        **{"device": "cpu", "precision": "float32", "points": 2, "factorial": False},
        **{"share": None},
    }
    for seeds in (1, 2):
        recipe.run_all(
            argparse.Namespace(**options, seeds=seeds, variants=variants), time.monotonic()
        )
    path = tmp_path / "out" / "runs.jsonl"
    made = [recipe.key(json.loads(line)) for line in path.read_text().splitlines()]
    assert [(run.variant, run.seed) for run in made] == [(v, s) for s in (0, 1) for v in variants]
    results = recipe.read_results(path)
    result = results[made[0]]
    assert [step for step, *_ in result["curve"]] == [2, 4]
    assert result["curve"][-1][-1] == result["loss"] and 1 < result["loss"] < 6
    lines = list(recipe.table(results))
    assert any(line.startswith("| linear_decay | 0.01 | 2 |") for line in lines)
    # The curve's last point is the mean of the seeds' losses.
    last = sum(results[run]["loss"] for run in made if run.variant == "baseline") / 2
    (row,) = (line for line in lines if line.startswith("| baseline | ") and "(" in line)
    assert row.split(" | ")[-1].startswith(f"{last:.3f} (") and "| | 2 | 4 |" in lines
    # A line that was being written is not read.
    with path.open("a") as file:
        file.write('{"size": "1x16"')
    assert recipe.read_results(path) == results


def test_times_of_steps_are_ratios_to_the_first(recipe, tmp_path):
    text = tmp_path / "text"
    text.write_text("\n".join(random_sentences(300)))
    options = {
        **{"text": text, "sizes": ["1x16"], "steps": 3, "tokens": 200, "large_batch": 400},
        **{"heldout": 10, "device": "cpu", "precision": "float32"},
    }
    variants = ["muon", "baseline"]
    lines = list(recipe.step_times(argparse.Namespace(**options, variants=variants)))[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        [f"| 1x16 {variant}", tokens] for tokens in ("200", "400") for variant in variants
    ]
    assert all(("1.000 (1.000 to 1.000)" in line) == ("muon" in line) for line in lines)


@pytest.mark.parametrize("text", ["", "\n\n", "one sentence alone\n"])
def test_text_without_sentences_is_refused(recipe, tmp_path, text):
    path = tmp_path / "text"
    path.write_text(text)
    with pytest.raises(SystemExit, match="too few to train on"):
        recipe.read_data(path, [200], 10)
