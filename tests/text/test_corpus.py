import bz2
import gzip
import logging
import lzma
import os
import random
import sys
import tarfile
import zipfile
from functools import partial

import pytest

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text import corpus, training_stream
from transformer_elmo.text.corpus import find_shards, read_blocks, read_sentences


def fail(error, *args):
    raise error


TEXT = "One sentence .\nAnother ,\u2028 still the same\u0085 one .\nЕщё одна .\n"
SENTENCES = ["One sentence .", "Another ,\u2028 still the same\u0085 one .", "Ещё одна ."]


def write(path, text=TEXT):
    path.write_bytes(text.encode("utf-8"))
    return path


class TestFindShards:
    def test_file_directory_glob_and_list(self, tmp_path):
        for name in ("b.txt", "a.txt", "c.dat", ".hidden"):
            write(tmp_path / name)
        (tmp_path / "folder").mkdir()
        write(tmp_path / "folder" / "d.txt")
        a, b, c = (tmp_path / name for name in ("a.txt", "b.txt", "c.dat"))

        assert find_shards(str(b)) == [b]
        assert find_shards(b) == [b]
        assert find_shards(tmp_path) == [a, b, c]
        assert find_shards(str(tmp_path / "*.txt")) == [a, b]
        assert find_shards([str(c), tmp_path / "*.txt"]) == [c, a, b]
        assert find_shards(str(tmp_path / "**" / "*.txt")) == [a, b, tmp_path / "folder" / "d.txt"]

    def test_a_name_with_brackets_is_itself(self, tmp_path):
        path = write(tmp_path / "text[1].txt")
        assert find_shards(str(path)) == [path]

    def test_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write(tmp_path / "text")
        assert find_shards("~/text") == [tmp_path / "text"]

    def test_url_goes_through_cached_path(self, tmp_path, monkeypatch):
        cached = tmp_path / "0123abcd"
        monkeypatch.setattr(corpus, "downloaded", {"http://there/text.gz": str(cached)}.get)
        cached.write_bytes(gzip.compress(TEXT.encode()))
        (shard,) = find_shards("http://there/text.gz")
        # What is cached has lost its suffix.
        assert list(read_sentences(shard)) == SENTENCES

    def test_url_that_cant_be_fetched(self, monkeypatch):
        url = "http://there/text"
        monkeypatch.setenv("MY_TRAIN_PATH", url)
        for error, reason in (
            (FileNotFoundError(url), "there is nothing"),
            (RuntimeError("no route"), "no route"),
        ):
            monkeypatch.setattr(corpus, "downloaded", partial(fail, error))
            with pytest.raises(ConfigurationError, match=f"{url}: {reason}.*MY_TRAIN_PATH"):
                find_shards(url)

    def test_a_pipe_is_no_corpus(self, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        with pytest.raises(ConfigurationError, match="pipe is neither a file nor a directory"):
            find_shards(pipe)

    def test_nothing_there_names_path_and_variable(self, tmp_path, monkeypatch):
        missing = str(tmp_path / "missing-*")
        monkeypatch.setenv("MY_TRAIN_PATH", missing)
        with pytest.raises(ConfigurationError) as error:
            find_shards(missing)
        assert missing in str(error.value)
        assert "MY_TRAIN_PATH" in str(error.value)

    @pytest.mark.parametrize("path", ["", [], {"train": "x"}, 3])
    def test_not_a_path(self, path):
        with pytest.raises(ConfigurationError):
            find_shards(path)

    def test_empty_directory(self, tmp_path):
        with pytest.raises(ConfigurationError, match="no file in it"):
            find_shards(tmp_path)


class TestReadSentences:
    def test_only_line_feeds_end_lines(self, tmp_path):
        assert list(read_sentences(write(tmp_path / "text"))) == SENTENCES

    @pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n\n"])
    def test_ends(self, tmp_path, end):
        path = write(tmp_path / "text", "a b\r\nc\r d\n" + "e" + end)
        assert list(read_sentences(path)) == ["a b", "c\r d", "e"]

    def test_blank_lines_are_skipped_and_counted(self, tmp_path, caplog):
        path = write(tmp_path / "text", "\n \na\n\t\u00a0\n\r\nb\n")
        with caplog.at_level(logging.INFO, logger=corpus.__name__):
            assert list(read_sentences(path)) == ["a", "b"]
        assert "4 blank lines" in caplog.text

    def test_byte_order_mark_is_no_part_of_a_word(self, tmp_path):
        # In the middle of a text it is a character like any other.
        path = write(tmp_path / "text", "\ufeffa b\nc \ufeffd\n")
        assert list(read_sentences(path)) == ["a b", "c \ufeffd"]
        for text in ("\ufeff", "\ufeff\n", "\ufeff \r\n"):
            assert list(read_sentences(write(tmp_path / "blank", text))) == []

    def test_utf16_without_a_mark_is_told_apart(self, tmp_path):
        path = tmp_path / "text"
        for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
            path.write_bytes("a few words\n".encode(encoding))
            with pytest.raises(ConfigurationError, match=r"text: it begins like UTF-16.*iconv"):
                list(read_sentences(path))

    def test_empty_file(self, tmp_path):
        assert list(read_sentences(write(tmp_path / "text", ""))) == []

    @pytest.mark.parametrize("block_size", [1, 2, 7, 1000])
    def test_blocks_are_whole_lines(self, tmp_path, block_size):
        rng = random.Random(block_size)
        lines = ["x" * rng.randrange(30) for _ in range(50)]
        path = write(tmp_path / "text", "\n".join(lines))
        blocks = list(read_blocks(path, block_size=block_size))
        assert b"".join(blocks) == path.read_bytes()
        assert all(block.endswith(b"\n") for block in blocks[:-1])
        offset = len(lines[0]) + 1
        assert b"".join(read_blocks(path, offset, block_size)) == path.read_bytes()[offset:]

    @pytest.mark.parametrize("compressed", [False, True])
    def test_not_utf8_names_file_line_and_way_on(self, tmp_path, monkeypatch, compressed):
        monkeypatch.setattr(corpus.read_blocks, "__defaults__", (0, 8))
        content = b"one\ntwo\n\nfour\nfive \xe9t\xe9\nsix\n"
        path = tmp_path / "latin"
        path.write_bytes(gzip.compress(content) if compressed else content)
        with pytest.raises(ConfigurationError) as error:
            list(read_sentences(path))
        message = str(error.value)
        assert f"{path}, line 5: byte 6 of the line (0xe9)" in message
        assert "iconv -f latin1" in message

    def test_utf16_is_named(self, tmp_path):
        path = tmp_path / "text"
        path.write_bytes("one\ntwo\n".encode("utf-16"))
        with pytest.raises(ConfigurationError, match=r"line 1: byte 1.*iconv -f utf-16"):
            list(read_sentences(path))


class TestCompression:
    @pytest.mark.parametrize(
        "suffix, compress", [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
    )
    def test_round_trip(self, tmp_path, suffix, compress):
        content = TEXT.encode() * 3
        path = tmp_path / f"text{suffix}"
        path.write_bytes(compress(content))
        assert list(read_sentences(path)) == SENTENCES * 3
        assert b"".join(read_blocks(path, len(TEXT.encode()), 10)) == TEXT.encode() * 2
        path.write_bytes(compress(b""))
        assert list(read_sentences(path)) == []
        # Truncated.
        path.write_bytes(compress(content)[:-7])
        with pytest.raises(ConfigurationError, match=path.name):
            list(read_sentences(path))

    def test_zstd(self, tmp_path):
        zstandard = pytest.importorskip("zstandard")
        path = tmp_path / "text.zst"
        path.write_bytes(zstandard.compress(TEXT.encode() * 3))
        assert list(read_sentences(path)) == SENTENCES * 3
        assert b"".join(read_blocks(path, len(TEXT.encode()), 10)) == TEXT.encode() * 2

    @pytest.mark.parametrize("frames", [1, 2])
    def test_zstd_damaged(self, tmp_path, frames):
        zstandard = pytest.importorskip("zstandard")
        content = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT.encode() * 100)
        path = tmp_path / "text.zst"
        ending = content[:-3], content[:10], content[:-3] + b"abc"
        for end in ending:
            path.write_bytes(content * (frames - 1) + end)
            with pytest.raises(ConfigurationError, match=r"Can't read .*text\.zst to its end"):
                list(read_sentences(path))
        # Empty frames, and frames that readers are to skip.
        skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
        path.write_bytes(zstandard.compress(b"") + skipped + content * frames + skipped)
        assert list(read_sentences(path)) == SENTENCES * 100 * frames

    def test_zstd_not_installed(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "zstandard", None)
        path = tmp_path / "text.zst"
        path.write_bytes(b"\x28\xb5\x2f\xfd and so on")
        with pytest.raises(ConfigurationError, match="pip install zstandard"):
            list(read_sentences(path))

    def test_wrong_suffix(self, tmp_path):
        path = write(tmp_path / "text.gz")
        with pytest.raises(ConfigurationError, match="isn't gzip"):
            list(read_sentences(path))
        assert list(read_sentences(write(tmp_path / "empty.gz", ""))) == []

    def test_text_that_begins_like_bzip2(self, tmp_path):
        path = write(tmp_path / "text", "BZh9 is how bzip2 begins .\n")
        assert list(read_sentences(path)) == ["BZh9 is how bzip2 begins ."]

    def test_archives_of_files(self, tmp_path):
        text = write(tmp_path / "text")
        for mode in ("w", "w:gz"):
            with tarfile.open(tmp_path / "texts", mode) as archive:
                archive.add(text, "text")
            with pytest.raises(ConfigurationError, match="texts is a tar archive"):
                list(read_sentences(tmp_path / "texts"))
        with zipfile.ZipFile(tmp_path / "texts", "w") as archive:
            archive.write(text, "text")
        with pytest.raises(ConfigurationError, match="texts is a zip archive"):
            list(read_sentences(tmp_path / "texts"))

    def test_vanished(self, tmp_path):
        with pytest.raises(ConfigurationError, match="gone"):
            list(read_sentences(tmp_path / "gone"))


def test_chunks_end_by_bytes_too(tmp_path):
    shards = [tmp_path / str(i) for i in range(5)]
    for shard in shards:
        shard.write_text("a b c\n" * 10)
    found = [len(c.pieces) for c in training_stream.read_chunks(shards, 1000, max_bytes=100)]
    assert found == [2, 2, 1]
