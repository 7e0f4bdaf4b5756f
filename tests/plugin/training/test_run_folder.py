import json
import multiprocessing
import os
import time
from typing import Any, Dict

import pytest
from allennlp.commands import train
from allennlp.common import Params

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import patches
from transformer_elmo.plugin.training import folder as run_folder
from transformer_elmo.plugin.training.folder import (
    LOCK,
    TRAINER,
    locked,
    of_node,
    only_begun,
    prepare,
    shared,
)
from transformer_elmo.plugin.vocabulary import RecoveredVocabulary

CONFIG: Dict[str, Dict[str, Any]] = {
    "trainer": {"num_epochs": 3, "callbacks": [{"type": "resume_data"}]},
    "model": {"a": 0.1},
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    Params(CONFIG).to_file(str(path / "config.json"))
    (path / "model_state_e0_b1.th").write_text("")
    return path


def hold(path, seconds):
    with locked(path):
        (path / "held").touch()
        time.sleep(seconds)


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    path = tmp_path / "new" / "out"
    process = multiprocessing.get_context("fork").Process(target=hold, args=(path, 60))
    process.start()
    while not (path / "held").exists():
        time.sleep(0.01)
    said = f"Another run works in .*process {process.pid} "
    with pytest.raises(ConfigurationError, match=said), locked(path):
        pass
    process.kill()
    process.join()
    with locked(path):
        pass


def share(path, seconds):
    with shared(path):
        (path / "held").touch()
        time.sleep(seconds)


@pytest.mark.parametrize("seconds", [0.3, 60.0])
def test_a_run_waits_for_the_last_steps_of_the_one_before(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(run_folder, "SECONDS_TO_WAIT", 20.0 if seconds < 1 else 0.2)
    process = multiprocessing.get_context("fork").Process(target=share, args=(tmp_path, seconds))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    try:
        if seconds < 1:
            with locked(tmp_path):
                process.join(10)
                assert process.exitcode == 0
        else:
            with pytest.raises(ConfigurationError, match="still at work"), locked(tmp_path):
                pass
    finally:
        process.kill()
        process.join()


def test_train_model_takes_the_lock(folder):
    with locked(folder), pytest.raises(ConfigurationError, match="Another run works in"):
        train.train_model(Params({"trainer": {"type": TRAINER}}), str(folder), force=True)
    assert (folder / "config.json").exists()


@pytest.mark.parametrize("name", ["line\nbreak", "tab\there"])
def test_names_with_control_characters(tmp_path, name):
    with pytest.raises(ConfigurationError, match="control character"), locked(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cant_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "out"
    with pytest.raises(ConfigurationError, match="can't be written"), locked(path):
        pass


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_to_recover(tmp_path, exists):
    path = tmp_path / "out"
    if exists:
        path.mkdir()
    with pytest.raises(ConfigurationError, match="nothing to"), locked(path, recover=True):
        pass
    assert path.exists() == exists


def test_killed_before_it_wrote_anything(tmp_path):
    with locked(tmp_path):
        pass
    (tmp_path / f".config.json.{os.uname().nodename}.999999999.part").write_text("{")
    with locked(tmp_path, recover=True):
        prepare(Params(CONFIG), tmp_path, recover=True, force=False)
    assert os.listdir(tmp_path) == [LOCK]


CHANGES = [
    ({"trainer.num_epochs": 4}, "trainer.num_epochs is 4, and was 3"),
    ({"trainer.optimizer.lr": 0.1}, "trainer.optimizer.lr is 0.1, and was missing"),
    ({"trainer.callbacks": []}, 'trainer.callbacks is [], and was [{"type": "resume_data"}]'),
]


@pytest.mark.parametrize("change, said", CHANGES)
@pytest.mark.parametrize("recover", [True, False])
def test_another_config(folder, change, said, recover):
    config = Params({**Params(CONFIG).as_flat_dict(), **change})
    config = Params(json.loads(json.dumps(nested(config.as_dict(quiet=True)))))
    with pytest.raises(ConfigurationError) as error:
        prepare(config, folder, recover, False)
    assert said in str(error.value) and str(error.value).count(", and was ") == 1


TWO = {"distributed": {"cuda_devices": [-1, -1]}}


@pytest.mark.parametrize(
    "before, now, the_same",
    [
        (TWO, {"num_gradient_accumulation_steps": 2}, True),
        ({"num_gradient_accumulation_steps": 2}, TWO, True),
        (TWO, {}, False),
        (TWO, {"num_gradient_accumulation_steps": 2, "num_epochs": 9}, False),
        ({}, {"cuda_device": -1}, True),
    ],
)
def test_another_number_of_processes(tmp_path, before, now, the_same):
    def config(changes):
        trainer = {key: value for key, value in changes.items() if key != "distributed"}
        whole = {**CONFIG, "trainer": dict(CONFIG["trainer"], **trainer)}
        return Params({**whole, **{k: v for k, v in changes.items() if k == "distributed"}})

    config(before).to_file(str(tmp_path / "config.json"))
    if the_same:
        prepare(config(now), tmp_path, recover=True, force=False)
    else:
        with pytest.raises(ConfigurationError, match=r"distributed\.cuda_devices is missing, and"):
            prepare(config(now), tmp_path, recover=True, force=False)


def nested(flat):
    config = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return config


def test_the_same_config(folder):
    prepare(Params(CONFIG), folder, recover=True, force=False)
    with pytest.raises(ConfigurationError, match="run of this config: go on with it by --recover"):
        prepare(Params(CONFIG), folder, recover=False, force=False)
    with pytest.raises(ConfigurationError, match="give one of them"):
        prepare(Params(CONFIG), folder, recover=True, force=True)
    prepare(Params(CONFIG), folder, recover=False, force=True)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("content", ["", '{"trainer": {"num_ep', "[1]", "null", "\xff", None])
def test_half_a_config(folder, content, caplog):
    path = folder / "config.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content, encoding="latin-1")
    prepare(Params(CONFIG), folder, recover=True, force=False)
    assert "the config given takes its place" in caplog.text


def test_each_machine_of_a_run_has_a_folder(tmp_path):
    # Whichever comes first.
    with locked(of_node(tmp_path, 1)) as _, locked(of_node(tmp_path, 0)):
        prepare(Params(CONFIG), of_node(tmp_path, 1), False, False)
        prepare(Params(CONFIG), of_node(tmp_path, 0), False, force=True)
        prepare(Params(CONFIG), tmp_path, False, False)
    assert sorted(os.listdir(tmp_path)) == [LOCK, "node1"]


@pytest.mark.parametrize("model", ["language_model", "simple_tagger"])
def test_a_start_without_a_checkpoint_gives_way(folder, model):
    config = Params({**CONFIG, "model": {"type": model}})
    (folder / "out.log").write_text("")
    (folder / "vocabulary").mkdir()
    assert not only_begun(config, folder)
    (folder / "model_state_e0_b1.th").unlink()
    assert only_begun(config, folder) == (model == "language_model")
    if model == "language_model":
        prepare(config, folder, recover=False, force=False)
    # What is anyone's own stays.
    (folder / "notes.txt").write_text("")
    with pytest.raises(ConfigurationError, match="run of another config"):
        prepare(config, folder, recover=False, force=False)


def test_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for recover in (True, False):
        with pytest.raises(ConfigurationError, match="run"):
            prepare(Params(CONFIG), tmp_path, recover, False)
    assert os.listdir(tmp_path) == ["thesis.tex"]


class TestVocabulary:
    @pytest.fixture
    def kept(self, folder):
        path = folder / "vocabulary"
        self.recovered("the", "cat").save_to_files(str(path))
        return path

    def recovered(self, *words):
        vocab = RecoveredVocabulary.of_run({"type": "empty"})
        for word in words:
            vocab.add_token_to_namespace(word)
        return vocab

    def test_the_same_one_in_another_order_of_a_set(self, kept):
        names = kept / "non_padded_namespaces.txt"
        lines = names.read_text().splitlines()
        assert sorted(lines) == ["*labels", "*tags"]
        for order in (lines, lines[::-1]):
            names.write_text("".join(f"{line}\n" for line in order))
            self.recovered("the", "cat").save_to_files(str(kept))
            assert names.read_text().splitlines() == order

    def test_another_one(self, kept):
        before = {path.name: path.read_bytes() for path in kept.iterdir()}
        with pytest.raises(
            ConfigurationError, match=r"line 2 of tokens\.txt is 'cat', and was 'the"
        ):
            self.recovered("cat", "the").save_to_files(str(kept))
        with pytest.raises(ConfigurationError, match=r"tokens\.txt has 4 lines, and had 3"):
            self.recovered("the", "cat", "dog").save_to_files(str(kept))
        other = self.recovered("the", "cat")
        other.add_token_to_namespace("N", "pos_tags")
        with pytest.raises(ConfigurationError, match=r"there was no pos_tags\.txt"):
            other.save_to_files(str(kept))
        assert {path.name: path.read_bytes() for path in kept.iterdir()} == before

    def test_those_of_other_models_are_allennlps(self):
        assert not any("Vocabulary" in patch.target for patch in patches.patches())
