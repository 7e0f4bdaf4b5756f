"""Files that an archive holds for keys of its config."""

import json

import pytest

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy import archived_files, find_key

CONFIG = {"a": {"b": [{"c": 1}, 2]}, "d.e": 3, "": {"": 4}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a", {"b": [{"c": 1}, 2]}),
        ("a.b.0.c", 1),
        ("a.b.1", 2),
        (".", 4),
        *((key, None) for key in ("a.c", "a.b.2", "a.b.-1", "a.b.²", "a.b.c", "d.e", "a.b.1.x")),
        (f"a.b.{'9' * 5000}", None),
    ],
)
def test_where_a_key_is(key, value):
    place = find_key(CONFIG, key)
    if value is None:
        assert place == []
    else:
        holder, last = place
        assert holder[last] == value
    assert find_key(3, key) == []


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fta").mkdir()
    (tmp_path / "fta" / "a.b").write_text("x")
    return tmp_path


def test_the_files_that_are_there(folder):
    assert archived_files(folder) == {}
    (folder / "files_to_archive.json").write_text(json.dumps({"a.b": "/old", "gone": "/older"}))
    assert archived_files(folder) == {"a.b": (folder / "fta" / "a.b").resolve()}


@pytest.mark.parametrize("text", ["{", "3", '["a"]', "[[3, 4]]", '{"a\\u0000b": 1}', "\udcff"])
def test_a_list_that_is_none(folder, text):
    (folder / "files_to_archive.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError, match=r"files_to_archive\.json (is n|holds n)o"):
        archived_files(folder)


@pytest.mark.parametrize("key", ["../a", "/etc/passwd", "", "."])
def test_a_file_elsewhere(folder, key):
    (folder / "files_to_archive.json").write_text(json.dumps({key: "x"}))
    with pytest.raises(ConfigurationError, match="outside its archive"):
        archived_files(folder)
