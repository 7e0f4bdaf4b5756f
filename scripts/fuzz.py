"""
Feeds the package with input that somebody might have damaged, mistyped or forged, for as long as
one likes: every case must end well or in one clear message. What ends otherwise is printed with
the number that repeats it:

    python scripts/fuzz.py --minutes 30
    python scripts/fuzz.py --kind config --seed 123 --cases 1
"""

import argparse
import copy
import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmark"))

import small_runs as runs  # isort: skip
import numpy as np
import torch
from allennlp.commands.train import TrainModel
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.models.archival import load_archive

from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.commands import cli
from transformer_elmo.plugin.compat.shown_errors import message_of
from transformer_elmo.text.corpus import count_lines, read_lines, read_sentences
from transformer_elmo.text.vocabulary import count_words

# A case may take so many seconds and bytes.
SECONDS, MEMORY, CASES_AT_ONCE = 20, 12 << 30, 100
WORDS = ["</S>", "<S>", "@@UNKNOWN@@", "the", "cat", "sat", "Größe", "東京", "don't", "."]
SENTENCES = ["the cat sat .", "Größe 東京 unheard-of", "don't"]


class WrongError(Exception):
    """A case that ended neither well nor in one clear message."""


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise WrongError(otherwise)


class Made:
    """What the cases damage: a small model as a folder, a run and an archive, and its config."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.archive = folder / "folder", folder / "run", folder / "a.tar.gz"
        words, text = self.run / "vocabulary" / "tokens.txt", folder / "text.txt"
        words.parent.mkdir(parents=True)
        words.write_text("".join(f"{word}\n" for word in WORDS), "utf-8")
        words.with_name("non_padded_namespaces.txt").write_text("*labels\n*tags\n")
        text.write_text("".join(f"{sentence}\n" for sentence in SENTENCES), "utf-8")
        self.config = runs.quickstart_config({"train": text, "heldout": text}, 8, 2)
        self.config["vocabulary"] = {"type": "from_files", "directory": str(words.parent)}
        self.config["trainer"].update(num_epochs=1, cuda_device=-1)
        self.config["model"]["num_samples"] = 4
        (self.run / "config.json").write_text(json.dumps(self.config))
        torch.manual_seed(0)
        section, vocab = copy.deepcopy(self.config["model"]), Vocabulary.from_files(words.parent)
        model = Model.from_params(Params(section), vocab=vocab)
        torch.save(model.state_dict(), self.run / "weights.th")
        with tarfile.open(self.archive, "w:gz") as tar:
            for name in ("config.json", "vocabulary", "weights.th"):
                tar.add(self.run / name, arcname=name)
        expect(not cli.main(["export", str(self.archive), str(self.folder)]), "no model folder")
        self.vectors = TransformerElmo.open(self.folder).embed(SENTENCES)


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Some bits, blocks or bytes are another, gone, or there twice."""
    data = bytearray(content)
    for _ in range(generator.choice([1, 1, 1, 2, 5])):
        begin = generator.randrange(len(data) + 1)
        size = generator.choice([1, 1, 4, 64, 4096])
        block = data[begin : begin + size]
        bit = bytes([block[0] ^ 1 << generator.randrange(8)]) + block[1:] if block else b""
        others = [bit, bytes(len(block)), b"", block + block, generator.randbytes(min(size, 64))]
        data[begin : begin + size] = generator.choice(others)
    return bytes(data) if generator.random() > 0.1 else bytes(data[: len(data) // 2])


def damage(file: Path, generator: random.Random) -> None:
    """A file is another, or gone."""
    content = file.read_bytes()
    if file.suffix == ".json" and generator.random() < 0.7:
        with suppress(ValueError):
            content = json.dumps(changed(json.loads(content), generator)).encode()
    else:
        content = damaged(content, generator)
    file.write_bytes(content)
    if generator.random() < 0.1:
        file.unlink()


# fmt: off
VALUES: list[Any] = [
    None, True, 0, -1, 3, 1.5, -0.5, 10**9, 1e300, float("nan"), "", "abc", "gelu", "0", "\0",
    "ä" * 50, [], [1], ["a", None], [[1, 2], [3]], {}, {"type": "abc"}, {"a": {"b": [1]}},
]
# fmt: on


def changed(value: Any, generator: random.Random) -> Any:
    """JSON with one value of another type or size, one key less, more or misspelled."""
    places = list(_places(value))
    if not places:
        return generator.choice(VALUES)
    holder, key = generator.choice(places)
    kind = generator.randrange(8)
    if kind < 5:
        holder[key] = generator.choice(VALUES)
    elif kind == 5:
        del holder[key]
    elif isinstance(holder, dict):
        name = str(key)
        place = generator.randrange(max(1, len(name)))
        new = generator.choice([name[:place] + name[place + 1 :], name + "s", "nonsense", ""])
        holder[new] = holder[key] if kind == 6 else holder.pop(key)
    else:
        holder.append(holder[key])
    return value


def _places(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def text_of(generator: random.Random) -> bytes:
    """Lines of words, spaces and ends of many kinds; seldom no UTF-8."""
    pieces = [
        *(*WORDS, "@@PADDING@@", "{", '{"tokens": ["a"]}', '{"tokens": 3}', "\0", "\ufeff"),
        *("\u00a0", "\u2028", "\x85", "\x1c", "e\u0301", "\U0001f469\u200d\U0001f467", "\u200b"),
    ]
    ends = [b" ", b" ", b" ", b"  ", b"\t", b"\n", b"\n", b"\r\n", b"\r", b"\n\n"]
    parts: list[bytes] = []
    for _ in range(generator.randrange(60)):
        parts += [generator.choice(pieces).encode(), generator.choice(ends)]
    if generator.random() < 0.1:
        parts.insert(generator.randrange(len(parts) + 1), b"\xff")
    if generator.random() < 0.05:
        parts.append(b"x" * generator.choice([60, 5000, 300_000]))
    return b"".join(parts)


# Cases: each takes a generator, what was made, and an empty folder.


def corpus(generator: random.Random, made: Made, space: Path) -> None:
    """Text is read as Python reads it, compressed or not, or refused."""
    content = text_of(generator)
    path = space / generator.choice(["text", "a.txt", "[a]*.txt", "text.gz"])
    zipped = path.name.endswith(".gz")
    written = gzip.compress(content) if zipped else content
    if zipped and generator.random() < 0.3:
        written = damaged(written, generator)
    path.write_bytes(written)
    lines = list(read_lines(path))
    if zipped:
        content = gzip.decompress(written)
    content = content.removeprefix(b"\xef\xbb\xbf")
    expected = [line.removesuffix("\r") for line in content.decode().split("\n")]
    expect(lines == (expected[:-1] if not expected[-1] else expected), "other lines")
    expect(count_lines(path) == len(lines), "another number of lines")
    found = list(read_sentences(path))
    expect(found == [_sentence_of(line) for line in lines if line.split()], "other sentences")
    counts = count_words(str(path), quiet=True)
    words = [word for s in found for word in (s.split() if isinstance(s, str) else s)]
    expect(counts == Counter(words), "other counts")


def _sentence_of(line: str) -> Any:
    """Its words, where it is JSON with them."""
    with suppress(ValueError):
        value = json.loads(line)
        return value["tokens"] if isinstance(value, dict) else line
    return line


def archive(generator: random.Random, made: Made, space: Path) -> None:
    """An archive that is damaged, or put together by somebody."""
    path, content, kind = space / "model.tar.gz", made.archive.read_bytes(), generator.randrange(4)
    if kind == 0:
        path.write_bytes(damaged(content, generator))
    elif kind == 1:
        path.write_bytes(gzip.compress(damaged(gzip.decompress(content), generator), 1))
    else:
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for name in ("config.json", "vocabulary", "weights.th"):
                if generator.random() < 0.9:
                    tar.add(made.run / name, arcname=name)
            for _ in range(generator.randrange(4)):
                tar.addfile(_member(generator))
    try:
        use(path, made, allennlp=generator.random() < 0.3)
    finally:
        found = {p.name for p in space.iterdir()}
        expect(found == {"model.tar.gz"}, f"something outside: {found}")


def _member(generator: random.Random) -> tarfile.TarInfo:
    names = ["../up", "/tmp/fuzz", "a/../../b", "config.json", "vocabulary", "vocabulary/x.txt"]
    names += ["a" * 300, "d/" * 300 + "f", "a\0b", "", ".", "weights.th/x", "c:x", "ä"]
    member = tarfile.TarInfo(generator.choice([*names, "language_models/x"]))
    kinds = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE]
    member.type = generator.choice([*kinds, b"Z"])
    member.linkname = generator.choice(["/etc/passwd", "../..", "config.json"])
    if generator.random() < 0.2:
        member.pax_headers = {generator.choice(["size", "path", "mtime", "GNU.sparse.map"]): "-1"}
    return member


def folder(generator: random.Random, made: Made, space: Path) -> None:
    """A model folder, or that of a run, with a file damaged: never other vectors."""
    path = space / "model"
    shutil.copytree(generator.choice([made.folder, made.run]), path)
    file = generator.choice(sorted(p for p in path.rglob("*") if p.is_file()))
    if file.suffix != ".txt" or generator.random() < 0.5:
        damage(file, generator)
    else:
        lines = file.read_bytes().splitlines(keepends=True)
        ends = [text_of(generator), *(b"\n a\n \r\n the \0".split(b" "))]
        generator.shuffle(lines)
        file.write_bytes(
            b"".join(lines[: generator.randrange(len(lines) + 1)]) + generator.choice(ends)
        )
    use(path, made, allennlp=generator.random() < 0.3, same=file.name != "config.json")


def config(generator: random.Random, made: Made, space: Path) -> None:
    """A training config with something wrong in it."""
    value: Any = copy.deepcopy(made.config)
    for _ in range(generator.choice([1, 1, 2])):
        value = changed(value, generator)
    build(value, "", space)


def overrides(generator: random.Random, made: Made, space: Path) -> None:
    """Overrides that somebody mistyped."""
    keys = ["model", "model.dropout", "model.num_sample", "trainer.cuda_device", "trainer", "a.b"]
    keys += ["trainer.optimizer.lr", "data_loader.max_tokens", "model.contextualizer.num_layers"]
    keys += ["dataset_reader.start_tokens", "vocabulary.type", "", "model.", ".model"]
    text = json.dumps({generator.choice(keys): generator.choice(VALUES) for _ in range(2)})
    if generator.random() < 0.3:
        text = damaged(text.encode(), generator).decode("utf-8", "replace")
    elif generator.random() < 0.3:
        text = generator.choice(["{", "[]", "3", "null", "a=b", "{a: 1}", "'", "\0", '"a"', " "])
    build(made.config, text, space)


CASES: dict[str, Callable[[random.Random, Made, Path], None]] = {
    case.__name__: case for case in (corpus, archive, folder, config, overrides)
}


def use(path: Path, made: Made, allennlp: bool, same: bool = True) -> None:
    """Opens a model and embeds: the vectors are what they were, or finite at least."""
    if allennlp:
        load_archive(path)
        return
    elmo = TransformerElmo.open(path)
    vectors = elmo.embed(SENTENCES)
    elmo.score(SENTENCES)
    for found, expected in zip(vectors, made.vectors):
        expect(bool(np.isfinite(found).all()), "vectors with a NaN")
        expect(not same or np.array_equal(found, expected), "other vectors")


def build(config: Any, changes: str, space: Path) -> None:
    """All that `allennlp train` builds before it trains."""
    (space / "config.json").write_text(json.dumps(config))
    params = Params.from_file(str(space / "config.json"), changes)
    TrainModel.from_params(params=params, serialization_dir=str(space / "run"), local_rank=0)


def try_case(kind: str, seed: int, made: Made, space: Path) -> str:
    """ "well", "message", or what is wrong."""
    where = space / "case"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    try:
        CASES[kind](random.Random(f"{kind} {seed}"), made, where)
    except Exception as error:
        message = str(error) if isinstance(error, ConfigurationError) else message_of(error)
        if message is not None and len(message) < 3000 and "Traceback" not in message:
            return "message"
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = re.sub(r"\s+", " ", str(error))[:300]
        return f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"
    return "well"


def try_many(kind: str, seeds: range, made: Made, space: Path, quiet: bool) -> Iterator[str]:
    """The results, "SEED: RESULT", of a process of its own, which may hang or crash."""
    log = space / "log"
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        for stream in (1, 2) if quiet else ():
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        with log.open("w", buffering=1) as file:
            for seed in seeds:
                file.write(f"{seed}: ")
                signal.alarm(5 * SECONDS)
                begin = time.monotonic()
                result, seconds = try_case(kind, seed, made, space), time.monotonic() - begin
                file.write((result if seconds < SECONDS else f"took {seconds:.0f} s") + "\n")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    *whole, last = log.read_text().split("\n")
    yield from [*whole, *([f"{last}the process ended with {code}"] if code else [])]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--kind", choices=sorted(CASES), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="of each kind, and no more than that")
    options = parser.parse_args()
    counts, wrong = Counter[str](), Counter[str]()
    end, seed = time.monotonic() + 60 * options.minutes, options.seed
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        os.environ["TMPDIR"] = tempfile.tempdir = name
        made = Made(Path(name))
        while time.monotonic() < end:
            seeds = range(seed, seed + (options.cases or CASES_AT_ONCE))
            for kind in options.kind or sorted(CASES):
                for line in try_many(kind, seeds, made, Path(name), options.cases != 1):
                    result = line.partition(": ")[2]
                    counts[f"{kind}, {result if result in ('well', 'message') else 'wrong'}"] += 1
                    if result not in ("well", "message"):
                        what = re.sub(r"\d+|'[^']*'", "_", result)
                        wrong[what] += 1
                        if wrong[what] == 1:
                            print(f"{kind} {line}", flush=True)
            seed = seeds.stop
            if options.cases:
                break
    for name in sorted(counts):
        print(f"{name}: {counts[name]:,}")
    print(f"wrong: {wrong.total():,} cases of {len(wrong)} kinds")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
