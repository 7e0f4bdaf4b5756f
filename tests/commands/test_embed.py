"""`transformer-elmo embed` and `merge`, and commands that read "-"."""

import json

import h5py
import numpy as np
import pytest

from tests.small_lm import DIM, random_sentences
from transformer_elmo import __version__
from transformer_elmo.commands.vector_shards import VectorShards
from transformer_elmo.inference.elmo import TransformerElmo

SENTENCES = random_sentences(25, seed=31)
LINES = [*SENTENCES[:7], "", json.dumps({"tokens": SENTENCES[7].split()}), *SENTENCES[8:]]
EMBEDDED = [*SENTENCES[:7], "", *SENTENCES[7:]]
LENGTHS = [len(sentence.split()) for sentence in EMBEDDED]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(lm_archive):
    return TransformerElmo.from_archive(lm_archive, device="cpu").embed(EMBEDDED, "all")


@pytest.fixture
def embed(command, lm_archive, text, tmp_path):
    """The file that is written; or, if none is, what the command says."""

    def run(output, *arguments, text=text, **options):
        output = tmp_path / output
        return command("embed", lm_archive, text, output, *arguments, **options) or output

    return run


@pytest.fixture
def stop_after(monkeypatch):
    """Has work on vectors stop after some sentences, as by Control-C, or go on again."""
    append, left = VectorShards.append, [-1]

    def stopping(self, vectors):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        append(self, vectors)

    monkeypatch.setattr(VectorShards, "append", stopping)
    return lambda count: left.__setitem__(0, count)


@pytest.mark.parametrize(
    "arguments, pick",
    [
        (["--all"], lambda layers: layers),
        (["--top"], lambda layers: layers[-1]),
        (["--average"], lambda layers: layers.mean(0)),
        (["--layer", "1"], lambda layers: layers[1]),
        (["--weights=-1,0,2"], lambda layers: 2 * layers[2] - layers[0]),
    ],
)
def test_hdf5(embed, expected, lm_archive, arguments, pick):
    with h5py.File(embed("out.hdf5", *arguments, "--max-tokens", 100), "r") as file:
        assert set(file) == {*map(str, range(len(LINES))), "sentence_to_index"}
        for number, layers in enumerate(expected):
            found = file[str(number)]
            assert found.dtype == np.float32 and found.shape == pick(layers).shape
            assert np.abs(found[()] - pick(layers)).max(initial=0) < 1e-5
        index = json.loads(file["sentence_to_index"][0])
        assert all(EMBEDDED[int(number)] == sentence for sentence, number in index.items())
        assert set(index) == set(EMBEDDED)
        assert set(file.attrs) == {"archive", "layers", "weights", "transformer_elmo"}
        assert file.attrs["archive"] == str(lm_archive)
        assert file.attrs["transformer_elmo"] == __version__


def test_arrays(embed, expected, tmp_path):
    layers = np.concatenate(expected, axis=1).swapaxes(0, 1)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    with np.load(embed("vectors.npz", "--all", "--dtype", "float16")) as arrays:
        assert arrays["vectors"].dtype == np.float16
        assert arrays["vectors"].shape == (offsets[-1], 3, 2 * DIM)
        assert np.abs(arrays["vectors"] - layers).max() < 1e-2
        assert np.array_equal(arrays["offsets"], offsets)
    vectors = np.load(embed("vectors.npy", "--top"), mmap_mode="r")
    assert vectors.dtype == np.float32 and vectors.shape == (offsets[-1], 2 * DIM)
    assert np.abs(vectors - layers[:, -1]).max() < 1e-5
    assert np.array_equal(np.load(tmp_path / "vectors.offsets.npy"), offsets)


def test_goes_on_where_it_stood(embed, stop_after, tmp_path, monkeypatch):
    monkeypatch.setattr("transformer_elmo.text.reader.SECTION", 1)
    arguments = ["again.npy", "--top", "--max-tokens", 10]
    whole = embed("whole.npy", *arguments[1:])
    stop_after(10)
    assert "goes on from here" in embed(*arguments, status=130)
    assert not (tmp_path / "again.npy").exists() and (tmp_path / "again.npy.partial").is_dir()
    message = embed("again.npy", "--all", "--precision", "bfloat16", status=1)
    assert "other settings (layers, options)" in message
    # So many are left.
    stop_after(len(LINES) - 10)
    # To the bit: batches are cut where they would have been.
    assert embed(*arguments).read_bytes() == whole.read_bytes()


@pytest.fixture
def merge(command, tmp_path):
    def run(name, *arguments, **options):
        return command("merge", tmp_path / name, *arguments, **options) or tmp_path / name

    return run


@pytest.fixture
def parts(embed):
    return [embed(f"{k}.npy", "--all", "--part", f"{k}/4") for k in (3, 1, 4, 2)]


def test_parts(embed, merge, parts, tmp_path, text):
    whole = np.load(embed("whole.npy", "--all", "--max-tokens", 40))
    assert np.abs(np.load(merge("merged.npy", *parts)) - whole).max() < 1e-5
    offsets = np.load(tmp_path / "whole.offsets.npy")
    assert np.array_equal(np.load(tmp_path / "merged.offsets.npy"), offsets)
    assert np.array_equal(np.load(merge("merged.npz", *parts))["offsets"], offsets)
    with (
        h5py.File(merge("merged.hdf5", *parts, "--sentences", text)) as merged,
        h5py.File(embed("whole.hdf5", "--all")) as expected,
    ):
        assert set(merged) == set(expected) and dict(merged.attrs) == dict(expected.attrs)
        assert np.array_equal(merged["sentence_to_index"], expected["sentence_to_index"])
        assert merged["3"].shape == expected["3"].shape


def test_more_parts_than_lines(embed, merge, text):
    text.write_text("the cat\n\n")
    parts = [embed(f"{k}.npy", "--top", "--part", f"{k}/3") for k in range(1, 4)]
    assert np.array_equal(np.load(merge("few.npy", *parts)), np.load(embed("w.npy", "--top")))


def test_parts_that_are_not_of_one_work(embed, merge, parts, tmp_path):
    whole = embed("whole.npy", "--all")
    (tmp_path / "short.txt").write_text("the cat\n")
    for given, message in (
        (parts[:2], "Of 4 parts, 2, 4 are missing"),
        ([*parts, parts[0]], "are both part 3 of 4"),
        ([*parts[:3], whole], "is no part of a text's vectors"),
        ([*parts, "--sentences", tmp_path / "short.txt"], "has 1 lines, and these are vectors of"),
    ):
        assert message in merge("no.npy", *given, status=1)
    content = parts[0].read_bytes()
    for damaged in (content[:900] + bytes(64) + content[964:], b""):
        parts[0].write_bytes(damaged)
        assert "3.npy" in merge("no.npy", *parts, status=1)
    assert not (tmp_path / "no.npy").exists()


@pytest.mark.parametrize("part", ["0/3", "4/3", "a/b"])
def test_parts_that_there_are_not(embed, part, capsys):
    with pytest.raises(SystemExit):
        embed("out.npy", "--top", "--part", part)
    assert "such as 3/16" in capsys.readouterr().err


def test_keys_are_those_of_the_elmo_command(embed, text):
    """AllenNLP 0.9 took lines without the spaces around them."""
    text.write_text('  the cat \t\r\n\n { "tokens": ["sat", "on"] }\nthe cat\n')
    with h5py.File(embed("out.hdf5", "--top"), "r") as file:
        assert json.loads(file["sentence_to_index"][0]) == {"the cat": "3", "": "1", "sat on": "2"}
        assert [len(file[str(number)]) for number in range(4)] == [2, 0, 2, 2]


def test_what_cannot_be_embedded(embed, tmp_path, text):
    taken, latin, broken = (tmp_path / name for name in ("taken.hdf5", "latin.txt", "broken.txt"))
    taken.write_text("mine")
    latin.write_bytes("café\n".encode("latin-1"))
    broken.write_text('{"tokens": [\nthe cat\n')
    before = sorted(tmp_path.iterdir())
    for arguments, given, expected in (
        (["taken.hdf5", "--top"], text, "taken.hdf5 exists. Give --force"),
        (["out.txt", "--top"], text, "must end with one of .hdf5"),
        (["none/out.npy", "--top"], text, "no folder"),
        (["out.npz", "--top", "--part", "1/2"], text, "A part goes to a .npy file"),
        (["out.npy", "--layer", "7"], text, "got 7"),
        (["out.npy", "--top"], tmp_path / "gone.txt", "No file matches"),
        (["out.npy", "--top"], latin, "line 1: byte 4"),
        (["out.npy", "--top"], broken, "Line 1 begins like JSON"),
        (["out.npy", "--top", "--segment-length", 3], text, "segments of at least 4"),
        (["out.npy", "--top", "-o", '{"model'], text, "overrides are not JSON"),
        (["out.npy", "--top", "--weights-file", "gone.th"], text, "no weights file gone.th"),
    ):
        assert expected in embed(*arguments, text=given, status=1)
    assert taken.read_text() == "mine"
    # Work that never began is not kept.
    assert sorted(tmp_path.iterdir()) == before


def test_standard_input(embed, stop_after, lm_archive, monkeypatch):
    arguments, lines = ["v.npz", "--average"], "the dog ran\n\nnaïve 東京\n".encode()
    stop_after(2)
    embed(*arguments, text="-", stdin=b"\xef\xbb\xbf" + lines, status=130)
    message = embed(*arguments, text="-", stdin=lines, status=1)
    assert "begun with other settings (input)" in message
    # Of three sentences, one was left.
    stop_after(1)
    written = np.load(embed(*arguments, text="-", stdin=b"\xef\xbb\xbf" + lines))
    assert written["offsets"].tolist() == [0, 3, 3, 5]
    sentences = ["the dog ran", "", "naïve 東京"]
    expected = TransformerElmo.open(lm_archive, device="cpu").embed(sentences)
    assert np.abs(written["vectors"] - np.concatenate(expected)).max() < 1e-5
    # A bad name is told before the input is read.
    monkeypatch.setattr("sys.stdin", None)
    assert "v.csv" in embed("v.csv", "--average", text="-", status=1)
