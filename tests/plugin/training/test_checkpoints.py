import errno
import hashlib
import os
import shutil

import pytest
import torch

from tests.plugin.tiny_run import make_trainer, write_corpus
from transformer_elmo import files
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.training.checkpointer import CrashSafeCheckpointer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    make_trainer(write_corpus(folder / "corpus"), folder / "out", num_epochs=1).train()
    return folder / "out"


@pytest.fixture
def folder(trained, tmp_path):
    # Whatever characters its name has.
    return shutil.copytree(trained, tmp_path / "a*b[1]")


def newest(folder, kind="model_state", age=0):
    place = sorted(CrashSafeCheckpointer(str(folder))._find_all_checkpoints())[-1 - age]
    return folder / "{}_e{}_b{}.th".format(kind, *place)


def place_of(state):
    state = state.trainer_state
    return f"e{state['epochs_completed']}_b{state['batches_in_epoch_completed']}"


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def fold(path):
    path.unlink()
    path.mkdir()


def poison(path):
    state = torch.load(path)
    state["output.weight"][0, 1] = torch.nan
    torch.save(state, path)


@pytest.mark.parametrize("kind", ["model_state", "training_state"])
@pytest.mark.parametrize("damage", [truncate, flip, os.unlink, fold])
def test_the_one_before_a_damaged_one_is_taken(folder, damage, kind, caplog):
    path, before = newest(folder, kind), newest(folder, age=1)
    damage(path)
    state = CrashSafeCheckpointer(str(folder)).load_checkpoint()
    assert before.name == f"model_state_{place_of(state)}.th"
    said = [r.getMessage() for r in caplog.records if r.name.endswith("checkpointer")]
    assert len(said) == 1 and path.name in said[0] and place_of(state) in said[0]
    # What is damaged no longer passes for a checkpoint, and is still there.
    assert newest(folder) == before
    assert any(name.endswith(".damaged") for name in os.listdir(folder))


@pytest.mark.parametrize("damage", [truncate, flip, poison])
def test_also_where_version_0_2_0_left_no_checksums(folder, damage):
    for sums in folder.glob("checksums*"):
        sums.unlink()
    before = newest(folder, age=1)
    damage(newest(folder))
    state = CrashSafeCheckpointer(str(folder)).load_checkpoint()
    assert before.name == f"model_state_{place_of(state)}.th"


def test_none_is_whole(folder):
    for path in folder.glob("*_state_*"):
        truncate(path)
    listed = sorted(os.listdir(folder))
    with pytest.raises(ConfigurationError, match=r"No checkpoint in .* is whole"):
        CrashSafeCheckpointer(str(folder)).load_checkpoint()
    assert sorted(os.listdir(folder)) == listed


def test_checksums_are_those_of_sha256sum(folder):
    (sums,) = folder.glob("checksums_e1_b0.sha256")
    listed = dict(line.split("  ")[::-1] for line in sums.read_text().splitlines())
    assert set(listed) == {newest(folder, kind).name for kind in ("model_state", "training_state")}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_one_is_removed_with_all_its_parts(folder):
    checkpointer = CrashSafeCheckpointer(str(folder))
    before = checkpointer._find_all_checkpoints()
    for place in sorted(before)[1:]:
        checkpointer._remove_checkpoint(*place)
    assert len(before) > 2 and len(list(folder.glob("*_e*_b*"))) == 3


@pytest.fixture
def trainer(trained, tmp_path):
    return make_trainer(trained.parent / "corpus", tmp_path / "new")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_full_disk_leaves_what_there_was(trainer, tmp_path, monkeypatch):
    trainer._checkpointer.save_checkpoint(trainer)
    before = contents(tmp_path / "new")
    sizes = {name.partition("_")[0]: len(content) for name, content in before.items()}

    class File(files._File):
        room = 0

        def write(self, data):
            File.room -= memoryview(data).nbytes
            if File.room < 0:
                self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise self.error
            return super().write(data)

    monkeypatch.setattr(files, "_File", File)
    for room in (0, sizes["training"] // 2, sizes["training"] + sizes["model"] // 2):
        File.room = room
        trainer._batches_in_epoch_completed += 1
        with pytest.raises(ConfigurationError, match=f"{tmp_path}.*no space is left"):
            trainer._checkpointer.save_checkpoint(trainer)
        assert contents(tmp_path / "new") == before


def test_weights_with_nan_are_not_written(trainer, tmp_path):
    best = tmp_path / "new" / "best.th"
    trainer._save_model_state(str(best))
    before = contents(tmp_path / "new")
    with torch.no_grad():
        trainer.model.output.weight[0, 2] = torch.nan
    for save in (
        lambda: trainer._save_model_state(str(best)),
        lambda: trainer._checkpointer.save_checkpoint(trainer),
    ):
        with pytest.raises(ConfigurationError, match=r"1 of 4 numbers .* output.weight are NaN"):
            save()
    assert contents(tmp_path / "new") == before


def test_what_a_killed_process_left_is_removed(trainer, tmp_path):
    trainer._checkpointer.save_checkpoint(trainer)
    before = contents(tmp_path / "new")
    for name in (
        f".model_state_e0_b7.th.{os.uname().nodename}.999999999.part",
        "training_state_e0_b7.th",
        "checksums_e0_b7.sha256",
    ):
        (tmp_path / "new" / name).write_text("half")
    assert trainer._checkpointer.load_checkpoint() is not None
    assert contents(tmp_path / "new") == before
