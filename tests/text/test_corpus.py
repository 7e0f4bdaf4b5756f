import bz2
import gzip
import lzma
import os
import random
import shutil
import sys
from typing import Any
from unittest.mock import Mock

import pytest

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text import corpus, training_stream
from transformer_elmo.text.corpus import find_shards, read_blocks, read_sentences

TEXT = "One sentence .\nAnother ,\u2028 still the same\u0085 one .\nЕщё одна .\n"
SENTENCES = ["One sentence .", "Another ,\u2028 still the same\u0085 one .", "Ещё одна ."]


def write(path, text=TEXT):
    path.write_bytes(text.encode("utf-8"))
    return path


def test_what_paths_stand_for(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "c.dat", "d[1].dat", ".hidden"):
        write(tmp_path / name)
    (tmp_path / "folder").mkdir()
    e = write(tmp_path / "folder" / "e.txt")
    a, b, c, d = (tmp_path / name for name in ("a.txt", "b.txt", "c.dat", "d[1].dat"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for path, expected in (
        (str(b), [b]),
        (d, [d]),
        ("~/b.txt", [b]),
        (tmp_path, [a, b, c, d]),
        (str(tmp_path / "*.txt"), [a, b]),
        (str(tmp_path / "**" / "*.txt"), [a, b, e]),
        ([str(c), tmp_path / "*.txt"], [c, a, b]),
    ):
        assert find_shards(path) == expected


def test_where_there_is_no_text(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    missing = str(tmp_path / "missing-*")
    monkeypatch.setenv("MY_TRAIN_PATH", missing)
    without_text: Any = [
        (tmp_path / "pipe", "pipe is neither a file nor a directory"),
        (tmp_path / "folder", "no file in it"),
        (missing, "No file matches .*missing.*MY_TRAIN_PATH"),
        ("", "is empty"),
        ([], "empty list"),
        ({"train": "x"}, "this is a dict"),
    ]
    for path, said in without_text:
        with pytest.raises(ConfigurationError, match=said):
            find_shards(path)
    with pytest.raises(ConfigurationError, match="gone"):
        list(read_sentences(tmp_path / "gone"))


def test_addresses(tmp_path, monkeypatch):
    url, cached = "http://there/text.gz", tmp_path / "0123abcd"
    cached.write_bytes(gzip.compress(TEXT.encode()))
    monkeypatch.setattr(corpus, "downloaded", {url: str(cached)}.get)
    # What is cached has lost its suffix.
    assert list(read_sentences(*find_shards(url))) == SENTENCES
    monkeypatch.setenv("MY_TRAIN_PATH", url)
    for error, reason in (
        (FileNotFoundError(url), "there is nothing"),
        (RuntimeError("no route"), "no route"),
    ):
        monkeypatch.setattr(corpus, "downloaded", Mock(side_effect=error))
        with pytest.raises(ConfigurationError, match=f"{url}: {reason}.*MY_TRAIN_PATH"):
            find_shards(url)


@pytest.mark.parametrize(
    "text, expected, num_blank",
    [
        ("", [], 0),
        (TEXT, SENTENCES, 0),
        ("a b\r\nc\r d\ne\r\n", ["a b", "c\r d", "e"], 0),
        ("\n \na\n\t\u00a0\n\r\nb\n\n\n", ["a", "b"], 6),
        # A byte-order mark is one at the beginning only.
        ("\ufeffa b\nc \ufeffd\n", ["a b", "c \ufeffd"], 0),
        ("\ufeff \r\n", [], 1),
        ("BZh9 is how bzip2 begins .\n", ["BZh9 is how bzip2 begins ."], 0),
    ],
)
def test_sentences_are_lines_that_are_not_blank(tmp_path, text, expected, num_blank, caplog):
    path = write(tmp_path / "text", text)
    with caplog.at_level("INFO", logger=corpus.__name__):
        assert list(read_sentences(path)) == expected
    assert (f"Skipped {num_blank} blank lines" in caplog.text) == (num_blank > 0)


@pytest.mark.parametrize("block_size", [1, 2, 7, 1000])
def test_blocks_are_whole_lines(tmp_path, block_size):
    rng = random.Random(block_size)
    lines = ["x" * rng.randrange(30) for _ in range(50)]
    path = write(tmp_path / "text", "\n".join(lines))
    blocks = list(read_blocks(path, block_size=block_size))
    assert b"".join(blocks) == path.read_bytes()
    assert all(block.endswith(b"\n") for block in blocks[:-1])
    offset = len(lines[0]) + 1
    assert b"".join(read_blocks(path, offset, block_size)) == path.read_bytes()[offset:]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_not_utf8_names_file_line_and_way_on(tmp_path, monkeypatch, compress):
    monkeypatch.setattr(corpus.read_blocks, "__defaults__", (0, 8))
    path = tmp_path / "latin"
    path.write_bytes(compress(b"one\ntwo\n\nfour\nfive \xe9t\xe9\nsix\n"))
    said = r"latin, line 5: byte 6 of the line \(0xe9\).*iconv -f latin1"
    with pytest.raises(ConfigurationError, match=said):
        list(read_sentences(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf16_is_named(tmp_path, encoding):
    path = tmp_path / "text"
    path.write_bytes("a few words\n".encode(encoding))
    said = "text(, line 1: byte 1|: it begins like UTF-16).*iconv -f utf-16"
    with pytest.raises(ConfigurationError, match=said):
        list(read_sentences(path))


def zstd(content):
    return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(content)


@pytest.mark.parametrize(
    "suffix, compress",
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)],
)
def test_compressed(tmp_path, suffix, compress):
    path = tmp_path / f"text{suffix}"
    content = compress(TEXT.encode() * 3)
    path.write_bytes(content)
    assert list(read_sentences(path)) == SENTENCES * 3
    assert b"".join(read_blocks(path, len(TEXT.encode()), 10)) == TEXT.encode() * 2
    path.write_bytes(compress(b""))
    assert list(read_sentences(path)) == []
    cut_short = (content[:-7], content[:10], compress(TEXT.encode()) + content[:-3])
    for damaged in (*cut_short, content[:-3] + b"abc"):
        path.write_bytes(damaged)
        with pytest.raises(ConfigurationError, match=rf"Can't read .*{path.name} to its end"):
            list(read_sentences(path))


def test_frames_of_zstd(tmp_path):
    path = tmp_path / "text.zst"
    content = zstd(TEXT.encode())
    # Empty ones, and ones that readers are to skip.
    skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    path.write_bytes(zstd(b"") + skipped + content * 2 + skipped)
    assert list(read_sentences(path)) == SENTENCES * 2


def test_zstd_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = tmp_path / "text.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd and so on")
    with pytest.raises(ConfigurationError, match="pip install zstandard"):
        list(read_sentences(path))


def test_a_suffix_that_is_wrong(tmp_path):
    with pytest.raises(ConfigurationError, match="isn't gzip"):
        list(read_sentences(write(tmp_path / "text.gz")))
    assert list(read_sentences(write(tmp_path / "empty.gz", ""))) == []


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_archives_of_files(tmp_path, kind):
    write(tmp_path / "text")
    path = shutil.make_archive(str(tmp_path / "texts"), kind, tmp_path, "text")
    with pytest.raises(ConfigurationError, match=f"texts.* is a {kind[-3:]} archive"):
        list(read_sentences(path))


def test_chunks_end_by_bytes_too(tmp_path):
    shards = [tmp_path / str(i) for i in range(5)]
    for shard in shards:
        shard.write_text("a b c\n" * 10)
    found = [len(c.pieces) for c in training_stream.read_chunks(shards, 1000, max_bytes=100)]
    assert found == [2, 2, 1]
