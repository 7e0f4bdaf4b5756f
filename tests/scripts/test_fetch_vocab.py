"""`scripts/fetch_vocab.sh` against a tiny vocabulary from localhost, and on a tiny corpus; what it
shares with `fetch_data.sh` is tested there."""

import fcntl
import os
import shutil
import sys
from pathlib import Path

import pytest

FILE = "vocab-2016-09-10.txt"
WORDS = ["</S>", "<S>", "<UNK>", "the", ",", "of", "naïve", "café"]


def served(words):
    return "".join(f"{word}\n" for word in words).encode()


@pytest.fixture
def fetch(run_script, mirror):
    mirror.files[FILE] = served(WORDS)

    def run(*arguments, **variables):
        settings = {"ELMO_VOCAB_MIRROR": mirror.url, "ELMO_VOCAB_LINES": str(len(WORDS))}
        return run_script("fetch_vocab.sh", *arguments, **{**settings, **variables})

    return run


def test_download_and_again(fetch, mirror, tmp_path):
    printed = fetch("a vocabulary")
    final = tmp_path / "a vocabulary"
    assert printed == f"export BIDIRECTIONAL_LM_VOCAB_PATH='{final}'\n"
    assert list(tmp_path.iterdir()) == [final]
    words = ["@@UNKNOWN@@" if word == "<UNK>" else word for word in WORDS]
    assert (final / "tokens.txt").read_bytes() == served(words)
    assert (final / "non_padded_namespaces.txt").read_text() == "*labels\n*tags\n"
    assert fetch("a vocabulary") == printed
    assert len(mirror.requested_ranges) == 1


def test_folders_that_are_there(fetch, tmp_path):
    (tmp_path / "vocabulary").mkdir()
    fetch("vocabulary")
    assert (tmp_path / "vocabulary" / "tokens.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    assert "isn't a complete vocabulary" in fetch("other", status=1)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes"]


@pytest.mark.parametrize(
    "words, message",
    [
        (WORDS[:-1], "7 lines, expected 8"),
        (["<html>", *WORDS[1:]], 'line 1 is "<html>", expected "</S>"'),
        ([*WORDS[:-1], "the"], "line 8 repeats line 4"),
        ([*WORDS[:-1], ""], "line 8 is blank"),
    ],
)
def test_wrong_file(fetch, mirror, tmp_path, words, message):
    mirror.files[FILE] = served(words)
    said = fetch("vocabulary", status=1)
    assert message in said and "--from-data" in said
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_to(fetch, tmp_path):
    # In the place of the first file that a download writes.
    (tmp_path / f".{FILE}.part.url").mkdir()
    message = f"fetch_vocab: can't write to {tmp_path}: is the disk full?\n"
    assert fetch("vocabulary", status=1) == message


@pytest.mark.skipif(shutil.which("flock") is None, reason="there is no flock")
def test_two_runs_at_once(fetch, mirror, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    assert "another run of this is at work" in fetch("vocabulary", status=1)
    os.close(folder)
    assert mirror.requested_ranges == []
    fetch("vocabulary")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["v", "--from-data"], "BIDIRECTIONAL_LM_TRAIN_PATH"),
        (["v", "--from-data", "x"], "run ./scripts/setup.sh first"),
    ],
)
def test_wrong_arguments(fetch, tmp_path, arguments, expected):
    assert expected in fetch(*arguments, status=1, PYTHON="no-such-python")
    assert not list(tmp_path.iterdir())


def test_from_data_that_cannot_be_counted(fetch, tmp_path, path_with):
    # A Python that has the package, and whose counting begins to write and then fails.
    counting = '[ "$1" = -c ] || { mkdir "$6"; echo half >"$6/tokens.txt"; echo Full >&2; exit 1; }'
    python = Path(path_with(python=counting)) / "python"
    message = fetch("v", "--from-data", "a b/*", status=1, PYTHON=str(python))
    assert "\nFull\nfetch_vocab: counting the words of a b/* failed, see above" in message
    assert [path.name for path in tmp_path.iterdir()] == ["commands"]


@pytest.mark.slow
def test_from_data(fetch, tmp_path):
    shards = tmp_path / "data" / "training-monolingual.tokenized.shuffled"
    shards.mkdir(parents=True)
    (shards / "news.en-00001-of-00100").write_text("b a a\na c b c once\n", encoding="utf-8")
    (shards / "news.en-00002-of-00100").write_text("é é twice\nc b é a twice\n", encoding="utf-8")
    printed = fetch("vocabulary", "--from-data", "data", PYTHON=sys.executable)
    assert printed == f"export BIDIRECTIONAL_LM_VOCAB_PATH='{tmp_path / 'vocabulary'}'\n"
    lines = (tmp_path / "vocabulary" / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:4] == ["</S>", "<S>", "@@UNKNOWN@@", "a"] and {*lines[4:]} == {"b", "c", "é"}
