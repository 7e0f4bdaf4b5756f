"""`scripts/fetch_vocab.sh` against a tiny vocabulary from localhost, and on a tiny corpus; what it
shares with `fetch_data.sh` is tested there."""

import fcntl
import os
import shutil
import sys
from pathlib import Path
from typing import List

import pytest

FILE = "vocab-2016-09-10.txt"
WORDS = ["</S>", "<S>", "<UNK>", "the", ",", "of", "na\u00efve", "caf\u00e9"]


def served(words: List[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()


@pytest.fixture
def fetch(run_script, mirror):
    mirror.files[FILE] = served(WORDS)

    def run(*arguments, **variables):
        settings = {"ELMO_VOCAB_MIRROR": mirror.url, "ELMO_VOCAB_LINES": str(len(WORDS))}
        return run_script("fetch_vocab.sh", *arguments, **{**settings, **variables})

    return run


def assert_failed(done, tmp_path: Path, *expected: str) -> None:
    """It failed with one message, with nothing to paste and nothing left."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    for text in expected:
        assert text in done.stderr.splitlines()[-1], done.stderr
    assert list(tmp_path.iterdir()) == []


def test_download_and_again(fetch, mirror, tmp_path, exported):
    done = fetch("a vocabulary")
    assert done.returncode == 0, done.stderr
    final = tmp_path / "a vocabulary"
    assert list(tmp_path.iterdir()) == [final]
    words = ["@@UNKNOWN@@" if word == "<UNK>" else word for word in WORDS]
    assert (final / "tokens.txt").read_bytes() == served(words)
    assert (final / "non_padded_namespaces.txt").read_text() == "*labels\n*tags\n"
    assert exported(done.stdout) == {"BIDIRECTIONAL_LM_VOCAB_PATH": str(final)}
    again = fetch("a vocabulary")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert len(mirror.requested_ranges) == 1


def test_folders_that_are_there(fetch, tmp_path):
    (tmp_path / "vocabulary").mkdir()
    assert fetch("vocabulary").returncode == 0
    assert (tmp_path / "vocabulary" / "tokens.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    done = fetch("other")
    assert done.returncode == 1 and "isn't a complete vocabulary" in done.stderr
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes"]


@pytest.mark.parametrize(
    "words, message",
    [
        (WORDS[:-1], "7 lines, expected 8"),
        (["<html>", *WORDS[1:]], 'line 1 is "<html>", expected "</S>"'),
        ([*WORDS[:2], "the", *WORDS[4:], "a"], "line 3"),
        ([*WORDS[:-1], "the"], "line 8 repeats line 4"),
        ([*WORDS[:-1], ""], "line 8 is blank"),
        ([], "0 lines"),
    ],
)
def test_wrong_file(fetch, mirror, tmp_path, words, message):
    mirror.files[FILE] = served(words)
    assert_failed(fetch("vocabulary"), tmp_path, message, "--from-data")


def test_folder_that_cannot_be_written_to_is_told_in_one_line(fetch, tmp_path):
    # In the place of the first file that a download writes.
    (tmp_path / f".{FILE}.part.url").mkdir()
    done = fetch("vocabulary")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"fetch_vocab: can't write to {tmp_path}: is the disk full?"
    ]


@pytest.mark.skipif(shutil.which("flock") is None, reason="there is no flock")
def test_two_runs_at_once(fetch, mirror, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    assert_failed(fetch("vocabulary"), tmp_path, "another run of this is at work")
    os.close(folder)
    assert mirror.requested_ranges == []
    assert fetch("vocabulary").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        *(((), "expected"), (("a", "b"), "expected"), (("--unknown",), "expected")),
        (("v", "--from-data"), "BIDIRECTIONAL_LM_TRAIN_PATH"),
        (("v", "--from-data", "x"), "run ./scripts/setup.sh first"),
    ],
)
def test_wrong_arguments(fetch, tmp_path, arguments, expected):
    assert_failed(fetch(*arguments, PYTHON="no-such-python"), tmp_path, expected)


def test_from_data_that_cannot_be_counted(fetch, tmp_path, path_with):
    # A Python that has the package, and whose counting begins to write and then fails.
    counting = '[ "$1" = -c ] || { mkdir "$6"; echo half >"$6/tokens.txt"; echo Full >&2; exit 1; }'
    python = Path(path_with(python=counting)) / "python"
    done = fetch("v", "--from-data", "a b/*", PYTHON=str(python))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "Full",
        "fetch_vocab: counting the words of a b/* failed, see above; nothing was written",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["commands"]


@pytest.mark.slow
def test_from_data(fetch, tmp_path, exported):
    shards = tmp_path / "data" / "training-monolingual.tokenized.shuffled"
    shards.mkdir(parents=True)
    (shards / "news.en-00001-of-00100").write_text("b a a\na c b c once\n", encoding="utf-8")
    (shards / "news.en-00002-of-00100").write_text("\u00e9 \u00e9 twice\nc b \u00e9 a twice\n")
    done = fetch("vocabulary", "--from-data", "data", PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    final = tmp_path / "vocabulary"
    lines = (final / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:4] == ["</S>", "<S>", "@@UNKNOWN@@", "a"]
    assert sorted(lines[4:]) == ["b", "c", "\u00e9"]
    assert (final / "non_padded_namespaces.txt").read_text() == "*labels\n*tags\n"
    assert exported(done.stdout) == {"BIDIRECTIONAL_LM_VOCAB_PATH": str(final)}
