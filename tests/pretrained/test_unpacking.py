"""Archives of anybody's: unpacked safely, or refused with one message."""

import gzip
import io
import os
import tarfile
import time

import pytest

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.unpacking import (
    LIMIT_VARIABLE,
    archive_of,
    extracted_archive,
    unpack,
)


def member(name, content=b"text", **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


@pytest.fixture
def write(tmp_path):
    def write(*members):
        path = tmp_path / "model.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for info, content in members:
                tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
        return path

    return write


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "inside" / "folder"
    folder.mkdir(parents=True)
    return folder


def test_unpacks_files_and_folders(write, folder):
    path = write(
        member("vocabulary", b"", type=tarfile.DIRTYPE),
        member("vocabulary/tokens.txt", b"the\n"),
        member("./config.json", b"{}", mode=0o4777, uid=12345),
        member("a/folder/never/named.txt"),
    )
    unpack(path, folder)
    assert (folder / "vocabulary" / "tokens.txt").read_bytes() == b"the\n"
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "a/folder/never/named.txt").exists()
    stat = (folder / "config.json").stat()
    assert stat.st_mode & 0o7111 == 0 and stat.st_uid == os.getuid()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        *(
            ([member("config.json"), member(name)], "outside the folder")
            for name in ("/absolute.txt", "../above.txt", "a/../../b.txt")
        ),
        *(
            ([member("weights.th", b"", type=kind, linkname="/etc/passwd")], "link or a device")
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
        ),
        ([member("weights.th", b"", type=tarfile.GNUTYPE_SPARSE)], "link|not a complete"),
        ([member("東" * 100)], "File name too long"),
        ([member("folder/" * 600 + "a")], "in more than 100 folders"),
        ([member("config.json"), member("config.json/b")], "Not a directory"),
        # It is read before its member is known, and its size with it.
        ([member("a", pax_headers={"comment": "a" * 2_000_000})], r"header of 2,0\d\d,\d\d\d by"),
        *(
            ([member("config.json", pax_headers={key: value})], "more than 32 GB|not a complete")
            for key, value in (("size", "9" * 30), ("size", "-7"), ("path", "a\0b"))
        ),
        ([], "empty"),
    ],
)
def test_what_is_refused(write, folder, members, reason):
    with pytest.raises(ConfigurationError, match=rf"model\.tar\.gz .*({reason})") as error:
        unpack(write(*members), folder)
    assert "\n" not in str(error.value)
    assert {p.name for p in folder.parent.rglob("*")} <= {"folder", "config.json"}


def test_a_bomb_is_refused_before_it_is_written(write, folder, monkeypatch):
    path = write(member("small"), member("weights.th", bytes(2_000_000)))
    monkeypatch.setenv(LIMIT_VARIABLE, "0.001")
    with pytest.raises(ConfigurationError, match=f"0.001 GB.*{LIMIT_VARIABLE}"):
        unpack(path, folder)
    assert not (folder / "weights.th").exists()
    monkeypatch.setenv(LIMIT_VARIABLE, "0.003")
    unpack(path, folder)
    assert (folder / "weights.th").stat().st_size == 2_000_000
    for limit in ("none", "-1", "nan", "inf"):
        monkeypatch.setenv(LIMIT_VARIABLE, limit)
        with pytest.raises(ConfigurationError, match=LIMIT_VARIABLE):
            unpack(path, folder)


def block(name, kind=tarfile.REGTYPE, content=b""):
    """A member as it stands in a tar file, whatever it is."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def attributes(count, first=0):
    return b"".join(b"13 k%06d=v\n" % number for number in range(first, first + count))


BOMBS = {
    "folders": [block("/".join([str(i), *"d" * 48, "f"])) for i in range(200)],
    "one name": [block("a") * 100_000],
    "headers of headers": [block("x", b"x", b"14 comment=ab\n") * 20_000],
    "names of names": [block("x", b"L", b"ab\0") * 20_000],
    "attributes for all": [
        block("x", b"g", attributes(900, 900 * i)) + block(str(i)) for i in range(3)
    ],
    "attributes": [block("x", b"x", attributes(4000)) + block("a")] * 1000,
    "much after the end": [block("a"), bytes(1024), bytes(20 << 20)],
    "zeros": [block("a").replace(b"00000000000", b"37777777777", 1)],
}


@pytest.mark.parametrize("kind", BOMBS)
def test_what_takes_time_or_room_is_refused_soon(tmp_path, folder, kind):
    path = tmp_path / "model.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in BOMBS[kind]:
            file.write(part)
    begin = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"model\.tar\.gz .*(Don't trust|not a complete)"):
        unpack(path, folder)
    assert time.monotonic() - begin < 20
    assert sum(1 for _ in folder.rglob("*")) <= 2_000


def test_no_room_on_the_disk(write, folder, no_larger_files):
    path = write(member("config.json"), member("weights.th", os.urandom(3000)))
    with (
        no_larger_files(1000),
        pytest.raises(ConfigurationError, match=r"can't be unpacked.*File too large.*TMPDIR"),
    ):
        unpack(path, folder)


def test_damage(write, folder):
    path = write(member("config.json"), member("weights.th", os.urandom(200_000)))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    cut = (whole[: int(len(whole) * share)] for share in (0, 0.02, 0.3, 0.999))
    for content in (*cut, flipped, b"not an archive", gzip.compress(b"no tar" * 1000)):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"model\.tar\.gz .*not a complete"):
            unpack(path, folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match=r"model\.tar\.gz .*a pipe or a device"):
        unpack(path, folder)


def test_the_folder_of_an_archive(write, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = write(member("config.json"))
    for cleanup in (True, False):
        with extracted_archive(path, cleanup) as folder:
            assert os.listdir(folder) == ["config.json"] and archive_of(folder) == str(path)
        assert os.path.exists(folder) != cleanup
    assert archive_of(folder) == str(path)
    # After a failure nothing stays.
    path = write(member("config.json"), member("../up"))
    with pytest.raises(ConfigurationError), extracted_archive(path, cleanup=False):
        pass
    assert os.listdir(tmp_path / "temporary") == [os.path.basename(folder)]
