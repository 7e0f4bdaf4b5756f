import errno
import json
import os
import sys
from typing import Any

import h5py
import numpy as np
import pytest
from allennlp.commands import main

import transformer_elmo.commands.embed  # noqa: F401
from tests.small_lm import DIM, random_sentences
from transformer_elmo import ConfigurationError, __version__
from transformer_elmo.commands import cli
from transformer_elmo.commands import vector_shards as vectors_file
from transformer_elmo.commands.embed import embed_file
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


class Stopped(BaseException):
    """A crash: nothing catches it."""


def stop_after(monkeypatch, count, error):
    append = vectors_file.VectorsFile.append
    left = [count]

    def stopping(self, vectors):
        if not left[0]:
            raise error
        left[0] -= 1
        append(self, vectors)

    monkeypatch.setattr(vectors_file.VectorsFile, "append", stopping)


@pytest.mark.parametrize("killed", [False, True])
def test_goes_on_where_it_stood(lm_archive, text, tmp_path, monkeypatch, killed):
    options: Any = {"archive_options": {"device": -1, "max_tokens": 10}}
    monkeypatch.setattr("transformer_elmo.text.reader.SECTION", 1)
    whole, again = tmp_path / "whole.npy", tmp_path / "again.npy"
    embed_file(str(lm_archive), str(text), str(whole), "top", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 10, Stopped())
        if killed:
            # Nothing is noted at the end, then.
            patch.setattr(vectors_file, "WORDS_PER_CHECKPOINT", 30)

            def die(self):
                self._vectors.flush()
                # As the system does for a process that is no more.
                self._lock.release()

            patch.setattr(vectors_file.VectorsFile, "close", die)
        with pytest.raises(Stopped):
            embed_file(str(lm_archive), str(text), str(again), "top", **options)
    assert not again.exists() and (tmp_path / "again.npy.partial").is_dir()

    # As if the machine had stopped in the middle of the next sentence.
    with open(tmp_path / "again.npy.partial" / "vectors.npy", "ab") as file:
        file.write(b"half a vector")

    embedded = []
    stream = TransformerElmo.embed_stream

    def watched(self, sentences, *arguments, **options):
        sentences = list(sentences)
        embedded.extend(sentences[options["skip"] :])
        return stream(self, sentences, *arguments, **options)

    monkeypatch.setattr(TransformerElmo, "embed_stream", watched)
    embed_file(str(lm_archive), str(text), str(again), "top", **options)
    done = len(LINES) - len(embedded)
    assert 0 < done < 10 if killed else done == 10
    # To the bit: batches are cut where they would have been.
    assert again.read_bytes() == whole.read_bytes()
    assert np.array_equal(
        np.load(tmp_path / "again.offsets.npy"), np.load(tmp_path / "whole.offsets.npy")
    )
    assert not (tmp_path / "again.npy.partial").exists()


@pytest.fixture
def partial(lm_archive, text, tmp_path, monkeypatch):
    """What is left of work cut short, with some places to go on from; and what it should become."""
    options: Any = {"archive_options": {"device": -1, "max_tokens": 4}}
    monkeypatch.setattr("transformer_elmo.text.reader.SECTION", 2)

    def embed(name, **more):
        embed_file(str(lm_archive), str(text), str(tmp_path / name), "top", **options, **more)
        return (tmp_path / name).read_bytes()

    whole = embed("whole.npy")
    with monkeypatch.context() as patch:
        patch.setattr(vectors_file, "WORDS_PER_CHECKPOINT", 30)
        stop_after(patch, 20, Stopped())
        with pytest.raises(Stopped):
            embed("again.npy")
    return tmp_path / "again.npy.partial", lambda: embed("again.npy") == whole


def zeroed(content, begin, size):
    return content[:begin] + bytes(size) + content[begin + size :]


@pytest.mark.parametrize(
    "name, damage, kept",
    [
        ("vectors.npy", lambda c: zeroed(c, 20_000, 4096), True),
        ("vectors.npy", lambda c: zeroed(c, 300, 64), False),
        ("vectors.npy", lambda c: c[:-100], True),
        ("vectors.npy", lambda c: b"", False),
        ("lengths.raw", lambda c: zeroed(c, 18 * 8, 8), True),
        ("lengths.raw", lambda c: c[8:], False),
        ("places.jsonl", lambda c: c[:-20], True),
        ("places.jsonl", lambda c: c.replace(b"[", b"{"), False),
        ("places.jsonl", lambda c: b"[1, 2]\n" + c, False),
        ("places.jsonl", lambda c: c.splitlines()[-1] * 3, False),
        ("state.json", lambda c: b"[]", False),
        ("state.json", lambda c: b"{}", False),
        ("state.json", lambda c: b'{"settings": 3}', False),
        ("state.json", lambda c: b"\0" * 4096, False),
    ],
)
def test_damage_in_work_cut_short(partial, caplog, name, damage, kept):
    folder, is_finished = partial
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    caplog.set_level("INFO", "transformer_elmo")
    assert is_finished()
    told = [record for record in caplog.records if "Going on after" in record.message]
    assert bool(told) is kept
    warnings = [r for r in caplog.records if r.levelname == "WARNING" and "damaged" in r.message]
    assert name == "places.jsonl" or len(warnings) == 1
    assert not folder.exists()


def test_files_of_work_cut_short_that_are_gone(partial):
    folder, is_finished = partial
    (folder / "vectors.npy").unlink()
    assert is_finished()


@pytest.mark.parametrize("name", ["out.npz", "out.npy", "out.hdf5"])
def test_cut_short_after_it_got_its_name(embed, tmp_path, monkeypatch, name, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(
            vectors_file.VectorsFile, "_remove_folder", lambda _: (_ for _ in ()).throw(Stopped())
        )
        with pytest.raises(Stopped):
            embed(name, "--top")
    folder = tmp_path / f"{name}.partial"
    assert folder.exists()
    before = (tmp_path / name).read_bytes()
    (folder / "lengths.raw").unlink()
    # Other vectors than these are a file that is in the way.
    assert f"{name} exists. Give --force" in refused(embed, name, "--layer", "0")
    assert not folder.exists()
    assert f"{name} exists. Give --force" in refused(embed, name, "--top")
    with monkeypatch.context() as patch:
        patch.setattr(
            vectors_file.VectorsFile, "_remove_folder", lambda _: (_ for _ in ()).throw(Stopped())
        )
        with pytest.raises(Stopped):
            embed(name, "--top", "--force")
    embed(name, "--top")
    assert not folder.exists()
    if name == "out.npy":
        assert (tmp_path / name).read_bytes() == before


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
        stop_after(patch, 3, Stopped())
        with pytest.raises(Stopped):
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
        patch.setattr(vectors_file.os, "fsync", lambda _: (_ for _ in ()).throw(full))
        for name in ("full.hdf5", "full.npz", "full.npy"):
            message = refused(embed, name, "--top")
            assert "no space is left" in message and f"{name}.partial" in message
    assert not list(tmp_path.glob("full.*[a-z5]")) or all(
        path.name.endswith(".partial") for path in tmp_path.glob("full.*")
    )
    with h5py.File(embed("full.hdf5", "--top"), "r") as file:
        assert len(file) == len(LINES) + 1

    # While the work is put under its name, what is there under that name stays.
    before = (tmp_path / "full.hdf5").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("h5py.File", lambda *_: (_ for _ in ()).throw(full))
        assert "no space is left" in refused(embed, "full.hdf5", "--all", "--force")
    assert (tmp_path / "full.hdf5").read_bytes() == before


def test_a_real_limit_while_hdf5_is_written(embed, tmp_path, monkeypatch, no_larger_files):
    """HDF5's own library ends the whole process when it closes a file that can't be written."""
    whole = embed("whole.hdf5", "--top")
    finish = vectors_file.VectorsFile.finish

    def limited(self, sentences):
        with no_larger_files(whole.stat().st_size - 2000):
            finish(self, sentences)

    with monkeypatch.context() as patch:
        patch.setattr(vectors_file.VectorsFile, "finish", limited)
        message = refused(embed, "again.hdf5", "--top")
    assert "again.hdf5 can't be written: File too large" in message
    assert "goes on from what again.hdf5.partial holds" in message
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["again.hdf5.partial", "text.txt", "whole.hdf5"]
    with h5py.File(embed("again.hdf5", "--top")) as again, h5py.File(whole) as expected:
        assert set(again) == set(expected)
        assert all(np.array_equal(again[key], expected[key]) for key in map(str, range(9)))


def test_no_room_to_begin(tmp_path, no_larger_files):
    """Nothing has been made, and nothing stays."""
    for name in ("full.hdf5", "full.npz", "full.npy"):
        with no_larger_files(100), pytest.raises(ConfigurationError, match="File too large"):
            vectors_file.VectorsFile(tmp_path / name, [4], "float32", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_cut_short_while_it_gets_its_name(embed, tmp_path, monkeypatch, force, call):
    """Of the vectors and their offsets, a `.npy` file never has one set new and the other old."""
    names = ("out.npy", "out.offsets.npy")
    before = {}
    if force:
        embed(names[0], "--layer", "0")
        before = {name: (tmp_path / name).read_bytes() for name in names}
    replace, left = os.replace, [call]

    def dying(source, target):
        # Settings, offsets, that it is done, vectors.
        left[0] -= 1
        if left[0] < 1:
            raise Stopped()
        replace(source, target)

    arguments = ["--top", "--force"] if force else ["--top"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        if call < 5:
            with pytest.raises(Stopped):
                embed(names[0], *arguments)
        else:
            # After the last name was given, the folder was still there.
            patch.setattr(vectors_file.shutil, "rmtree", lambda *_, **options: None)
            embed(names[0], *arguments)
    if (tmp_path / names[0]).exists() and call < 5:
        assert {name: (tmp_path / name).read_bytes() for name in names} == before
    vectors = np.load(embed(names[0], *arguments[: 1 + (force or call == 5)], "--force"))
    offsets = np.load(tmp_path / names[1])
    assert offsets[-1] == len(vectors) == sum(len(sentence.split()) for sentence in EMBEDDED)
    assert not (tmp_path / "out.npy.partial").exists()


def test_offsets_that_a_crash_has_left_are_no_hindrance(embed, tmp_path, monkeypatch):
    def stopping(source, target, replace=os.replace):
        if target == tmp_path / "out.npy":
            raise Stopped()
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(vectors_file.os, "replace", stopping)
        with pytest.raises(Stopped):
            embed("out.npy", "--top")
    assert (tmp_path / "out.offsets.npy").exists()
    embed("out.npy", "--top")
    (tmp_path / "out.npy").unlink()
    assert "out.offsets.npy exists" in refused(embed, "out.npy", "--top")


def test_two_processes_do_not_write_one_file(embed, tmp_path, monkeypatch):
    messages = []
    append = vectors_file.VectorsFile.append

    def appending(self, vectors):
        if not messages:
            messages.append(None)
            for arguments in (["--top"], ["--top", "--force"], ["--all", "--force"]):
                messages.append(refused(embed, "out.npz", *arguments))
        append(self, vectors)

    monkeypatch.setattr(vectors_file.VectorsFile, "append", appending)
    with np.load(embed("out.npz", "--top")) as arrays:
        assert len(arrays["offsets"]) == len(LINES) + 1
    assert all("Another process is writing" in message for message in messages[1:])


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
