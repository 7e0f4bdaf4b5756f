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
    "sha256sum curl"
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

    def run(*arguments, df=PLENTY, **variables):
        nonlocal path
        path = path or path_with(*COMMANDS, df=df)
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


@pytest.mark.parametrize("ranges", [True, False], ids=["resumes", "cannot resume"])
def test_cut_off_download_in_one_run(fetch, mirror, tmp_path, ranges):
    mirror.ranges, mirror.cut_after, mirror.cut_times = ranges, 1000, 1 + ranges
    done = fetch("data")
    assert done.returncode == 0, done.stderr
    if ranges:
        assert mirror.requested_ranges == [None, "bytes=1000-", "bytes=2000-"]
    assert left_behind(tmp_path / "data") == [NAME]


def test_cut_off_download_is_resumed_by_a_later_run(fetch, mirror, tmp_path):
    mirror.cut_after, mirror.cut_times = 700, 3
    assert_failed(fetch("data"), "ended with 18", "Run this again to go on")
    assert left_behind(tmp_path / "data") == [f"{ARCHIVE}.part", f"{ARCHIVE}.part.url"]
    done = fetch("data")
    assert done.returncode == 0, done.stderr
    assert mirror.requested_ranges[-1] == "bytes=2100-"
    assert left_behind(tmp_path / "data") == [NAME]


@pytest.mark.parametrize("mirrors_own", [True, False])
def test_part_that_is_there(fetch, mirror, content, tmp_path, mirrors_own):
    """Whole, it does; of another mirror, it isn't gone on with."""
    part = tmp_path / "data" / f"{ARCHIVE}.part"
    part.parent.mkdir()
    part.write_bytes(content if mirrors_own else b"something else")
    address = mirror.url if mirrors_own else "http://elsewhere.invalid"
    part.with_name(f"{part.name}.url").write_text(f"{address}/{ARCHIVE}\n")
    done = fetch("data")
    assert done.returncode == 0, done.stderr
    assert mirrors_own or mirror.requested_ranges == [None]
    assert left_behind(tmp_path / "data") == [NAME]


def test_servers_that_do_not_answer(fetch, mirror, tmp_path):
    content, mirror.failures = mirror.files.pop(ARCHIVE), 1
    assert_failed(fetch("data"), "404", "BILLION_WORD_MIRROR")
    # A busy one is asked again, one that lacks the file isn't.
    assert len(mirror.requested_ranges) == 2
    mirror.failures = 5
    assert_failed(fetch("data"), "503", "online")
    mirror.stop()
    mirror.files[ARCHIVE] = content
    assert_failed(fetch("data"), "answered nothing", "online")
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


def test_what_earlier_runs_left(fetch, mirror, tmp_path):
    """Half of an archive of a killed run is cleared; a folder that lost a shard is told."""
    leftover = tmp_path / "data" / f".{NAME}.unpacking" / NAME
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("half")
    assert fetch("data").returncode == 0
    assert left_behind(tmp_path / "data") == [NAME]
    shard = f"{TRAINING}/news.en-00007-of-00100"
    (tmp_path / "data" / NAME / shard).unlink()
    assert_failed(fetch("data"), "lacks 1 files", shard, "move it away")
    assert len(mirror.requested_ranges) == 1


FULL = {
    "curl": "echo 'curl: (23) Failure writing output' >&2; exit 23",
    "tar": "echo 'tar: Cannot write: No space left' >&2; exit 2",
}


@pytest.mark.parametrize(
    ("without", "commands", "expected", "left"),
    [
        ("", {"df": "echo; echo disk 9 1 500000 1% /"}, ["6104 MB", "488 MB are free"], []),
        ("", {"curl": FULL["curl"]}, [".part can't be written to", "is the disk full"], None),
        ("", {"tar": FULL["tar"]}, ["No space left", "archive is kept"], [ARCHIVE]),
        ("curl", {}, ["needs 'curl'"], []),
        ("tar", {}, ["needs 'tar'"], None),
    ],
)
def test_machines_that_lack_something(
    run_script, mirror, content, path_with, tmp_path, without, commands, expected, left
):
    mirror.files[ARCHIVE] = content
    there = [name for name in COMMANDS if name not in without.split()]
    variables = {"BILLION_WORD_MIRROR": mirror.url, "BILLION_WORD_SHA256": "none"}
    path = path_with(*there, **{"df": PLENTY, **commands})
    assert_failed(run_script("fetch_data.sh", "data", PATH=path, **variables), *expected)
    assert left is None or left_behind(tmp_path / "data") == left


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_may_not_be_written_to(fetch, tmp_path):
    (tmp_path / "data").mkdir(mode=0o555)
    assert_failed(fetch("data"), "may not write")


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("--unknown",), ("file",)])
def test_wrong_arguments(fetch, tmp_path, arguments):
    (tmp_path / "file").write_text("a file")
    done = fetch(*arguments)
    is_file = arguments == ("file",)
    assert_failed(done, "can't make the folder 'file'" if is_file else "expected")
    assert is_file or "Usage:" in done.stderr
