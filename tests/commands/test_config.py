"""`transformer-elmo config`: what it prints can be used where it is saved."""

from pathlib import Path

import pytest

from transformer_elmo.commands import config
from transformer_elmo.pretrained.jsonnet import VARIABLES, evaluated_file

FOLDER = Path(__file__).resolve().parents[2] / "training_config"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jsonnet"))


def test_it_lists_them(command):
    lines = command("config").splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line.split()) > 5 for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_prints_means_the_same_elsewhere(command, name, tmp_path):
    saved = tmp_path / "mine.jsonnet"
    saved.write_text(command("config", name), encoding="utf-8")
    variables = dict.fromkeys(VARIABLES, "somewhere")
    original = evaluated_file(FOLDER / f"{name}.jsonnet", variables)
    assert evaluated_file(saved, variables) == original


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["quickstrat"], "no config quickstrat. There are"),
        (["own_text", "--size", "7"], "its sizes are 1M, 10M, 100M"),
        (["quickstart.jsonnet", "--size", "7"], "it has no sizes"),
    ],
)
def test_what_there_is_not(command, arguments, message):
    assert message in command("config", *arguments, status=1)


def test_an_installed_package_has_them_inside(tmp_path, monkeypatch):
    inside = tmp_path / "transformer_elmo" / "training_config"
    inside.mkdir(parents=True)
    monkeypatch.setattr(config, "_PACKAGE", tmp_path / "transformer_elmo")
    (inside / "mine.jsonnet").write_text("// What it is.\n{}\n")
    assert config.configs() == {"mine": inside / "mine.jsonnet"}
    assert config.summary(inside / "mine.jsonnet") == "What it is."
