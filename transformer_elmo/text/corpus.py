"""
Where text comes from: a file, a directory, a glob, a list, a URL, compressed or not, read as blocks
of whole lines of UTF-8; and what a sentence is. On a line it is a text or JSON; only `\n`, with or
without a `\r` before it, ends a line.

The files of a corpus, as they were when it was opened.
"""

import bz2
import codecs
import glob
import gzip
import hashlib
import json
import logging
import lzma
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, Union

import numpy as np

from transformer_elmo.errors import ConfigurationError, needed
from transformer_elmo.files import check_can_read, errors_of_reading
from transformer_elmo.with_allennlp import downloaded

logger = logging.getLogger(__name__)

PathOrStr = Union[str, "os.PathLike[str]"]
DataPath = Union[PathOrStr, Sequence[PathOrStr]]

TextOrWords = Union[str, list[str]]
Sentence = Union[TextOrWords, Sequence[str], Mapping[str, Any]]
"""A text for a tokenizer, its words, or either under a name that :func:`sentence_in` knows."""

# The names, and what messages say of them.
WORD_KEYS, TEXT_KEYS = ("tokens", "words"), ("sentence", "text")
AN_OBJECT = 'an object with "tokens" or "words" (a list of words) or "sentence" or "text" (a text)'

INPUT_FORMATS = ("auto", "text", "json")
# Spaces are allowed in JSON, but text may have such a beginning, too.
_PERHAPS_JSON = re.compile(r'\n([^\S\n]*\{\s*"|\["|\[\])')

# Large enough that a block costs one system call and a few array operations, small enough that its
# words (some 200,000 strings) stay a small part of the memory that a run takes.
BLOCK_SIZE = 2**20

# A file says by its first bytes how it is compressed, so a download that lost its suffix is read
# all the same. None of these can begin a UTF-8 text: the second byte of gzip's and the first of
# xz's and zstd's are not UTF-8 there, and bzip2's ten bytes hold the digits of pi.
_COMPRESSIONS = (
    ("gzip", ".gz", re.compile(rb"\x1f\x8b")),
    ("bzip2", ".bz2", re.compile(rb"BZh\d(1AY&SY|\x17rE8P\x90)")),
    ("xz", ".xz", re.compile(rb"\xfd7zXZ\x00")),
    ("zstd", ".zst", re.compile(rb"\x28\xb5\x2f\xfd")),
)


def find_shards(data_path: DataPath) -> list[Path]:
    """
    The files that a path stands for, at least one: a file; a directory, whose files are taken in
    the order of their names (hidden files and sub-folders are skipped); a glob, likewise in order;
    or a URL (`http://`, `https://`, `s3://` and whatever else the library `cached_path` knows),
    which is downloaded once. A list is taken in its own order.

    Raises `ConfigurationError` if nothing is found, a URL can't be fetched, or a path is no file (a
    pipe, say). The message names the path, and the environment variables that hold it.
    """
    if isinstance(data_path, (list, tuple)):
        if not data_path:
            raise ConfigurationError("The corpus is an empty list: name at least one file.")
        return [shard for part in data_path for shard in find_shards(part)]
    if not isinstance(data_path, (str, os.PathLike)):
        raise ConfigurationError(
            "A corpus is a path, a glob, a URL or a list of them, and this is a "
            f"{type(data_path).__name__}: {data_path!r}."
        )
    name = os.fspath(data_path)
    if not name:
        raise ConfigurationError(f"The path of the corpus is empty.{variables_with(name)}")
    if "://" in name:
        return [fetch(name)]
    path = Path(name).expanduser()
    if path.is_dir():
        with errors_of_reading(path):
            found = [file for file in path.iterdir() if not file.name.startswith(".")]
        nothing = (
            f"The directory {name} has no file in it (hidden files and sub-folders are skipped)."
        )
    elif path.is_file():
        return [path]
    elif path.exists():
        raise ConfigurationError(
            f"{name} is neither a file nor a directory.{variables_with(name)} A corpus is read "
            "more than once, so a pipe won't do: write its text to a file."
        )
    else:
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
        nothing = f"No file matches {name}."
    shards = sorted(file for file in found if file.is_file())
    if not shards:
        raise ConfigurationError(
            f"{nothing}{variables_with(name)} Expected a file, a directory, a glob or a URL of "
            f"text, one sentence a line. The current directory is {os.getcwd()}."
        )
    return shards


def fetch(url: str) -> Path:
    """The file that an address leads to, downloaded once, or a `ConfigurationError`."""
    try:
        return Path(downloaded(url))
    except ConfigurationError:
        raise
    except Exception as error:
        # Each kind of address has a client, and errors, of its own.
        reason = "there is nothing" if isinstance(error, FileNotFoundError) else error
        raise ConfigurationError(
            f"Can't fetch {url}: {reason}.{variables_with(url)} Check the address, or download it "
            "by other means and give the file's path."
        ) from error


def variables_with(path: str) -> str:
    # A config has replaced its variables by their values long before: they are found again by them.
    names = sorted(name for name, value in os.environ.items() if value == path and name != "_")
    if not names:
        return ""
    return f" The path is the value of the environment variable {' and '.join(names)}."


def read_sentences(shard: PathOrStr) -> Iterator[TextOrWords]:
    """
    The sentences of one file of UTF-8, plain or compressed by gzip, bzip2, xz or zstd: each a text,
    or the words that a line of JSON has. Blank lines are skipped; the log says how many. Errors are
    those of :func:`read_blocks`, :func:`decode` and :func:`parse_line`.
    """
    blank_lines = 0
    for text, line_number in texts_of(shard):
        blank_lines += len(split_lines(text))
        for sentence in sentences_in(text, shard, line_number):
            blank_lines -= 1
            yield sentence
    if blank_lines:
        logger.info("Skipped %d blank lines of %s.", blank_lines, shard)


def read_lines(data_path: DataPath) -> Iterator[str]:
    """All lines of what :func:`find_shards` takes, blank ones too, without their ends."""
    for shard in find_shards(data_path):
        for text, _ in texts_of(shard):
            yield from split_lines(text)


def texts_of(
    shard: PathOrStr, on_block: Callable[[int], Any] = lambda num_bytes: None
) -> Iterator[tuple[str, int]]:
    """A file's blocks, each with the number of its first line; `on_block`: told of their bytes."""
    line_number = 1
    for block in read_blocks(shard):
        yield decode(block, shard, line_number), line_number
        line_number += count_lines_of(block)
        on_block(len(block))


def split_lines(text: str) -> list[str]:
    """
    The lines of a text without their ends: `\\n`, or `\\r\\n`. What comes after the last end is a
    line unless it is empty.
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    if "\r" in text:
        lines = [line[:-1] if line.endswith("\r") else line for line in lines]
    return lines


def sentences_in(text: str, shard: PathOrStr, line_number: int) -> Iterator[TextOrWords]:
    """Those of some whole lines of a shard, of which the first has this number."""
    for number, line in enumerate(split_lines(text), start=line_number):
        if not is_blank(line):
            yield parse_line(line, number=number, shard=shard)


def has_json(text: str) -> bool:
    """Whether any line of a text begins like JSON."""
    # Most text has neither bracket, which is found out at the speed of memory.
    return ("{" in text or "[" in text) and _PERHAPS_JSON.search("\n" + text) is not None


def parse_line(
    line: str,
    input_format: str = "auto",
    number: int | None = None,
    shard: PathOrStr | None = None,
) -> TextOrWords:
    """
    A sentence from a line: the line itself; or JSON, as :func:`sentence_in` has it.

    With the input format "text" or "json" it is that. With "auto" it is JSON if it begins with `{"`
    or `["`, or is `[]`; but for `{"` without spaces, it must be readable as JSON besides. `number`
    and `shard` say in messages where it stands.

    Raises `ConfigurationError` if it should be JSON and isn't, or holds no sentence.
    """
    if input_format not in INPUT_FORMATS:
        raise ConfigurationError(
            f"input_format must be one of {', '.join(INPUT_FORMATS)}: got {input_format!r}."
        )
    if input_format == "text" or (input_format == "auto" and not has_json(line)):
        return line
    where = "This line" if number is None else f"Line {number}"
    where += "" if shard is None else f" of {shard}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        if input_format == "auto" and not line.startswith('{"'):
            return line
        raise ConfigurationError(
            f"{where} begins like JSON but can't be read as such ({error}): {line:.80}. If it is "
            'plain text, put a space before it, or say so where there is an input format: "text".'
        ) from None
    sentence = sentence_in(value)
    if sentence is not None:
        return sentence
    if isinstance(value, list) and input_format == "auto":
        return line
    raise ConfigurationError(
        f"{where} is JSON, but not {AN_OBJECT}, nor a list of words: {line:.80}"
    )


def sentence_in(value: Any) -> TextOrWords | None:
    """
    What counts as a sentence, everywhere: a text; a sequence of words, also an array or a column of
    them; or a mapping with `tokens` or `words`, a sequence, or with `sentence` or `text`, a text.
    Whatever else can be iterated over (sets, tables, views, generators) holds none: `None`.
    """
    if isinstance(value, Mapping):
        key = next((key for key in (*WORD_KEYS, *TEXT_KEYS) if value.get(key) is not None), None)
        value = value.get(key)
        if isinstance(value, str) == (key in WORD_KEYS):
            return None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        return value
    is_list = isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray))
    return list(value) if is_list and all(isinstance(word, str) for word in value) else None


def most_words(max_length: int | None, num_boundary_tokens: int) -> float:
    """How many words a sentence may have that isn't dropped: `max_length` counts all tokens."""
    return math.inf if max_length is None else max_length - num_boundary_tokens


def is_blank(line: str) -> bool:
    """Whether a line has no word in it."""
    return not line or line.isspace()


def count_lines(data_path: DataPath) -> int:
    """How many lines :func:`read_lines` will give."""
    return sum(
        count_lines_of(block) for shard in find_shards(data_path) for block in read_blocks(shard)
    )


def count_lines_of(block: bytes) -> int:
    """How many lines a block of whole lines has; the last one may lack its end."""
    ends = np.count_nonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
    return int(ends) + (bool(block) and not block.endswith(b"\n"))


def has_sentences(shard: PathOrStr) -> bool:
    """Whether any line of a file isn't blank; all of it is read, so that errors are found."""
    return sum(bool(text.strip()) for text, _ in texts_of(shard)) > 0


def read_blocks(shard: PathOrStr, offset: int = 0, block_size: int = BLOCK_SIZE) -> Iterator[bytes]:
    r"""
    A file, plain or compressed, as blocks of whole lines, all but the last of which end with `\n`.

    `offset`: where to begin: a number of (uncompressed) bytes, at the beginning of a line.
    `block_size`: a block has about this many bytes, more if a line has. Raises `ConfigurationError`
    if the file can't be read to its end, or is an archive of files.
    """
    check_can_read(shard)
    # The pieces of a line that is longer than a block are kept apart until its end is seen: joined
    # one by one they would be copied again and again.
    pending: list[bytes] = []
    is_first = offset == 0
    try:
        with open(shard, "rb") as file:
            for block in _uncompressed(file, Path(shard), offset, block_size):
                if is_first:
                    _check_is_text(block, shard)
                    is_first = False
                end = block.rfind(b"\n") + 1
                if end:
                    yield b"".join([*pending, block[:end]])
                    pending = []
                if end < len(block):
                    pending.append(block[end:])
            if pending:
                yield b"".join(pending)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ConfigurationError(
            f"Can't read {shard} to its end: {error}. If it was downloaded, download it again."
        ) from error


def _uncompressed(file: IO[bytes], path: Path, offset: int, size: int) -> Iterator[bytes]:
    """What a file holds, from an offset on, in pieces of about a size."""
    head = file.read(16)
    file.seek(0)
    kind = next((kind for kind, _, magic in _COMPRESSIONS if magic.match(head)), None)
    for promised, suffix, _ in _COMPRESSIONS:
        if path.suffix == suffix and head and kind != promised:
            raise ConfigurationError(
                f"{path} is named {suffix}, but it isn't {promised} data. Compress it, or rename "
                "it."
            )
    if kind == "zstd":
        pieces = _zstd_pieces(file, path)
    else:
        readers: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
        reader = file if kind is None else readers[kind](file, "rb")
        reader.seek(offset)
        offset = 0
        pieces = iter(partial(reader.read, size), b"")
    for piece in pieces:
        if len(piece) > offset:
            yield piece[offset:]
        offset = max(0, offset - len(piece))


def _zstd_pieces(file: IO[bytes], path: Path) -> Iterator[bytes]:
    # The package's own reader takes a file that was cut off for a complete one.
    zstandard = needed(
        "zstandard", f"Reading {path}", otherwise=f"Or decompress the file: unzstd {path.name}"
    )
    # Files may have been compressed with windows of up to 2 GB (`zstd --long=31`).
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = None
    while compressed := file.read(2**18):
        while compressed:
            frame = frame or decompressor.decompressobj()
            try:
                yield frame.decompress(compressed)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from None
            compressed = b""
            if frame.eof:
                compressed, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("Compressed file ended before the end of a frame")


def _check_is_text(head: bytes, shard: PathOrStr) -> None:
    # A tar file of texts is valid UTF-8: its names and sizes would be read as words.
    for kind, magic, offset in (("tar", b"ustar", 257), ("zip", b"PK\x03\x04", 0)):
        if head.startswith(magic, offset):
            raise ConfigurationError(
                f"{shard} is a {kind} archive, not text. Unpack it, and give the path of the "
                "files in it."
            )
    # Of Latin letters, every second byte is zero in UTF-16, which UTF-8 takes for characters.
    beginning = head[:1024]
    marked = beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not marked and 4 * beginning.count(0) >= len(beginning) > 0:
        raise _not_utf8(
            shard, "it begins like UTF-16, or like no text at all, and is not UTF-8", "utf-16"
        )


def decode(block: bytes, shard: PathOrStr, line_number: int) -> str:
    """
    A block of whole lines as text. A byte-order mark before the first line is no part of it.

    `line_number`: of its first line, counted from 1. Raises `ConfigurationError` if it isn't UTF-8.
    """
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        line = line_number + block.count(b"\n", 0, error.start)
        begin = block.rfind(b"\n", 0, error.start) + 1
        encoding = "latin1"
        if line == 1 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = "utf-16"
        raise _not_utf8(
            f"{shard}, line {line}",
            f"byte {error.start - begin + 1} of the line (0x{block[error.start]:02x}) is not UTF-8",
            encoding,
        ) from None
    return text[1:] if line_number == 1 and text.startswith("\ufeff") else text


def _not_utf8(where: PathOrStr, what: str, encoding: str) -> ConfigurationError:
    return ConfigurationError(
        f"{where}: {what}. Convert the file, for example with `iconv -f {encoding} -t utf-8 FILE > "
        f"NEW` (put its real encoding for {encoding}), or drop such bytes with `iconv -f utf-8 -t "
        "utf-8 -c FILE > NEW`."
    )


# Of a larger file only its beginning, middle and end are read to tell whether it is the same.
_SAMPLE = 2**16


class Shards:
    """Raises `ConfigurationError` if a file can't be looked at."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._seen = {path: _look_at(path) for path in paths}
        self.num_bytes = sum(self._seen[path][0] for path in paths)

    @cached_property
    def description(self) -> str:
        """Their number, and what their names and sizes come to."""
        names = "\n".join(f"{path.name} {self._seen[path][0]}" for path in self.paths)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{len(self.paths)} files of {self.num_bytes} bytes (names and sizes: {digest[:16]})"

    @cached_property
    def content(self) -> str:
        """A hash of what is in them; of large files, of a sample."""
        digest = hashlib.sha256()
        for path in self.paths:
            with errors_of_reading(path), open(path, "rb") as file:
                size = self._seen[path][0]
                for begin in (0, size // 2, max(0, size - _SAMPLE)):
                    file.seek(begin)
                    digest.update(file.read(_SAMPLE))
        return digest.hexdigest()[:16]

    def check(self, path: Path) -> None:
        """
        Raises `ConfigurationError` if a file is gone or may not be what it was: an epoch of two
        different corpora would look like any other.
        """
        before, now = self._seen[path], _look_at(path)
        if now != before:
            raise ConfigurationError(
                f"{path} was written or touched after the run opened it: it had {before[0]:,} "
                f"bytes, and has {now[0]:,}. If its text is the same, go on with --recover. Else "
                "restore it first, or begin a new run."
            )


def _look_at(path: Path) -> tuple[int, int]:
    with errors_of_reading(path):
        status = os.stat(path)
    return status.st_size, status.st_mtime_ns
