import copy
import os
import threading
from contextlib import ExitStack

import pytest
from allennlp.commands import train
from allennlp.common import Params

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.training import folder as run_folder
from transformer_elmo.plugin.training.folder import LOCK, TRAINER, locked, of_node, prepare, shared
from transformer_elmo.plugin.vocabulary import RecoveredVocabulary


def config_with(trainer=None, **changes):
    trainer = {"num_epochs": 3, "callbacks": [{"type": "resume_data"}], **(trainer or {})}
    return Params(copy.deepcopy({"trainer": trainer, "model": {"a": 0.1}, **changes}))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    config_with().to_file(str(path / "config.json"))
    (path / "model_state_e0_b1.th").write_text("")
    return path


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    path = tmp_path / "new" / "out"
    said = f"Another run works in .*process {os.getpid()} "
    with locked(path), pytest.raises(ConfigurationError, match=said), locked(path):
        pass
    with locked(path):
        pass


def test_a_run_waits_for_the_last_processes_of_the_one_before(tmp_path, monkeypatch):
    last = ExitStack()
    last.enter_context(shared(tmp_path))
    threading.Timer(0.3, last.close).start()
    with locked(tmp_path):
        pass
    monkeypatch.setattr(run_folder, "SECONDS_TO_WAIT", 0.2)
    said = "its last processes"
    with shared(tmp_path), pytest.raises(ConfigurationError, match=said), locked(tmp_path):
        pass


def test_train_model_takes_the_lock(folder):
    with locked(folder), pytest.raises(ConfigurationError, match="Another run works in"):
        train.train_model(Params({"trainer": {"type": TRAINER}}), str(folder), force=True)
    assert (folder / "config.json").exists()


def test_what_cant_be_locked(tmp_path):
    (tmp_path / "file").write_text("")
    for name, recover, said in (
        ("file/out", False, "can't be written"),
        ("new", True, "nothing to recover"),
        ("", True, "no run's folder"),
    ):
        path = tmp_path / name
        with pytest.raises(ConfigurationError, match=said), locked(path, recover):
            prepare(config_with(), path, recover, False)
    assert sorted(os.listdir(tmp_path)) == [LOCK, "file"]


def test_killed_before_it_wrote_anything(tmp_path):
    with locked(tmp_path):
        pass
    (tmp_path / f".config.json.{os.uname().nodename}.999999999.part").write_text("{")
    with locked(tmp_path, recover=True):
        assert not prepare(config_with(), tmp_path, recover=True, force=False)
    assert os.listdir(tmp_path) == [LOCK]


TWO = {"distributed": {"cuda_devices": [-1, -1]}}


@pytest.mark.parametrize(
    "before, now, said",
    [
        ({}, {"trainer": {"optimizer": {"lr": 0.1}}}, "optimizer.lr is 0.1, and was missing"),
        ({"seed": None}, {}, "seed is missing, and was null"),
        ({}, {"trainer": {"callbacks": []}}, 'callbacks is [], and was [{"type": "resume_data"}]'),
        # Of how many processes share a step the checkpoint decides.
        (TWO, {"trainer": {"num_gradient_accumulation_steps": 2}}, None),
        ({}, {"trainer": {"cuda_device": -1}, **TWO}, None),
        (TWO, {"trainer": {"num_epochs": 9}}, "trainer.num_epochs is 9, and was 3"),
        # As version 0.2.0 wrote it.
        ({}, {"trainer": {"type": TRAINER}}, None),
    ],
)
def test_another_config(folder, before, now, said):
    config_with(**before).to_file(str(folder / "config.json"))
    if said is None:
        assert prepare(config_with(**now), folder, recover=True, force=False)
        return
    for recover in (True, False):
        with pytest.raises(ConfigurationError) as error:
            prepare(config_with(**now), folder, recover, False)
        assert said in str(error.value) and "a is" not in str(error.value)


def test_the_same_config(folder):
    assert prepare(config_with(), folder, recover=True, force=False)
    with pytest.raises(ConfigurationError, match="run of this config: go on with it by --recover"):
        prepare(config_with(), folder, recover=False, force=False)
    with pytest.raises(ConfigurationError, match="give one of them"):
        prepare(config_with(), folder, recover=True, force=True)
    assert not prepare(config_with(), folder, recover=False, force=True)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("content", ["", '{"trainer": {"num_ep', "[1]", "\xff", None])
def test_half_a_config(folder, content, caplog):
    path = folder / "config.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content, encoding="latin-1")
    assert prepare(config_with(), folder, recover=True, force=False)
    assert "config given takes its place" in caplog.text


def test_each_machine_of_a_run_has_a_folder(tmp_path):
    # Whichever comes first.
    with locked(of_node(tmp_path, 1)) as _, locked(of_node(tmp_path, 0)):
        prepare(config_with(), of_node(tmp_path, 1), False, False)
        prepare(config_with(), of_node(tmp_path, 0), False, force=True)
        prepare(config_with(), tmp_path, False, False)
    assert sorted(os.listdir(tmp_path)) == [LOCK, "node1"]


def test_a_start_without_a_checkpoint_gives_way(folder):
    (folder / "out.log").write_text("")
    (folder / "vocabulary").mkdir()
    other = config_with(model={"type": "simple_tagger"})
    with pytest.raises(ConfigurationError, match="run of another config"):
        prepare(other, folder, recover=False, force=False)
    (folder / "model_state_e0_b1.th").unlink()
    for recover in (True, False):
        assert not prepare(other, folder, recover, force=False)
    # What is anyone's own stays, and isn't gone on with.
    (folder / "notes.txt").write_text("")
    assert not prepare(config_with(), folder, recover=True, force=False)
    with pytest.raises(ConfigurationError, match="run of another config"):
        prepare(other, folder, recover=False, force=False)


def vocabulary_of(*words):
    vocab = RecoveredVocabulary.of_run({"type": "empty"})
    for word in words:
        vocab.add_token_to_namespace(word)
    return vocab


def test_the_vocabulary_is_that_of_the_run(tmp_path):
    folder = tmp_path / "vocabulary"
    vocabulary_of("the", "cat").save_to_files(str(folder))
    names = folder / "non_padded_namespaces.txt"
    # A set, which has any order.
    names.write_text("".join(f"{line}\n" for line in names.read_text().splitlines()[::-1]))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    vocabulary_of("the", "cat").save_to_files(str(folder))
    tagged = vocabulary_of("the", "cat")
    tagged.add_token_to_namespace("N", "pos_tags")
    for vocab, said in (
        (vocabulary_of("cat", "the"), r"line 2 of tokens\.txt is 'cat', and was 'the"),
        (vocabulary_of("the", "cat", "dog"), r"line 4 of .* was '\(no line\)'"),
        (tagged, r"there was no pos_tags\.txt"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            vocab.save_to_files(str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
