"""What a sentence is, in Python and on a line; and that whatever is read can be written."""

import io
import json
import subprocess
import sys
from collections import Counter, UserString, deque
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from allennlp.common import Params
from allennlp.data import DatasetReader
from allennlp.data.fields import TextField
from allennlp.models import load_archive
from allennlp.predictors import Predictor

from tests.small_lm import reader_config
from transformer_elmo import ConfigurationError, LanguageModelingDataLoader, TransformerElmo
from transformer_elmo.commands.cli import main
from transformer_elmo.text.corpus import sentence_in
from transformer_elmo.text.vocabulary import count_words

WORDS = ["the", "naïve", "東京"]
LONE = "\ud83d"


class Table:
    """As pandas has it: it iterates over the names of its columns."""

    columns = ("tokens",)

    def __iter__(self):
        return iter(self.columns)


READ = [
    *(kind(WORDS) for kind in (list, tuple, deque, np.array)),
    *({key: WORDS} for key in ("tokens", "words")),
    {"sentence": None, "tokens": tuple(WORDS), "id": 3},
]
NO_SENTENCES = [
    *({}, {"token": WORDS}, {"tokens": "the cat"}, {"text": ["the cat"]}),
    *({"tokens": {"words": WORDS}}, dict.fromkeys(WORDS).keys(), {1: "the"}.values()),
    *(kind(WORDS) for kind in (set, frozenset, Counter, iter, lambda words: map(str, words))),
    *(b"the cat", b"", bytearray(b""), [b"the"], [WORDS], ["the", 3], ["the", None]),
    *(np.array([WORDS]), np.zeros(2), UserString("the cat"), Table(), None, 3, True),
]


def test_what_is_no_sentence():
    assert [sentence_in(value) for value in NO_SENTENCES] == [None] * len(NO_SENTENCES)


def test_what_is_a_sentence(elmo):
    assert [elmo.words(value) for value in READ] == [WORDS] * len(READ)
    expected, *others = elmo.embed([WORDS, *READ])
    assert all(np.allclose(expected, found, atol=1e-5) for found in others)
    text = {"text": "the ___ sat"}
    assert elmo.fill(text) == elmo.fill(text["text"]) == elmo.fill(["the", "___", "sat"])
    # In a text, a gap may stand anywhere.
    assert elmo.fill({"sentence": "the ___."}) == elmo.fill(["the", "___", "."])


def test_columns_are_read_and_tables_are_not(elmo):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": ["the cat", "a dog"], "tokens": [WORDS, ["a"]]})
    records = table[["tokens"]].to_dict("records")
    for sentences in (table["tokens"], table["tokens"].values, records):
        assert [scores.tokens[1:-1] for scores in elmo.score(sentences)] == [WORDS, ["a"]]
    assert elmo.words(pandas.Series(WORDS)) == WORDS
    with pytest.raises(TypeError):
        elmo.score(table)
    assert sentence_in(table) is sentence_in(table.iloc[0]) is None


@pytest.mark.parametrize(
    "methods, given, message",
    [
        ("embed score score_tokens perplexity", [{"the"}], "A sentence is a string, a list"),
        ("fill fill_all words", {"the"}, "A sentence is a string, a list of strings"),
        ("embed embed_padded embed_tensors", "the cat", "Expected a list of sentences, got"),
        ("score score_tokens evaluate", {"the"}, "Expected a list of sentences, got"),
        ("perplexity", "It rained .", "put it in a list"),
        ("fill fill_all", ["the ___", "a ___ ran"], "Fill them one by one"),
    ],
)
def test_every_method_says_what_it_takes(elmo, methods, given, message):
    for method in methods.split():
        with pytest.raises((TypeError, ValueError), match=message):
            list(getattr(elmo, method)(given))


def test_no_more_unknown_tokens_than_tokens(lm_archive):
    elmo = TransformerElmo.open(lm_archive)
    elmo._reader.start_tokens, elmo._reader.end_tokens = [], []
    (scores,) = elmo.score([["zzz", "the", "zzz"]])
    assert (scores.num_tokens, scores.to_json()["num_out_of_vocabulary"]) == (2, 1)
    metrics = elmo.evaluate([["zzz"], ["zzz", "zzz"]])
    assert (metrics["num_tokens"], metrics["num_out_of_vocabulary"]) == (1, 1)


LINES = ["the cat sat .", "a dog", "the naïve 東京", "birds flew under a house ."]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The same text, plain and as JSON of every kind."""
    folder = tmp_path_factory.mktemp("texts")
    objects = [
        {"text": LINES[0]},
        {"sentence": LINES[1]},
        {"id": 1, "tokens": LINES[2].split()},
        LINES[3].split(),
    ]
    plain, lines = folder / "plain.txt", folder / "lines.jsonl"
    plain.write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    lines.write_text("\n".join(["[]", *map(json.dumps, objects), ""]), encoding="utf-8")
    return plain, lines


@pytest.mark.parametrize(
    "tokenizer, indexer", [("just_spaces", "elmo_characters"), ("character", "characters")]
)
def test_training_reads_json(texts, vocabulary, tokenizer, indexer):
    config = {**reader_config(), "tokenizer": tokenizer}
    config["token_indexers"]["token_characters"] = {"type": indexer}
    reader = DatasetReader.from_params(Params(config))
    batches = []
    for path in texts:
        loader = LanguageModelingDataLoader(reader, path, max_tokens=4000, quiet=True)
        loader.index_with(vocabulary)
        batches += [batch["source"]["tokens"]["tokens"].tolist() for batch in loader]
    assert len(batches[1]) == len(LINES)
    assert (batches[0] == batches[1]) == (tokenizer == "just_spaces")
    # Words stay what they are.
    fields = [cast(TextField, instance["source"]) for instance in reader.read(texts[1])]
    assert ["<S>", *WORDS, "</S>"] in [list(map(str, field)) for field in fields]


def test_vocabularies_read_json(texts, tmp_path):
    plain, json_lines = (count_words(path, ["<S>"], quiet=True) for path in texts)
    assert plain == json_lines
    broken = tmp_path / "broken.jsonl"
    broken.write_text('the cat\n\n{"txt": "the cat"}\n')
    with pytest.raises(ConfigurationError, match=r"Line 3 of .*broken.jsonl is JSON, but not"):
        count_words(broken, quiet=True)


def test_commands_read_json(lm_archive, elmo, texts, tmp_path):
    assert elmo.evaluate(texts[0]) == pytest.approx(elmo.evaluate(texts[1]), rel=1e-6)
    model, scores = str(lm_archive), []
    for text in map(str, texts):
        assert main(["score", model, text, "--output-file", f"{text}.score"]) == 0
        scores.append(Path(f"{text}.score").read_text().splitlines())
    assert json.loads(scores[1].pop(0))["num_tokens"] == 1  # Boundary tokens alone.
    assert scores[0] == scores[1]
    assert main(["compare", model, model, text, "--output-file", str(tmp_path / "compare")]) == 0
    report = ["report", model, "-o", str(tmp_path / "r.html"), "--sentences", text]
    assert main([*report, "--num-sentences", "9"]) == 0
    assert (tmp_path / "r.html").read_text().count("<h3>Sentence") == 4


def test_an_empty_text_has_no_vectors(lm_archive, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    arguments = ["embed", str(lm_archive), str(tmp_path / "empty.txt"), str(tmp_path / "v.npz")]
    assert main([*arguments, "--top"]) == 0
    assert np.load(tmp_path / "v.npz")["offsets"].tolist() == [0]


def test_every_writer_writes_lone_surrogates(lm_archive, tmp_path, capfdbinary):
    """JSON may have them, and UTF-8 may not."""
    h5py = pytest.importorskip("h5py")
    model, text = str(lm_archive), str(tmp_path / "in.jsonl")
    Path(text).write_text('the cat\n{"tokens": ["\\ud83d", "a\\ud83d", "the"]}\nthe ___\n')
    assert main(["score", model, text]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line)["tokens"][1] for line in lines] == ["the", LONE, "the"]
    assert main(["fill", model, text]) == 0
    assert len(capfdbinary.readouterr().out.splitlines()) == 3
    assert main(["compare", model, model, text, "--output-file", str(tmp_path / "c")]) == 0
    assert main(["report", model, "-o", str(tmp_path / "r.html"), "--sentences", text]) == 0
    assert "�" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert main(["vocab", text, str(tmp_path / "words"), "--min-count", "1"]) == 0
    words = (tmp_path / "words" / "tokens.txt").read_text(encoding="utf-8").split("\n")
    assert words == ["</S>", "<S>", "@@UNKNOWN@@", "the", "___", "cat", ""]
    assert main(["embed", model, text, str(tmp_path / "v.hdf5"), "--top"]) == 0
    with h5py.File(tmp_path / "v.hdf5", "r") as file:
        assert f"{LONE} a{LONE} the" in json.loads(file["sentence_to_index"][0])
    predictor: Any = Predictor.from_archive(load_archive(model))
    line = predictor.dump_line(predictor.predict([LONE, "the"])).encode()
    assert json.loads(line)["tokens"][1:3] == [LONE, "the"]


def test_long_words_are_counted(lm_archive, tmp_path, caplog):
    """The model sees so many bytes of each."""
    text = tmp_path / "in.txt"
    text.write_text("".join(f"the {letter * 16} {letter * 17}\n" for letter in "ქక"), "utf-8")
    assert main(["score", str(lm_archive), str(text), "--output-file", f"{text}.jsonl"]) == 0
    said = "Of 2 words, the model sees the first 48 bytes of UTF-8 only."
    assert [r.getMessage() for r in caplog.records if "bytes" in r.getMessage()] == [said]


@pytest.mark.parametrize(
    "command, status",
    [
        ("vocab - words --quiet <&-", 1),
        ("vocab - words --quiet <in.txt >&-", 0),
        ("config own_text >/dev/full", 1),
        ("config own_text 2>&- >&- <&-", 0),
        ("--help | true", 0),
    ],
)
def test_streams_of_a_process(tmp_path, command, status):
    """That are closed, full, or read no further."""
    (tmp_path / "in.txt").write_text("the cat\n" * 3)
    result = subprocess.run(
        f"set -o pipefail; {sys.executable} -m transformer_elmo.commands.cli {command}",
        shell=True,
        executable="/bin/bash",
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (status, "")
    # One message, or none.
    assert len(result.stderr.splitlines()) == status, result.stderr
    if status == 0 and "vocab" in command:
        assert (tmp_path / "words" / "tokens.txt").read_text().endswith("cat\nthe\n")


@pytest.mark.parametrize(
    "command",
    [
        *("score A -", "fill A -", "perplexity A -", "compare A A -"),
        "report A -o page.html --force --sentences -",
    ],
)
def test_a_dash_is_the_standard_input(lm_archive, tmp_path, monkeypatch, capsys, command):
    """UTF-8, whatever the encoding of the streams."""
    monkeypatch.chdir(tmp_path)
    arguments = [str(lm_archive) if part == "A" else part for part in command.split()]
    for text, status in ("the ___ 東京\n".encode(), 0), (b"\xff\n", 1):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), "ascii"))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
        assert main(arguments) == status
    assert "The standard input, line 1: byte 1" in capsys.readouterr().err
