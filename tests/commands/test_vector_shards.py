"""Vectors on disk: whole or not at all, whatever happens, and work goes on where it stood."""

import json
import os
import signal
import sys
from itertools import product

import h5py
import numpy as np
import pytest

from transformer_elmo import ConfigurationError
from transformer_elmo.commands import vector_shards
from transformer_elmo.commands.vector_shards import VectorShards

SENTENCES = [np.random.default_rng(n).normal(size=(n % 4, 8)).astype(np.float32) for n in range(20)]
TEXTS = [f"text {n}" for n in range(20)]
NAMES = ["out.npz", "out.npy", "out.hdf5"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(vector_shards, "SHARD_BYTES", 1200)


def begin(path, settings=(), **options):
    return VectorShards(path, [8], "float32", {"layers": "top", **dict(settings)}, **options)


def work(path, **options):
    shards = begin(path, **options)
    if not shards.is_complete:
        for sentence in SENTENCES[shards.num_sentences :]:
            shards.append(sentence)
        about = {"archive": "a", **({"part": [1, 1]} if path.name == "part.npy" else {})}
        shards.finish(about, TEXTS if path.suffix == ".hdf5" else None)
    return content_of(path)


def content_of(path):
    """All that is under the name of some vectors, or beside it."""
    if path.suffix == ".hdf5":
        with h5py.File(path) as file:
            return {name: file[name][()].tolist() for name in file}
    files = sorted(p for p in path.parent.iterdir() if p.is_file() and p.name[0] != ".")
    return {file.name: file.read_bytes() for file in files}


def killed_at(path, step, after, **options):
    """Whether a process that works is killed at its n-th renaming of a file."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    replace, left = os.replace, [step]

    def dying(*arguments):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    vars(os)["replace"] = dying
    try:
        work(path, **options)
    finally:
        os._exit(0)


@pytest.mark.parametrize("name", ["part.npy", "out.hdf5"])
def test_killed_at_any_step(name, tmp_path):
    (tmp_path / "whole").mkdir()
    expected = work(tmp_path / "whole" / name)
    for step, after in product(range(1, 30), (False, True)):
        folder = tmp_path / f"{step}{after}"
        folder.mkdir()
        killed = killed_at(folder / name, step, after)
        if (folder / name).exists():
            assert content_of(folder / name) == expected
        if not killed:
            break
        assert work(folder / name) == expected
        assert not list(folder.glob("*.partial")) and not list(folder.glob(".*"))
    assert 5 < step < 29


@pytest.mark.parametrize("name", ["out.npy", "out.npz"])
def test_old_vectors_stay_whole_until_new_ones_are(name, tmp_path):
    """Of vectors and their offsets, there is never one set new and the other old."""
    path = tmp_path / name
    old = begin(path)
    old.append(np.ones((3, 8)))
    old.finish({})
    before = content_of(path)
    expected = work(path, force=True)
    for step in range(1, 12):
        for file in tmp_path.iterdir():
            file.unlink()
        for file, content in before.items():
            (tmp_path / file).write_bytes(content)
        killed = killed_at(path, step, False, settings={"more": 1}.items(), force=True)
        if path.exists():
            assert content_of(path) in (before, expected)
        assert work(path, settings={"more": 1}.items(), force=True) == expected
        if not killed:
            break
    assert 5 < step < 11


def test_files_of_arrays(tmp_path):
    work(tmp_path / "out.npy")
    offsets = np.load(tmp_path / "out.offsets.npy")
    assert np.array_equal(np.diff(offsets), [n % 4 for n in range(20)])
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert np.array_equal(vectors, np.concatenate(SENTENCES))
    work(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        assert np.array_equal(arrays["vectors"], vectors)
        assert np.array_equal(arrays["offsets"], offsets)


def cut_short(path):
    """Work with at least three shards."""
    shards = begin(path)
    for sentence in SENTENCES[:18]:
        shards.append(sentence)
    shards.close()
    folder = vector_shards.partial_folder(path)
    return folder, sorted(folder.glob("*.npz"))


@pytest.mark.parametrize(
    "damage, place, kept",
    [
        (lambda c: c[:300] + bytes(9) + c[309:], 1, True),
        (lambda c: c[:-30], 2, True),
        (lambda c: b"", 1, True),
        (None, 1, True),
        (lambda c: bytes(len(c)), 0, False),
        (None, 0, False),
    ],
)
def test_damaged_shards(tmp_path, caplog, damage, place, kept):
    expected = work(tmp_path / "out.npz")["out.npz"]
    path = tmp_path / "again.npz"
    _, shards = cut_short(path)
    assert len(shards) >= 3
    if damage:
        shards[place].write_bytes(damage(shards[place].read_bytes()))
    else:
        shards[place].unlink()
    again = begin(path)
    assert again.num_sentences == (int(shards[place].stem) if kept else 0)
    again.close()
    assert "is damaged: the work goes on after" in caplog.text
    assert work(path)["again.npz"] == expected


@pytest.mark.parametrize("content", ["[]", "{}", '{"version": 2, "settings": 3}', "\0" * 4096,
                                     '{"settings": {"layers": "top"}}'])  # fmt: skip
def test_a_damaged_state_or_one_of_version_0_2(tmp_path, caplog, content):
    folder, shards = cut_short(tmp_path / "out.npz")
    (folder / "state.json").write_text(content)
    (folder / "places.jsonl").write_text("[1, 2]\n")
    assert begin(tmp_path / "out.npz").num_sentences == 0
    (message,) = caplog.messages
    assert "is damaged, or of another version: the work begins anew" in message
    assert not any(shard.exists() for shard in (*shards, folder / "places.jsonl"))


def test_other_settings(tmp_path):
    cut_short(tmp_path / "out.npz")
    with pytest.raises(ConfigurationError, match=r"other settings \(layers, more\).*--force"):
        begin(tmp_path / "out.npz", {"layers": "all", "more": 1}.items())
    assert begin(tmp_path / "out.npz", {"layers": "all"}.items(), force=True).num_sentences == 0


@pytest.mark.parametrize("force", [False, True])
def test_two_processes_do_not_write_one_file(tmp_path, force):
    shards = begin(tmp_path / "out.npz")
    with pytest.raises(ConfigurationError, match="Another process is writing"):
        begin(tmp_path / "out.npz", force=force)
    shards.close()
    assert not list(tmp_path.iterdir())


def test_a_file_that_a_crash_has_left_is_known(tmp_path, monkeypatch):
    """It is complete for the settings that it was made with, and in the way of others."""
    path = tmp_path / "out.npz"

    def crash():
        path.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(VectorShards, "_remove_folder", lambda _: None)
            work(path)
        assert (tmp_path / "out.npz.partial").exists()

    crash()
    assert begin(path).is_complete and not (tmp_path / "out.npz.partial").exists()
    crash()
    with pytest.raises(ConfigurationError, match=r"out\.npz exists. Give --force"):
        begin(path, {"layers": "all"}.items())
    assert not (tmp_path / "out.npz.partial").exists()
    with pytest.raises(ConfigurationError, match=r"out\.npz exists. Give --force"):
        begin(path)


@pytest.mark.parametrize("name", NAMES)
def test_no_room(tmp_path, no_larger_files, name):
    path = tmp_path / name
    with no_larger_files(100), pytest.raises(ConfigurationError, match="File too large"):
        begin(path, {"long": "x" * 200}.items())
    assert not list(tmp_path.iterdir())
    path.write_text("what was there")
    shards = begin(path, force=True)
    for sentence in SENTENCES:
        shards.append(sentence)
    shards.close()
    shards = begin(path, force=True)
    message = "File too large.*it goes on from what .*partial holds"
    with no_larger_files(1050), pytest.raises(ConfigurationError, match=message):
        shards.finish({}, TEXTS)
    assert path.read_text() == "what was there"
    assert sorted(os.listdir(tmp_path)) == [name, f"{name}.partial"]
    assert begin(path, force=True).num_sentences == 20


def test_h5py_is_missed_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigurationError, match="pip install h5py"):
        begin(tmp_path / "out.hdf5")
    assert not list(tmp_path.iterdir())


def test_what_a_part_says_of_itself(tmp_path):
    work(tmp_path / "part.npy")
    said = json.loads((tmp_path / "part.part.json").read_text())
    assert said["part"] == [1, 1] and said["word_shape"] == [8] and said["num_sentences"] == 20
    assert said["settings"] == {"layers": "top"} and said["dtype"] == "float32"
