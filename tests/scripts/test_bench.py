"""The benchmark of speeds: its text, its tables, and what a second run of the suite does."""

import json
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest


@pytest.fixture
def bench(script_module):
    return script_module("bench")


class Side:
    """Takes a second for `tokens`, or its memory runs out."""

    def __init__(self, bench, tokens, asked):
        self.bench, self.tokens, self.asked = bench, tokens, asked

    def ask(self, **request):
        self.asked.append((request["job"], request["tokens"]))
        if request["job"] == "machine":
            return {"machine": "a card", "FLOP/s": 1e12, "copies, bytes/s": 1e12}
        if request["tokens"] == 64000 and self.tokens == 10:
            raise self.bench.OutOfMemoryError("allennlp-models", "too large")
        return {"tokens": self.tokens, "seconds": 1.0, "FLOP": 98.9e12, "loss": 2.0}


def test_the_table_has_medians_and_ratios(bench):
    ours = [{"tokens": 100, "seconds": s, "loss": 3.0, "FLOP": 50.0} for s in (1, 2, 4)]
    theirs = [{"tokens": 100, "seconds": 4, "loss": 3.5, "FLOP": 50.0} for _ in range(3)]
    head, _, first, second = bench.table({"ours": ours, "/checkouts/old": theirs}, 100.0)
    assert head == "| | tokens/s | ms | of bound | loss | ours is faster |"
    assert first == "| ours | 50 | 2,000.0 | 25% | 3 |  |"
    assert second == "| old | 25 | 4,000.0 | 12% | 3.5 | 2.00 (1.00 to 4.00) |"


def test_the_suite_goes_on_with_what_is_missing(bench, tmp_path, monkeypatch):
    asked = []
    sides = {"ours": Side(bench, 30, asked), "allennlp-models": Side(bench, 10, asked)}
    monkeypatch.setattr(bench, "started", lambda *_: nullcontext(sides))
    monkeypatch.setattr(bench, "run_tests", lambda *_: "3 passed")
    options = Namespace(out=tmp_path, seconds=45.0, small=False, rounds=2, against=[])
    options.without_peer, options.tokens_per_batch = False, 2
    options.device, options.precision = "cpu", "float32"
    monkeypatch.setattr(bench.workload, "BILLION_WORDS", 30_000)
    said = "\n".join(bench.suite(options, tmp_path))
    # What comes later and takes less time isn't kept from the table.
    assert "No time left for these; run it again to go on: tests" in said and "too large" in said
    kept = tmp_path / "rows.jsonl"
    lines = kept.read_text().splitlines(keepends=True)
    assert "tests" not in [json.loads(line)["row"] for line in lines]
    # A line that was being written is not read.
    kept.write_text("".join(lines[:-1]) + lines[-1][:20])
    assert len(bench.kept_rows(kept)) == len(lines) - 1
    kept.write_text("".join(lines[:-1]))
    asked.clear()
    options.seconds = 1000.0
    said = "\n".join(bench.suite(options, tmp_path))
    # The tests' machine, and the last row: a turn of both, then two rounds and a warm-up of ours.
    assert len(asked) == 1 + 2 + 3 and "tests/device: 3 passed" in said
    report = (tmp_path / "report.md").read_text()
    # A tenth of the peak, and three times the peer.
    assert "| ours | 30 | 1,000.0 | 10.0% | 2 |  |" in report and "3.00 (3.00 to 3.00)" in report


@pytest.mark.slow
def test_it_measures_itself_and_another_checkout(bench, tmp_path, capsys, monkeypatch):
    root = Path(bench.ROOT)
    arguments = ["evaluate", "--small", "--rounds", "1", "--threads", "1", "--without-peer"]
    arguments += ["--tokens-per-batch", "200", "--vocabulary-size", "3000", "--against", str(root)]
    monkeypatch.setattr("sys.argv", ["bench.py", *arguments])
    bench.main()
    *_, ours, other = capsys.readouterr().out.splitlines()
    assert ours.startswith("| ours | ") and other.startswith(f"| {root.name} | ")
    # The same sentences and weights.
    assert ours.split(" | ")[4] == other.split(" | ")[4]
