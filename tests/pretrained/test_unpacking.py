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
    assert stat.st_mode & 0o7111 == 0
    assert stat.st_uid == os.getuid()


@pytest.mark.parametrize("name", ["/absolute.txt", "../above.txt", "a/../../b.txt"])
def test_nothing_lands_outside(write, folder, name):
    path = write(member("config.json"), member(name))
    with pytest.raises(ConfigurationError, match="outside the folder"):
        unpack(path, folder)
    assert {p.name for p in folder.parent.rglob("*")} <= {"folder", "config.json"}


LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.mark.parametrize("kind", [*LINKS, tarfile.GNUTYPE_SPARSE])
def test_links_and_devices_are_refused(write, folder, kind):
    path = write(member("weights.th", b"", type=kind, linkname="/etc/passwd"))
    with pytest.raises(ConfigurationError, match=r"weights\.th.*link or a device|not a complete"):
        unpack(path, folder)
    assert not os.path.lexists(folder / "weights.th")


def test_a_bomb_is_refused_before_it_is_written(write, folder, monkeypatch):
    path = write(member("small"), member("weights.th", bytes(2_000_000)))
    monkeypatch.setenv(LIMIT_VARIABLE, "0.001")
    with pytest.raises(ConfigurationError, match=f"0.001 GB.*{LIMIT_VARIABLE}"):
        unpack(path, folder)
    assert not (folder / "weights.th").exists()
    monkeypatch.setenv(LIMIT_VARIABLE, "0.003")
    unpack(path, folder)
    assert (folder / "weights.th").stat().st_size == 2_000_000


@pytest.mark.parametrize(
    "names, reason",
    [
        (["a" * 300], "File name too long"),
        (["東" * 100], "File name too long"),
        (["folder/" * 600 + "a"], "in more than 100 folders"),
        (["a", "a/b"], "Not a directory"),
    ],
)
def test_names_that_no_file_can_have(write, folder, names, reason):
    with pytest.raises(ConfigurationError, match=rf"model\.tar\.gz .*{reason}") as error:
        unpack(write(*map(member, names)), folder)
    assert "\n" not in str(error.value)


def test_a_header_is_no_place_for_a_bomb(write, folder):
    # It is read before its member is known, and its size with it.
    path = write(member("config.json", pax_headers={"comment": "a" * 2_000_000}))
    with pytest.raises(ConfigurationError, match=r"header of 2,0\d\d,\d\d\d bytes"):
        unpack(path, folder)
    assert os.listdir(folder) == []


def block(name, kind=tarfile.REGTYPE, content=b""):
    """A member as it stands in a tar file, whatever it is."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def attributes(count, first=0):
    return b"".join(b"13 k%06d=v\n" % number for number in range(first, first + count))


BOMBS = {
    "folders": [block("/".join([str(i), *"d" * 48, "f"])) for i in range(200)],
    "empty files": [block(str(i)) for i in range(3_000)],
    "empty folders": [block(f"{i}/{i}", tarfile.DIRTYPE) for i in range(1_500)],
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


@pytest.mark.parametrize(
    "attributes", [{"size": "-7"}, {"size": "9" * 30}, {"path": "a\0b"}, {"GNU.sparse.map": "x"}]
)
def test_attributes_that_make_no_sense(tmp_path, folder, attributes):
    path = tmp_path / "model.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(*map(_as_file, member("config.json", pax_headers=attributes)))
    try:
        unpack(path, folder)
    except ConfigurationError as error:
        assert "model.tar.gz" in str(error)
    assert {p.name for p in folder.parent.rglob("*")} <= {"folder", "config.json"}


def _as_file(part):
    return io.BytesIO(part) if isinstance(part, bytes) else part


def test_no_room_on_the_disk(write, folder, no_larger_files):
    path = write(member("config.json"), member("weights.th", os.urandom(3000)))
    with (
        no_larger_files(1000),
        pytest.raises(ConfigurationError, match=r"can't be unpacked.*File too large.*TMPDIR"),
    ):
        unpack(path, folder)


@pytest.mark.parametrize("limit", ["none", "-1", "0", "nan", "inf"])
def test_a_limit_that_is_no_number_is_an_error(write, folder, monkeypatch, limit):
    monkeypatch.setenv(LIMIT_VARIABLE, limit)
    with pytest.raises(ConfigurationError, match=LIMIT_VARIABLE):
        unpack(write(member("a")), folder)


class TestDamage:
    @pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
    def test_truncated(self, write, folder, share):
        path = write(member("config.json"), member("weights.th", os.urandom(200_000)))
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ConfigurationError, match=r"model\.tar\.gz .*not a complete"):
            unpack(path, folder)

    def test_corrupted(self, write, folder):
        path = write(member("config.json"), member("weights.th", b"abc" * 100_000))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        content[len(content) // 2 + 1] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"model\.tar\.gz"):
            unpack(path, folder)

    # Named: gzip writes the time into its output, and the test processes must agree on names.
    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(b"not an archive", id="text"),
            pytest.param(gzip.compress(b"no tar"), id="compressed-text"),
            pytest.param(gzip.compress(b"x" * 5000), id="compressed-long-text"),
        ],
    )
    def test_other_files(self, tmp_path, folder, content):
        path = tmp_path / "model.tar.gz"
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"model\.tar\.gz"):
            unpack(path, folder)

    def test_empty(self, write, folder):
        with pytest.raises(ConfigurationError, match="empty"):
            unpack(write(), folder)


class TestExtractedArchive:
    def test_cleans_up_if_asked(self, write):
        path = write(member("config.json"))
        with extracted_archive(path) as folder:
            assert os.listdir(folder) == ["config.json"]
            assert archive_of(folder) == str(path)
        assert not os.path.exists(folder)
        assert archive_of(folder) is None

    def test_leaves_the_folder_if_asked(self, write):
        with extracted_archive(write(member("config.json")), cleanup=False) as folder:
            pass
        assert os.listdir(folder) == ["config.json"]

    def test_leaves_nothing_after_a_failure(self, write, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
        path = write(member("config.json"), member("../up"))
        with pytest.raises(ConfigurationError), extracted_archive(path, cleanup=False):
            pass
        assert os.listdir(tmp_path / "temporary") == []
