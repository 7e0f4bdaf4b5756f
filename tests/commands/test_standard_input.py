"""Commands that read "-"."""

import io
import json

import numpy as np
import pytest

from transformer_elmo import TransformerElmo
from transformer_elmo.commands.cli import main
from transformer_elmo.commands.vector_shards import VectorShards

TEXT = "the dog ran\n\nnaïve 東京\n"
SENTENCES = ["the dog ran", "", "naïve 東京"]


@pytest.fixture
def given(monkeypatch):
    def give(content):
        stream = io.TextIOWrapper(io.BytesIO(content), "ascii")
        monkeypatch.setattr("sys.stdin", stream)

    return give


def embed(archive, output, *options):
    return main(["embed", str(archive), "-", str(output), "--average", *options])


def test_embed(lm_archive, tmp_path, given):
    given(b"\xef\xbb\xbf" + TEXT.encode())
    assert embed(lm_archive, tmp_path / "v.npz") == 0
    written = np.load(tmp_path / "v.npz")
    assert written["offsets"].tolist() == [0, 3, 3, 5]
    expected = TransformerElmo.open(lm_archive, device="cpu").embed(SENTENCES)
    assert np.abs(written["vectors"] - np.concatenate(expected)).max() < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.npz"]


def test_embed_goes_on_with_the_same_text(lm_archive, tmp_path, given, monkeypatch, capsys):
    append, left = VectorShards.append, [2]

    def fail(self, vectors):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        append(self, vectors)

    monkeypatch.setattr(VectorShards, "append", fail)
    given(TEXT.encode())
    assert embed(lm_archive, tmp_path / "v.npz") == 130
    given(TEXT.encode() + b"more\n")
    assert embed(lm_archive, tmp_path / "v.npz") == 1
    assert "begun with other settings (input)" in capsys.readouterr().err
    left[0] = 1
    given(TEXT.encode())
    # Of three sentences, one was left.
    assert embed(lm_archive, tmp_path / "v.npz") == 0
    assert np.load(tmp_path / "v.npz")["offsets"].tolist() == [0, 3, 3, 5]


def test_what_cannot_be_embedded(lm_archive, tmp_path, given, capsys):
    given(b"a\n\xff b\n")
    assert embed(lm_archive, tmp_path / "v.npz") == 1
    error = capsys.readouterr().err
    assert "not UTF-8" in error and "The standard input" in error and "/standard-input" not in error
    assert not (tmp_path / "v.npz").exists()


def test_a_bad_name_is_told_before_the_input_is_read(lm_archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert embed(lm_archive, tmp_path / "v.csv") == 1
    assert "v.csv" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["score", "fill"])
def test_score_and_fill(lm_archive, tmp_path, given, command):
    given("the ___ ran\n東京 ___\n".encode())
    output = tmp_path / "out.jsonl"
    assert main([command, str(lm_archive), "-", "--output-file", str(output)]) == 0
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    key = {"score": "tokens", "fill": "sentence"}[command]
    assert len(lines) == 2 and "東京" in lines[1][key]
