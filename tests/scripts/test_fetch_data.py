"""`scripts/fetch_data.sh` against a tiny benchmark with the real names, from localhost."""

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import List

import pytest

NAME = "1-billion-word-language-modeling-benchmark-r13output"
ARCHIVE = f"{NAME}.tar.gz"
TRAINING = "training-monolingual.tokenized.shuffled"
HELDOUT = "heldout-monolingual.tokenized.shuffled"

# Commands that the script uses, less what a test takes away.
COMMANDS = (
    "bash sh cat cut dirname basename awk sed seq tr tail head wc mkdir mv rm sleep grep tar gzip "
    "sha256sum"
).split()

PLENTY = "echo Filesystem; echo disk 900000000 1 800000000 1% /"


def shard_names() -> List[str]:
    return (
        [f"{TRAINING}/news.en-{number:05d}-of-00100" for number in range(1, 100)]
        + [f"{HELDOUT}/news.en-00000-of-00100"]
        + [f"{HELDOUT}/news.en.heldout-{number:05d}-of-00050" for number in range(50)]
    )


def benchmark(without: str = "") -> bytes:
    """The archive, with a short random text in each shard so that it doesn't pack to nothing."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in shard_names():
            if name != without:
                text = f"The shard {hashlib.sha256(name.encode()).hexdigest()} .\n".encode()
                member = tarfile.TarInfo(f"{NAME}/{name}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
    return packed.getvalue()


@pytest.fixture(scope="module")
def content() -> bytes:
    return benchmark()


@pytest.fixture
def fetch(run_script, mirror, path_with, content):
    """Runs the script with the mirror's address and checksum, on a disk with room."""
    mirror.files[ARCHIVE] = content
    path = ""

    def run(*arguments, downloader="curl", df=PLENTY, **variables):
        nonlocal path
        path = path or path_with(*COMMANDS, downloader, df=df)
        settings = {
            "BILLION_WORD_MIRROR": mirror.url,
            "BILLION_WORD_SHA256": hashlib.sha256(content).hexdigest(),
            "PATH": path,
        }
        return run_script("fetch_data.sh", *arguments, **{**settings, **variables})

    return run


def left_behind(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".fetch_data.lock")


def assert_failed(done, *expected: str) -> None:
    """It failed with one message, and nothing to paste."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    for text in expected:
        assert text in done.stderr.splitlines()[-1], done.stderr


def test_complete_and_again(fetch, mirror, tmp_path, exported):
    done = fetch("da ta")
    assert done.returncode == 0, done.stderr
    final = tmp_path / "da ta" / NAME
    assert sorted(str(path.relative_to(final)) for path in final.rglob("news*")) == sorted(
        shard_names()
    )
    assert left_behind(tmp_path / "da ta") == [NAME]
    assert exported(done.stdout) == {
        "BIDIRECTIONAL_LM_DATA_PATH": str(final),
        "BIDIRECTIONAL_LM_TRAIN_PATH": f"{final}/{TRAINING}/*",
    }
    again = fetch("da ta")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert len(mirror.requested_ranges) == 1


both = pytest.mark.parametrize("downloader", ["curl", "wget"])


@both
@pytest.mark.parametrize("ranges", [True, False], ids=["resumes", "cannot resume"])
def test_cut_off_download_in_one_run(fetch, mirror, tmp_path, downloader, ranges):
    mirror.ranges, mirror.cut_after, mirror.cut_times = ranges, 1000, 1 + ranges
    done = fetch("data", downloader=downloader)
    assert done.returncode == 0, done.stderr
    if ranges:
        assert mirror.requested_ranges == [None, "bytes=1000-", "bytes=2000-"]
    assert left_behind(tmp_path / "data") == [NAME]


@both
def test_cut_off_download_is_resumed_by_a_later_run(fetch, mirror, tmp_path, downloader):
    mirror.cut_after, mirror.cut_times = 700, 3
    assert_failed(fetch("data", downloader=downloader), "3 tries", "Run this again to go on")
    assert left_behind(tmp_path / "data") == [f"{ARCHIVE}.part", f"{ARCHIVE}.part.url"]
    done = fetch("data", downloader=downloader)
    assert done.returncode == 0, done.stderr
    assert mirror.requested_ranges[-1] == "bytes=2100-"
    assert left_behind(tmp_path / "data") == [NAME]


@both
def test_part_that_is_complete_already(fetch, mirror, content, tmp_path, downloader):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{ARCHIVE}.part").write_bytes(content)
    (tmp_path / "data" / f"{ARCHIVE}.part.url").write_text(f"{mirror.url}/{ARCHIVE}\n")
    done = fetch("data", downloader=downloader)
    assert done.returncode == 0, done.stderr
    assert left_behind(tmp_path / "data") == [NAME]


def test_part_from_another_mirror_is_not_resumed(fetch, mirror, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{ARCHIVE}.part").write_bytes(b"something else")
    (tmp_path / "data" / f"{ARCHIVE}.part.url").write_text("http://elsewhere.invalid/x\n")
    done = fetch("data")
    assert done.returncode == 0, done.stderr
    assert mirror.requested_ranges == [None]


@both
def test_server_that_is_busy_is_asked_again(fetch, mirror, downloader):
    mirror.failures = 2
    done = fetch("data", downloader=downloader)
    assert done.returncode == 0, done.stderr
    assert "503" in done.stderr


@both
def test_file_that_the_mirror_lacks(fetch, mirror, tmp_path, downloader):
    mirror.files.clear()
    done = fetch("data", downloader=downloader)
    assert_failed(done, "404", "BILLION_WORD_MIRROR")
    assert len(mirror.requested_ranges) == 1
    assert left_behind(tmp_path / "data") == []


@both
def test_offline(fetch, mirror, tmp_path, downloader):
    mirror.stop()
    done = fetch("data", downloader=downloader)
    assert_failed(done, "couldn't be had in 3 tries", "online")
    assert left_behind(tmp_path / "data") == []


@pytest.mark.parametrize(
    ("served", "checksum", "expected"),
    [
        (
            lambda _: b"<html>Please log in</html>",
            None,
            ["<html>Please log in", "BILLION_WORD_MIRROR"],
        ),
        (lambda _: b"", None, ["isn't a whole gzip archive"]),
        (lambda whole: whole[: len(whole) // 2], "none", ["isn't a whole gzip archive"]),
        (lambda whole: whole, "0" * 64, ["SHA-256", "0000"]),
        *(
            (lambda _, shard=shard: benchmark(without=shard), "none", ["lacks 1 files", shard])
            for shard in (
                f"{TRAINING}/news.en-00042-of-00100",
                f"{HELDOUT}/news.en-00000-of-00100",
            )
        ),
    ],
    ids=["a page", "nothing", "a half", "another", "a training shard less", "a held-out one less"],
)
def test_another_file_than_the_archive(
    fetch, mirror, content, tmp_path, served, checksum, expected
):
    mirror.files[ARCHIVE] = served(content)
    variables = {} if checksum is None else {"BILLION_WORD_SHA256": checksum}
    assert_failed(fetch("data", **variables), *expected)
    assert left_behind(tmp_path / "data") == []


def test_folder_that_lost_a_shard(fetch, mirror, tmp_path):
    assert fetch("data").returncode == 0
    shard = f"{TRAINING}/news.en-00007-of-00100"
    (tmp_path / "data" / NAME / shard).unlink()
    assert_failed(fetch("data"), "lacks 1 files", shard, "move it away")
    assert len(mirror.requested_ranges) == 1


def test_leftover_of_a_killed_run_is_cleared(fetch, tmp_path):
    leftover = tmp_path / "data" / f".{NAME}.unpacking" / NAME
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("half")
    assert fetch("data").returncode == 0
    assert left_behind(tmp_path / "data") == [NAME]


def test_no_room(fetch, mirror, tmp_path):
    done = fetch("data", df="echo Filesystem; echo disk 9000000 1 500000 1% /")
    assert_failed(done, "6104 MB", "488 MB are free")
    assert mirror.requested_ranges == []


@pytest.mark.parametrize(
    "downloader",
    [
        {"curl": "echo 'curl: (23) Failure writing output' >&2; exit 23"},
        {"wget": "echo 'Cannot write to it (No space left on device).' >&2; exit 3"},
    ],
)
def test_disk_that_fills_up_while_downloading(run_script, path_with, downloader):
    path = path_with(*COMMANDS, df=PLENTY, **downloader)
    done = run_script("fetch_data.sh", "data", PATH=path)
    assert_failed(done, f"{ARCHIVE}.part can't be written to", "is the disk full", "is kept")


def test_disk_that_fills_up_while_unpacking(run_script, mirror, content, path_with, tmp_path):
    mirror.files[ARCHIVE] = content
    path = path_with(
        *COMMANDS, "curl", df=PLENTY, tar="echo 'tar: Cannot write: No space left' >&2; exit 2"
    )
    done = run_script(
        "fetch_data.sh",
        "data",
        PATH=path,
        BILLION_WORD_MIRROR=mirror.url,
        BILLION_WORD_SHA256="none",
    )
    assert_failed(done, "No space left", "is the disk full", "archive is kept")
    assert left_behind(tmp_path / "data") == [ARCHIVE]


def test_neither_curl_nor_wget(fetch, tmp_path):
    assert_failed(fetch("data", downloader="no-such-downloader"), "'curl' or 'wget'")
    assert left_behind(tmp_path / "data") == []


def test_no_tar(run_script, path_with):
    commands = [command for command in COMMANDS if command != "tar"]
    done = run_script("fetch_data.sh", "data", PATH=path_with(*commands, "curl", df=PLENTY))
    assert_failed(done, "needs 'tar'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_may_not_be_written_to(fetch, tmp_path):
    (tmp_path / "data").mkdir(mode=0o555)
    assert_failed(fetch("data"), "may not write")


def test_folder_that_is_a_file(fetch, tmp_path):
    (tmp_path / "data").write_text("a file")
    assert_failed(fetch("data"), "can't make the folder 'data'")


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("--unknown",)])
def test_wrong_arguments(fetch, arguments):
    done = fetch(*arguments)
    assert_failed(done, "expected")
    assert "Usage:" in done.stderr
