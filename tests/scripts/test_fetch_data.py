"""`scripts/fetch_data.sh` against a tiny benchmark with the real names, from localhost."""

import hashlib
import io
import subprocess
import tarfile

import pytest

NAME = "1-billion-word-language-modeling-benchmark-r13output"
ARCHIVE = f"{NAME}.tar.gz"
TRAINING = "training-monolingual.tokenized.shuffled"
HELDOUT = "heldout-monolingual.tokenized.shuffled"
SHARDS = [
    *(f"{TRAINING}/news.en-{number:05d}-of-00100" for number in range(1, 100)),
    f"{HELDOUT}/news.en-00000-of-00100",
    *(f"{HELDOUT}/news.en.heldout-{number:05d}-of-00050" for number in range(50)),
]

# Commands that the script uses.
COMMANDS = (
    "bash sh cat cut dirname basename awk sed seq tr tail head wc mkdir mv rm sleep grep tar gzip "
    "sha256sum curl"
).split()


def benchmark(shards=SHARDS):
    """The archive, with a short random text in each shard so that it doesn't pack to nothing."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in shards:
            text = f"The shard {hashlib.sha256(name.encode()).hexdigest()} .\n".encode()
            member = tarfile.TarInfo(f"{NAME}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return packed.getvalue()


WHOLE = benchmark()


@pytest.fixture
def fetch(run_script, mirror, path_with):
    """Runs the script with the mirror's address and checksum, on a disk with room."""
    mirror.files[ARCHIVE] = WHOLE
    settings = {
        "BILLION_WORD_MIRROR": mirror.url,
        "BILLION_WORD_SHA256": hashlib.sha256(WHOLE).hexdigest(),
        "PATH": path_with(*COMMANDS, df="echo Filesystem; echo disk 900000000 1 800000000 1% /"),
    }

    def run(*arguments, **variables):
        return run_script("fetch_data.sh", *arguments, **{**settings, **variables})

    return run


@pytest.fixture
def left_behind(tmp_path):
    def names(folder="data"):
        return sorted({path.name for path in (tmp_path / folder).iterdir()} - {".fetch_data.lock"})

    return names


def test_complete_and_again(fetch, mirror, tmp_path, left_behind):
    printed = fetch("it's da ta")
    final = tmp_path / "it's da ta" / NAME
    assert {str(path.relative_to(final)) for path in final.rglob("news*")} == set(SHARDS)
    assert left_behind("it's da ta") == [NAME]
    script = f'{printed} echo "$BIDIRECTIONAL_LM_DATA_PATH" "$BIDIRECTIONAL_LM_TRAIN_PATH"'
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout
    assert said == f"{final} {final}/{TRAINING}/*\n"
    assert fetch("it's da ta") == printed
    assert len(mirror.requested_ranges) == 1


def test_cut_off_downloads_are_resumed(fetch, mirror, left_behind):
    mirror.cut_after, mirror.cut_times = 700, 3
    message = fetch("data", status=1)
    assert "ended with 18" in message and "Run this again to go on" in message
    assert left_behind() == [f"{ARCHIVE}.part", f"{ARCHIVE}.part.url"]
    fetch("data")
    assert mirror.requested_ranges == [None, *(f"bytes={n}-" for n in (700, 1400, 2100))]
    assert left_behind() == [NAME]


def test_a_server_that_cannot_resume(fetch, mirror, left_behind):
    mirror.ranges, mirror.cut_after, mirror.cut_times = False, 1000, 1
    fetch("data")
    assert left_behind() == [NAME]


@pytest.mark.parametrize("mirrors_own", [True, False])
def test_part_that_is_there(fetch, mirror, tmp_path, left_behind, mirrors_own):
    """Whole, it does; of another mirror, it isn't gone on with."""
    part = tmp_path / "data" / f"{ARCHIVE}.part"
    part.parent.mkdir()
    part.write_bytes(WHOLE if mirrors_own else b"something else")
    address = mirror.url if mirrors_own else "http://elsewhere.invalid"
    part.with_name(f"{part.name}.url").write_text(f"{address}/{ARCHIVE}\n")
    fetch("data")
    assert mirrors_own or mirror.requested_ranges == [None]
    assert left_behind() == [NAME]


def test_servers_that_do_not_answer(fetch, mirror, left_behind):
    mirror.files, mirror.failures = {}, 1
    message = fetch("data", status=1)
    assert "404" in message and "another mirror is chosen by BILLION_WORD_MIRROR" in message
    # A busy one is asked again, one that lacks the file isn't.
    assert len(mirror.requested_ranges) == 2
    mirror.failures = 5
    assert "the server answered 503" in fetch("data", status=1)
    mirror.stop()
    assert "the server answered nothing" in fetch("data", status=1)
    assert left_behind() == []


@pytest.mark.parametrize(
    "served, checksum, expected",
    [
        (
            b"<html>Please log in</html>",
            "none",
            "isn't a whole gzip archive (it begins with '<html",
        ),
        (b"", "none", "isn't a whole gzip archive"),
        (benchmark(SHARDS[:1]), "0" * 64, "expected 0000"),
        (benchmark(SHARDS[1:99] + SHARDS[100:-1]), "none", f"lacks 3 files ({SHARDS[0]})"),
    ],
    ids=["a page", "nothing", "another file", "a shard less of each kind"],
)
def test_another_file_than_the_archive(fetch, mirror, left_behind, served, checksum, expected):
    mirror.files[ARCHIVE] = served
    message = fetch("data", status=1, BILLION_WORD_SHA256=checksum)
    assert expected in message and "removed" in message and "BILLION_WORD_MIRROR" in message
    assert left_behind() == []


def test_what_earlier_runs_left(fetch, tmp_path, left_behind):
    """Half of an archive of a killed run is cleared; a folder that lost a shard is told."""
    leftover = tmp_path / "data" / f".{NAME}.unpacking" / NAME
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("half")
    fetch("data")
    assert left_behind() == [NAME]
    (tmp_path / "data" / NAME / SHARDS[6]).unlink()
    assert f"lacks 1 files ({SHARDS[6]}): move it away" in fetch("data", status=1)


@pytest.mark.parametrize(
    "command, does, expected, left",
    [
        ("df", "echo; echo disk 9 1 500000 1% /", "6104 MB, but only 488 MB are free", []),
        ("curl", "exit 23", "can't be written to: is the disk full?", [f"{ARCHIVE}.part.url"]),
        ("tar", "exit 2", "is the disk full? The archive is kept", [ARCHIVE]),
    ],
)
def test_disks_that_are_full(fetch, path_with, left_behind, command, does, expected, left):
    path_with(**{command: does})
    assert expected in fetch("data", status=1)
    assert left_behind() == left


def test_tools_that_are_missing(fetch, tmp_path):
    (tmp_path / "commands" / "curl").unlink()
    assert "needs 'curl'" in fetch("data", status=1)


def test_folder_that_cannot_be_made(fetch, tmp_path):
    (tmp_path / "data").write_text("a file")
    assert "can't make the folder 'data'" in fetch("data", status=1)


@pytest.mark.parametrize("arguments", [(), ("--unknown",), ("a", "b")])
def test_wrong_arguments(fetch, arguments):
    message = fetch(*arguments, status=1)
    assert "Usage:" in message and "fetch_data: expected" in message
