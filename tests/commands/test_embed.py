import errno
import json
import sys

import h5py
import numpy as np
import pytest
from allennlp.commands import main

import transformer_elmo.commands.embed  # noqa: F401
from tests.small_lm import DIM, random_sentences
from transformer_elmo import __version__
from transformer_elmo.commands import cli
from transformer_elmo.commands.vector_shards import VectorShards
from transformer_elmo.inference.elmo import TransformerElmo

SENTENCES = random_sentences(25, seed=31)
LINES = [*SENTENCES[:7], "", json.dumps({"tokens": SENTENCES[7].split()}), *SENTENCES[8:]]
EMBEDDED = [*SENTENCES[:7], "", *SENTENCES[7:]]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(lm_archive):
    return TransformerElmo.from_archive(lm_archive, device="cpu").embed(EMBEDDED, "all")


@pytest.fixture
def embed(monkeypatch, lm_archive, text, tmp_path):
    """`allennlp embed`, but for its search for plugins."""
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)

    def run(output, *arguments, text=text, archive=lm_archive):
        output = tmp_path / output
        command = ["allennlp", "embed", str(archive), str(text), str(output), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        main()
        return output

    return run


def refused(run, *arguments, **options):
    """The one line that is printed."""
    with pytest.raises(SystemExit) as exit:
        run(*arguments, **options)
    message = exit.value.code
    assert message.startswith("allennlp embed: ") and "\n" not in message
    return message


def test_hdf5(embed, expected):
    for name, arguments, pick in (
        ("all.hdf5", ["--all"], lambda layers: layers),
        ("top.h5", ["--top"], lambda layers: layers[-1]),
        ("average.hdf5", ["--average"], lambda layers: layers.mean(0)),
        ("one.hdf5", ["--layer", "1"], lambda layers: layers[1]),
        ("sum.hdf5", ["--weights=-1,0,2"], lambda layers: 2 * layers[2] - layers[0]),
    ):
        with h5py.File(embed(name, *arguments, "--max-tokens", "100"), "r") as file:
            assert set(file) == {*map(str, range(len(LINES))), "sentence_to_index"}
            for number, layers in enumerate(expected):
                found = file[str(number)]
                assert found.dtype == np.float32 and found.shape == pick(layers).shape
                assert np.abs(found[()] - pick(layers)).max(initial=0) < 1e-5
            assert file["sentence_to_index"].shape == (1,)
            index = json.loads(file["sentence_to_index"][0])
            assert all(EMBEDDED[int(number)] == sentence for sentence, number in index.items())
            assert set(index) == set(EMBEDDED)


def test_arrays(embed, expected, tmp_path):
    layers = np.concatenate(expected, axis=1).swapaxes(0, 1)
    lengths = [len(sentence.split()) for sentence in EMBEDDED]
    offsets = np.concatenate([[0], np.cumsum(lengths)])

    with np.load(embed("vectors.npz", "--all", "--dtype", "float16")) as arrays:
        assert set(arrays) == {"vectors", "offsets"}
        assert arrays["vectors"].dtype == np.float16
        assert arrays["vectors"].shape == (offsets[-1], 3, 2 * DIM)
        assert np.abs(arrays["vectors"] - layers).max() < 1e-2
        assert np.array_equal(arrays["offsets"], offsets)

    vectors = np.load(embed("vectors.npy", "--top"), mmap_mode="r")
    assert vectors.dtype == np.float32 and vectors.shape == (offsets[-1], 2 * DIM)
    assert np.abs(vectors - layers[:, -1]).max() < 1e-5
    assert np.array_equal(np.load(tmp_path / "vectors.offsets.npy"), offsets)
    assert not list(tmp_path.glob("*.partial"))


def stop_after(patch, count, error):
    append, left = VectorShards.append, [count]

    def stopping(self, vectors):
        if not left[0]:
            raise error
        left[0] -= 1
        append(self, vectors)

    patch.setattr(VectorShards, "append", stopping)


def test_goes_on_where_it_stood(embed, tmp_path, monkeypatch):
    monkeypatch.setattr("transformer_elmo.text.reader.SECTION", 1)
    arguments = ["again.npy", "--top", "--max-tokens", "10"]
    whole = embed("whole.npy", *arguments[1:])
    with monkeypatch.context() as patch:
        stop_after(patch, 10, RuntimeError("stopped"))
        with pytest.raises(RuntimeError, match="stopped"):
            embed(*arguments)
    again = tmp_path / "again.npy"
    assert not again.exists() and (tmp_path / "again.npy.partial").is_dir()

    embedded = []
    stream = TransformerElmo.embed_stream

    def watched(self, sentences, *arguments, **options):
        sentences = list(sentences)
        embedded.extend(sentences[options["skip"] :])
        return stream(self, sentences, *arguments, **options)

    monkeypatch.setattr(TransformerElmo, "embed_stream", watched)
    embed(*arguments)
    assert len(LINES) - len(embedded) == 10
    # To the bit: batches are cut where they would have been.
    assert again.read_bytes() == whole.read_bytes()
    offsets = [path.with_suffix(".offsets.npy").read_bytes() for path in (again, whole)]
    assert offsets[0] == offsets[1] and not (tmp_path / "again.npy.partial").exists()


def zeroed(content, begin, size):
    return content[:begin] + bytes(size) + content[begin + size :]


def test_what_an_hdf5_file_says_of_itself(embed, lm_archive):
    with h5py.File(embed("out.hdf5", "--weights=1,0,1"), "r") as file:
        assert dict(file.attrs) == {
            "archive": str(lm_archive),
            "layers": "mix",
            "weights": "[1.0, 0.0, 1.0]",
            "transformer_elmo": __version__,
        }


def command(*arguments):
    return cli.main(list(map(str, arguments)))


def test_parts(embed, tmp_path, text, capsys):
    parts = [embed(f"{k}.npy", "--all", "--part", f"{k}/4") for k in (3, 1, 4, 2)]
    whole = embed("whole.npy", "--all", "--max-tokens", "40")
    for name in ("merged.npy", "merged.hdf5", "merged.npz"):
        assert command("merge", tmp_path / name, *parts, "--sentences", text) == 0
    assert np.abs(np.load(tmp_path / "merged.npy") - np.load(whole)).max() < 1e-5
    offsets = np.load(tmp_path / "whole.offsets.npy")
    assert np.array_equal(np.load(tmp_path / "merged.offsets.npy"), offsets)
    with (
        h5py.File(tmp_path / "merged.hdf5") as merged,
        h5py.File(embed("whole.hdf5", "--all")) as expected,
    ):
        assert set(merged) == set(expected) and dict(merged.attrs) == dict(expected.attrs)
        assert np.array_equal(merged["sentence_to_index"], expected["sentence_to_index"])
        assert merged["3"].shape == expected["3"].shape
    assert not list(tmp_path.glob("*.partial"))

    other = embed("other.npy", "--top", "--part", "2/4")
    capsys.readouterr()
    for given, message in (
        (parts[:3], "Of 4 parts, 2 is missing"),
        (parts[:2], "Of 4 parts, 2, 4 are missing"),
        ([*parts, parts[0]], "are both part 3 of 4"),
        ([*parts[:3], other], "they differ in layers, word_shape"),
        ([*parts[:3], whole], "is no part of a text's vectors"),
    ):
        assert command("merge", tmp_path / "no.npy", *given) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    content = parts[0].read_bytes()
    for damaged in (zeroed(content, 900, 64), content[:-8], b""):
        parts[0].write_bytes(damaged)
        assert command("merge", tmp_path / "no.npy", *parts) == 1
        assert "3.npy" in capsys.readouterr().err
    assert not (tmp_path / "no.npy").exists()


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/-2", "1/0"])
def test_parts_that_there_are_not(embed, tmp_path, part, capsys):
    with pytest.raises(SystemExit):
        embed("out.npy", "--top", "--part", part)
    assert "such as 3/16" in capsys.readouterr().err
    assert "A part goes to a .npy file" in refused(embed, "out.npz", "--top", "--part", "1/2")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_more_parts_than_lines(embed, tmp_path, text):
    text.write_text("the cat\n\n")
    parts = [embed(f"{k}.npy", "--top", "--part", f"{k}/5") for k in range(1, 6)]
    assert command("merge", tmp_path / "merged.npy", *parts) == 0
    assert np.array_equal(np.load(tmp_path / "merged.npy"), np.load(embed("whole.npy", "--top")))


def test_work_begun_with_other_settings(embed, text, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3, RuntimeError("stopped"))
        with pytest.raises(RuntimeError, match="stopped"):
            embed("out.hdf5", "--top")
    message = refused(embed, "out.hdf5", "--all")
    assert "other settings (layers)" in message and "--force" in message
    text.write_text("the cat\nsat on\n")
    assert "other settings (input)" in refused(embed, "out.hdf5", "--top")
    with h5py.File(embed("out.hdf5", "--all", "--force"), "r") as file:
        assert set(file) == {"0", "1", "sentence_to_index"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.hdf5", "text.txt"]


def test_no_space_left(embed, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(SystemExit):
            embed("full.hdf5", "--top")
    with monkeypatch.context() as patch:
        patch.setattr("h5py.File", lambda *_: (_ for _ in ()).throw(full))
        message = refused(embed, "full.hdf5", "--top")
    assert "no space is left" in message and "full.hdf5.partial" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full.hdf5.partial", "text.txt"]
    with h5py.File(embed("full.hdf5", "--top"), "r") as file:
        assert len(file) == len(LINES) + 1


def test_work_that_never_began_is_not_kept(embed, tmp_path, text):
    text.write_text('{"tokens": [\nthe cat\n')
    assert "Line 1" in refused(embed, "out.npy", "--top")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_keys_are_those_of_the_elmo_command(embed, text):
    """AllenNLP 0.9 took lines without the spaces around them."""
    text.write_text('  the cat \t\r\n\n { "tokens": ["sat", "on"] }\nthe cat\n')
    with h5py.File(embed("out.hdf5", "--top"), "r") as file:
        assert json.loads(file["sentence_to_index"][0]) == {"the cat": "3", "": "1", "sat on": "2"}
        assert [len(file[str(number)]) for number in range(4)] == [2, 0, 2, 2]


def test_control_c(embed, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(SystemExit) as exit:
            embed("out.npy", "--top")
    assert exit.value.code == 130 and "goes on from here" in capsys.readouterr().err
    assert len(np.load(embed("out.npy", "--top")))


def test_what_cannot_be_embedded(embed, tmp_path, text):
    text_before = text.read_bytes()
    taken = tmp_path / "taken.hdf5"
    taken.write_text("mine")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("caf\u00e9\n".encode("latin-1"))
    broken = tmp_path / "broken.txt"
    broken.write_text('the cat\n{"tokens": [\n')
    for arguments, options, expected in (
        (["taken.hdf5", "--top"], {}, "taken.hdf5 exists. Give --force"),
        (["out.txt", "--top"], {}, "must end with one of .hdf5"),
        (["none/out.npy", "--top"], {}, "no folder"),
        (["out.npy", "--layer", "7"], {}, "got 7"),
        (["out.npy", "--weights", "1,2"], {}, "weights must be 3 numbers"),
        (["out.npy", "--top"], {"text": tmp_path / "gone.txt"}, "No file matches"),
        (["out.npy", "--top"], {"text": latin}, "line 1: byte 4"),
        (["out.npy", "--top", "--force"], {"text": broken}, "Line 2 begins like JSON"),
        (["out.npy", "--top"], {"archive": tmp_path / "gone.tar.gz"}, "no archive"),
        (["out.npy", "--top", "--segment-length", "3", "--force"], {}, "segments of at least 4"),
        (["out.npy", "--top", "--max-tokens", "0", "--force"], {}, "max_tokens must be at least 1"),
        (["out.npy", "--top", "-o", '{"model'], {}, "overrides are not JSON"),
        (["out.npy", "--top", "--cuda-device", "99"], {}, "no device 'cuda:99'"),
        (["out.npy", "--top", "--weights-file", "gone.th"], {}, "no weights file gone.th"),
    ):
        assert expected in refused(embed, *arguments, **options)
    assert taken.read_text() == "mine" and text.read_bytes() == text_before
    assert not list(tmp_path.glob("out.np?"))
