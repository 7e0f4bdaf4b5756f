"""Vectors on disk: whole or not at all, whatever happens, and work goes on where it stood."""

import os
import signal
import sys
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest

from transformer_elmo import ConfigurationError
from transformer_elmo.commands import vector_shards as module
from transformer_elmo.commands.vector_shards import partial_folder, vector_shards

SENTENCES = [np.random.default_rng(n).normal(size=(n % 4, 8)).astype(np.float32) for n in range(20)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 1200)


def begun(path, force=False, **settings):
    of_word = [8], np.dtype("float32")
    return vector_shards(path, of_word, {"layers": "top", **settings}, force)


def work(path, stop=None, **options):
    """All of the work on a file; or so many sentences of it, and how many there were before."""
    with begun(path, **options) as shards:
        before = shards.num_sentences
        if not shards.is_complete:
            for sentence in SENTENCES[before:stop]:
                shards.append(sentence)
            if stop is None:
                about = {"archive": "a", **({"part": [1, 1]} if path.name == "part.npy" else {})}
                shards.finish(about, map(str, range(20)) if path.suffix == ".hdf5" else None)
    return content_of(path) if stop is None else before


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


@pytest.mark.parametrize("name, force", [("part.npy", False), ("out.hdf5", False), ("o.npy", True)])
def test_killed_at_any_step(name, force, tmp_path):
    """There are all the vectors or the old ones, and never one set with the other's offsets."""
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = work(whole / name)
    for step, after in product(range(1, 30), (False, True)):
        folder = tmp_path / f"{step}{after}"
        folder.mkdir()
        before = expected
        if force:
            with begun(folder / name, layers="all") as old:
                old.append(np.ones((3, 8)))
                old.finish({})
            before = content_of(folder / name)
        killed = killed_at(folder / name, step, after, force=force)
        if (folder / name).exists():
            assert content_of(folder / name) in (before, expected)
        if not killed:
            break
        assert work(folder / name, force=force) == expected
        assert not list(folder.glob("*.partial")) and not list(folder.glob(".*"))
    assert 5 < step < 29


def zeroed(file):
    content = file.read_bytes()
    file.write_bytes(content[:300] + bytes(9) + content[309:])


@pytest.mark.parametrize(
    "place, damage", [(1, zeroed), (1, Path.unlink), (0, lambda shard: os.truncate(shard, 900))]
)
def test_damaged_shards(tmp_path, caplog, place, damage):
    expected = work(tmp_path / "out.npz")["out.npz"]
    path = tmp_path / "again.npz"
    work(path, 18)
    shards = sorted(partial_folder(path).glob("*.npz"))
    assert len(shards) >= 3
    damage(shards[place])
    assert work(path, 0) == int(shards[place].stem)
    assert sorted(partial_folder(path).glob("*.npz")) == shards[:place]
    assert "is damaged: the work goes on after" in caplog.text
    assert work(path)["again.npz"] == expected


@pytest.mark.parametrize("content", ['{"version": 1, "settings": {}}', "\0" * 4096])
def test_a_damaged_state_or_one_of_version_0_2(tmp_path, caplog, content):
    work(tmp_path / "out.npz", 18)
    folder = partial_folder(tmp_path / "out.npz")
    (folder / "state.json").write_text(content)
    assert work(tmp_path / "out.npz", 0) == 0 and not folder.exists()
    (message,) = caplog.messages
    assert "is damaged, or of another version: the work begins anew" in message


def test_other_settings(tmp_path):
    work(tmp_path / "out.npz", 18)
    with pytest.raises(ConfigurationError, match=r"other settings \(layers, more\).*--force"):
        work(tmp_path / "out.npz", layers="all", more=1)
    assert work(tmp_path / "out.npz", 9) == 18
    assert work(tmp_path / "out.npz", 0, layers="all", force=True) == 0
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_write_one_file(tmp_path):
    busy = pytest.raises(ConfigurationError, match="Another process is writing")
    with begun(tmp_path / "out.npz"), busy:
        work(tmp_path / "out.npz", force=True)
    assert not list(tmp_path.iterdir())


def test_a_file_that_a_crash_has_left_is_known(tmp_path, monkeypatch):
    """It is complete for the settings that it was made with, and in the way of others."""
    path = tmp_path / "out.npz"
    in_the_way = pytest.raises(ConfigurationError, match=r"out\.npz exists. Give --force")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        work(path)
    with in_the_way:
        work(path, layers="all")
    with begun(path) as shards:
        assert shards.is_complete
    assert not partial_folder(path).exists()
    with in_the_way:
        work(path)


@pytest.mark.parametrize("name", ["out.npz", "out.npy", "out.hdf5"])
def test_no_room(tmp_path, no_larger_files, name):
    path = tmp_path / name
    with no_larger_files(100), pytest.raises(ConfigurationError, match="File too large"):
        work(path, long="x" * 200)
    assert not list(tmp_path.iterdir())
    path.write_text("what was there")
    work(path, 20, force=True)
    message = "File too large.*it goes on from what .*partial holds"
    with no_larger_files(1050), pytest.raises(ConfigurationError, match=message):
        work(path, force=True)
    assert path.read_text() == "what was there"
    assert sorted(os.listdir(tmp_path)) == [name, f"{name}.partial"]
    assert work(path, 0, force=True) == 20


def test_h5py_is_missed_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigurationError, match="pip install h5py"):
        work(tmp_path / "out.hdf5")
    assert not list(tmp_path.iterdir())
