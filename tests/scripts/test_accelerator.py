"""The GPU benchmark's rows: a budget, what is written, and what a second run does."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("allennlp_models")

BENCHMARK = Path(__file__).parents[2] / "scripts" / "benchmark"


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK))
    import accelerator

    yield accelerator
    for name in ("accelerator", "accelerator_steps", "accelerator_report", "workload"):
        sys.modules.pop(name, None)


def run(accelerator, out, rows, seconds=100.0):
    """The names of rows that were measured."""
    measured = []

    def measuring(name, result):
        def measure():
            measured.append(name)
            if isinstance(result, Exception):
                raise result
            return result

        return measure

    session = SimpleNamespace(out=out, small=False, forget_models=lambda: None)
    made = [
        accelerator.Row(step, name, expected, measuring(name, result))
        for step, name, expected, result in rows
    ]
    accelerator.run(session, made, time.time() + seconds)
    return measured


ROWS = [
    ("training", "bfloat16, 2000, ours", 5, {"tokens/s": 3000.0, "TFLOP/s": 98.9}),
    ("training", "bfloat16, 2000, peer", 500, {"tokens/s": 1000.0}),
    ("environment", "device", 1, "a card"),
]


def test_rows_that_do_not_fit_are_left_for_the_next_run(accelerator, tmp_path, capsys):
    assert run(accelerator, tmp_path, ROWS) == ["bfloat16, 2000, ours", "device"]
    assert "training, bfloat16, 2000, peer" in capsys.readouterr().out
    assert run(accelerator, tmp_path, ROWS, 1000.0) == ["bfloat16, 2000, peer"]
    assert run(accelerator, tmp_path, ROWS, 1000.0) == []
    report = (tmp_path / "report.md").read_text()
    (ours,) = (line for line in report.splitlines() if line.startswith("| bfloat16, 2000, ours"))
    # A tenth of the peak; 829 million tokens at 3,000 a second; three times the peer.
    assert ours.split(" | ")[1:] == ["3,000", "98.9", "10.0%", "76.78", "3 |"]
    assert report.index("- device: a card") < report.index("| bfloat16, 2000, ours")


def test_a_row_that_fails_is_tried_again(accelerator, tmp_path, capsys):
    rows = [
        ("training", "float32, 64000, peer", 1, torch.OutOfMemoryError("CUDA out of memory. x")),
        ("training", "float32, 2000, ours", 1, ValueError("a mistake")),
    ]
    assert len(run(accelerator, tmp_path, rows)) == 2
    known = json.loads((tmp_path / "training.json").read_text())
    assert known == {"float32, 64000, peer": {"error": "CUDA out of memory"}}
    assert run(accelerator, tmp_path, rows) == ["float32, 2000, ours"]
    assert "FAILED" in capsys.readouterr().out
