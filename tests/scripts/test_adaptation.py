"""The benchmark of adaptations: its texts, its tables, and where it goes on after a stop."""

import json
from types import SimpleNamespace

import pytest


@pytest.fixture
def adaptation(script_module):
    return script_module("adaptation")


def test_texts(adaptation, tmp_path, monkeypatch):
    """Those of Brown are written like this."""
    lines = [f"The/at-hl dog{n}/nn-tl-hl chien/fw-nn ran/vbd 1/2/cd ./." for n in range(40)]
    for name, part in (("ca01", lines[:20]), ("cr09", lines[20:]), ("CONTENTS", ["x/y"] * 9)):
        (tmp_path / name).write_text("\n\n".join(part), encoding="latin-1")
    runs = adaptation.runs
    monkeypatch.setattr(runs, "HELDOUT", 5)
    paths = runs.write_split(runs.brown(tmp_path), tmp_path, "brown", 120)
    read = {name: path.read_text().splitlines() for name, path in paths.items()}
    assert len(read["heldout"]) == 5 and len(read["train"]) == 15
    again = runs.write_split(runs.brown(tmp_path), tmp_path, "more", 200)
    assert again["heldout"].read_text() == paths["heldout"].read_text()
    tagged = [runs.plain(token) for token in next(runs.tagged_brown(tmp_path))]
    assert tagged == "The###at dog0###nn chien###nn ran###vbd 1/2###cd .###.".split()
    with pytest.raises(SystemExit, match="no file of Brown"):
        list(runs.brown(tmp_path / "elsewhere"))


def test_verses(adaptation, tmp_path):
    (tmp_path / "kjv.txt").write_text("Ge1:1 In the beginning, God's.\n\nGenesis\nRe1:2 And\n")
    found = adaptation.runs.kjv(tmp_path / "kjv.txt")
    assert list(map(" ".join, found)) == ["In the beginning , God's .", "And"]


def test_what_was_found_is_not_done_again(adaptation, tmp_path, monkeypatch):
    measures = {"perplexity": 9.0, "listed_perplexity": 8.0, "bits_per_character": 2.0}
    better = {name: value / 2 for name, value in measures.items()}
    rows: list = [
        {"way": way, "seed": seed, "steps": [0, last], "found": {"0": found, "5": found}}
        for way, seed, last, found in (
            ("random", 0, 5, measures),
            ("random", 1, 5, better),
            ("scratch", 0, 9, measures),
            ("before", 0, 5, measures),
        )
    ]
    # What was there before is measured once.
    del rows[-1]["found"]["5"]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = []
    task = SimpleNamespace(folder=tmp_path, model=asked.append)
    task.trained = lambda *_: {"0": measures, "5": better}
    monkeypatch.setattr(adaptation, "Adaptation", lambda *_: task)
    options = SimpleNamespace(ways=["before", "random", "scratch"], seeds=[0, 1], steps=[0, 5])
    found = list(adaptation.rows_table(options))
    assert asked == ["scratch", "scratch"]
    assert list(adaptation.rows_table(options)) == found and len(asked) == 2
    before, random, scratch = found[2:]
    # Over its own vocabulary, a perplexity is not for that column.
    assert before == "| before |  | 8.0 | 2.000 |  |  |  |"
    assert random.startswith("| random | 6.8 (4.5 to 9.0) | 6.0 (4.0 to 8.0) |")
    assert scratch.endswith("| 2.000 | 4.5 | 4.0 | 1.000 |")
