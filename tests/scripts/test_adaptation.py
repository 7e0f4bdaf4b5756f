"""The benchmark of adaptations: its texts, its tables, and where it goes on after a stop."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark" / "adaptation.py"


@pytest.fixture(scope="module")
def adaptation():
    spec = importlib.util.spec_from_file_location("benchmark_adaptation", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as monkeypatch:
        # It puts its folders there.
        monkeypatch.setattr(sys, "path", [*sys.path])
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path):
    """Two texts of Brown, as they are written."""
    lines = [f"The/at-hl dog{n}/nn-tl-hl chien/fw-nn ran/vbd 1/2/cd ./." for n in range(40)]
    for name, part in (("ca01", lines[:20]), ("cr09", lines[20:]), ("CONTENTS", ["x/y"] * 9)):
        (tmp_path / name).write_text("\n\n".join(part), encoding="latin-1")
    return tmp_path


def test_texts(adaptation, package, tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "MAX_WORDS", 120)
    monkeypatch.setattr(adaptation, "HELDOUT", 5)
    monkeypatch.setattr(adaptation, "TAGGED", {"train": 6, "validation": 4, "test": 7})
    paths = adaptation.write_split(adaptation.brown(package), tmp_path, "brown", 120)
    read = {name: path.read_text().splitlines() for name, path in paths.items()}
    assert len(read["heldout"]) == 5 and len(read["train"]) == 15
    again = adaptation.write_split(adaptation.brown(package), tmp_path, "more", 200)
    assert again["heldout"].read_text() == paths["heldout"].read_text()
    tagged = adaptation.write_tagged(package, tmp_path)
    lines = [line for path in tagged.values() for line in path.read_text().splitlines()]
    assert len(lines) == 17 and lines[0].split()[0] == "The###at"
    assert {token.rpartition("###")[2] for token in lines[0].split()} == {
        *("at", "nn", "vbd", "cd", ".")
    }
    assert " 1/2###cd " in lines[0]
    # What the tagger sees, no language model has.
    words = [" ".join(token.rpartition("###")[0] for token in line.split()) for line in lines]
    assert not set(words) & {*read["train"], *read["heldout"]} and len(set(words)) == 17


def test_verses(adaptation, tmp_path):
    (tmp_path / "kjv.txt").write_text("Ge1:1 In the beginning, God's.\n\nGenesis\nRe1:2 And\n")
    assert list(adaptation.kjv(tmp_path / "kjv.txt")) == [
        ["In", "the", "beginning", ",", "God's", "."],
        ["And"],
    ]


def test_what_was_found_is_not_done_again(adaptation, tmp_path, monkeypatch, capsys):
    measures = {"perplexity": 9.0, "listed_perplexity": 8.0, "bits_per_character": 2.0}
    rows = [
        {"seed": seed, "way": way, "steps": steps, "measures": {"0": measures, "5": measures}}
        for seed, way, steps in (
            *((0, "random", [0, 5]), (1, "random", [0, 5])),
            *((0, "scratch", [0, 9]), (0, "before", [0, 5])),
        )
    ]
    (tmp_path / "results.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = []
    monkeypatch.setattr(adaptation, "model_for", lambda way, *_: asked.append(way))
    better = {name: value / 2 for name, value in measures.items()}
    monkeypatch.setattr(adaptation, "trained", lambda *_: {0: measures, 5: better})
    options = SimpleNamespace(
        output=tmp_path, ways=["before", "random", "scratch"], seeds=[0, 1], steps=[0, 5]
    )
    made = {"vocab": None, "archive": None, "config": None, "text": {"train": ""}}
    found = adaptation.measured(options, made)
    assert asked == ["scratch", "scratch"]
    assert adaptation.measured(options, made) == found and len(asked) == 2
    capsys.readouterr()
    adaptation.print_table(found, [0, 5])
    before, random, scratch = capsys.readouterr().out.splitlines()[3:]
    # Over its own vocabulary, a perplexity is not for that column.
    assert [cell.strip() for cell in before.split("|")[2:4]] == ["", ""] and "| 8.0 |" in before
    assert random.split("|")[2:4] == [" 9.0 ", " 9.0 "] and " 4.5 | 8.0 | 4.0 |" in scratch


def test_cells(adaptation):
    assert adaptation.cell([], ".1f") == "" and adaptation.cell([1.0, 1.01], ".1f") == "1.0"
    assert adaptation.cell([1.0, 2.0, 4.5], ".1f") == "2.5 (1.0 to 4.5)"
