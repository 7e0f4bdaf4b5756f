"""
Feeds the package with input that somebody might have damaged, mistyped or forged, for as long as
one likes: every case must end well or in one clear message. What ends otherwise is printed with
the number that repeats it:

    python scripts/fuzz.py --minutes 30
    python scripts/fuzz.py --kind config --seed 123 --cases 1
"""

import argparse
import gzip
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from transformer_elmo.archived_models import open_archive
from transformer_elmo.archives import unpack
from transformer_elmo.commands.embed import embed_file
from transformer_elmo.config_files import evaluated_overrides
from transformer_elmo.elmo import TransformerElmo
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.experiments import experiment_of
from transformer_elmo.model_config import (
    CharactersConfig,
    ContextualizerConfig,
    ModelConfig,
    SoftmaxConfig,
    TextConfig,
    archive_name,
)
from transformer_elmo.model_folder import Opened, reader_of, save_folder
from transformer_elmo.text.corpus import count_lines, read_lines, read_sentences
from transformer_elmo.text.vocabulary import WordList, count_words

# A case may take so many seconds and a worker so many bytes.
SECONDS = 20
MEMORY = 12 << 30

CASES_OF_A_WORKER = 100

WORDS = ["</S>", "<S>", "@@UNKNOWN@@", "the", "cat", "sat", "Größe", "東京", "don't", "."]
SENTENCES = ["the cat sat .", "Größe 東京 unheard-of", "don't"]


class WrongError(Exception):
    """A case that ended neither well nor in one clear message."""


class Made:
    """What the cases damage: a small model as a folder, a run and an archive, and its config."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        config = ModelConfig(
            CharactersConfig(262, 4, [(1, 4), (2, 4)], 1, 8),
            ContextualizerConfig(8, 16, 2),
            TextConfig({"type": "just_spaces"}, ["<S>"], ["</S>"]),
            SoftmaxConfig(len(WORDS) + 1, 4, False),
        )
        model, words = config.build().eval(), WordList(WORDS)
        model.config = config
        opened = Opened(model, reader_of(config, words), config)
        self.folder, self.run, self.archive = folder / "folder", folder / "run", folder / "a.tar.gz"
        save_folder(opened, self.folder)
        (self.run / "vocabulary").mkdir(parents=True)
        words.write(self.run / "vocabulary")
        self.text = folder / "text.txt"
        self.text.write_text("".join(f"{s}\n" for s in SENTENCES), encoding="utf-8")
        self.config = {
            **experiment_of(config),
            "train_data_path": str(self.text),
            "vocabulary": {"type": "from_files", "directory": str(self.run / "vocabulary")},
            "data_loader": {"type": "language_modeling", "max_tokens": 40, "shuffle": True},
            "trainer": {
                "num_epochs": 1,
                "cuda_device": -1,
                "optimizer": {"type": "dense_sparse_adam", "lr": 0.001},
                "learning_rate_scheduler": {"type": "noam", "model_size": 8, "warmup_steps": 5},
            },
        }
        (self.run / "config.json").write_text(json.dumps(self.config))
        weights = {archive_name(n, config.words_name): t for n, t in model.state_dict().items()}
        weights["_last_average_loss"] = torch.zeros(1)
        torch.save(weights, self.run / "weights.th")
        with tarfile.open(self.archive, "w:gz") as tar:
            for name in ("config.json", "vocabulary", "weights.th"):
                tar.add(self.run / name, arcname=name)
        self.vectors = TransformerElmo(model, opened.reader).embed(SENTENCES)


# Damage


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Some bits, blocks or bytes are another, gone, or there twice."""
    data = bytearray(content)
    for _ in range(generator.choice([1, 1, 1, 2, 5])):
        place = generator.randrange(len(data) + 1)
        size = generator.choice([1, 1, 4, 64, 4096])
        kind = generator.randrange(6)
        if kind <= 1 and place < len(data):
            data[place] ^= 1 << generator.randrange(8)
        elif kind == 2:
            data[place : place + size] = bytes(len(data[place : place + size]))
        elif kind == 3:
            del data[place : place + size]
        elif kind == 4:
            data[place:place] = data[place : place + size]
        else:
            data[place : place + size] = generator.randbytes(min(size, 64))
    return bytes(data) if generator.random() > 0.1 else bytes(data[: len(data) // 2])


VALUES: List[Any] = [
    None,
    True,
    0,
    -1,
    3,
    1.5,
    -0.5,
    10**9,
    1e300,
    float("nan"),
    "",
    "abc",
    "gelu",
    "0",
    "\0",
    "ä" * 50,
    [],
    [1],
    ["a", None],
    [[1, 2], [3]],
    {},
    {"type": "abc"},
    {"a": {"b": [1]}},
]


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
    pieces: List[Union[str, bytes]] = [
        *(word.encode() for word in WORDS),
        *(b"@@PADDING@@", b"{", b'{"tokens": ["a"]}', b'{"tokens": 3}', b"\0", b"\xef\xbb\xbf"),
        *("\u00a0", "\u2028", "\x85", "\x1c", "e\u0301", "\U0001f469\u200d\U0001f467", "\u200b"),
    ]
    ends = [b" ", b" ", b" ", b"  ", b"\t", b"\n", b"\n", b"\r\n", b"\r", b"\n\n"]
    parts: List[bytes] = []
    for _ in range(generator.randrange(60)):
        piece = generator.choice(pieces)
        parts += [piece.encode() if isinstance(piece, str) else piece, generator.choice(ends)]
    if generator.random() < 0.1:
        parts.insert(generator.randrange(len(parts) + 1), b"\xff")
    if generator.random() < 0.05:
        parts.append(b"x" * generator.choice([60, 5000, 300_000]))
    return b"".join(parts)


# Cases: each takes a generator, what was made, and an empty folder.

Case = Callable[[random.Random, Made, Path], None]


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
    sentences = list(read_sentences(path))
    expect(sentences == [_sentence_of(line) for line in lines if line.split()], "other sentences")
    counts = count_words(str(path), quiet=True)
    words = [sentence.split() if isinstance(sentence, str) else sentence for sentence in sentences]
    expect(counts == Counter(itertools.chain(*words)), "other counts")


def _sentence_of(line: str) -> Any:
    with suppress(ValueError):
        value = json.loads(line)
        return value["tokens"] if isinstance(value, dict) else line
    return line


def vocabulary(generator: random.Random, made: Made, space: Path) -> None:
    """A vocabulary that is another than the model's is noticed; its own opens."""
    path = space / "run"
    shutil.copytree(made.run, path)
    file = path / "vocabulary" / generator.choice(["tokens.txt", "non_padded_namespaces.txt"])
    content = file.read_bytes()
    kind = generator.randrange(4)
    if kind == 0:
        content = damaged(content, generator)
    elif kind == 1:
        content = text_of(generator)
    elif kind == 2:
        lines = content.splitlines(keepends=True)
        generator.shuffle(lines)
        content = b"".join(lines[: generator.randrange(len(lines) + 1)])
    else:
        content += generator.choice([b"\n", b"a\n", b"\r\n", b"the", b"\0"])
    file.write_bytes(content)
    if generator.random() < 0.1:
        file.unlink()
    use(path, made, allennlp=generator.random() < 0.4)


def archive(generator: random.Random, made: Made, space: Path) -> None:
    """An archive that is damaged, or put together by somebody."""
    path = space / "model.tar.gz"
    kind = generator.randrange(4)
    if kind == 0:
        path.write_bytes(damaged(made.archive.read_bytes(), generator))
    elif kind == 1:
        plain = damaged(gzip.decompress(made.archive.read_bytes()), generator)
        path.write_bytes(gzip.compress(plain, 1))
    else:
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for name in ("config.json", "vocabulary", "weights.th"):
                if generator.random() < 0.9:
                    tar.add(made.run / name, arcname=name)
            for _ in range(generator.randrange(4)):
                tar.addfile(_member(generator))
    inside = space / "inside"
    inside.mkdir()
    try:
        unpack(path, inside)
    finally:
        found = {p.name for p in space.iterdir()}
        expect(found == {"model.tar.gz", "inside"}, f"something outside: {found}")
    use(path, made, allennlp=generator.random() < 0.3)


def _member(generator: random.Random) -> tarfile.TarInfo:
    names = ["../up", "/tmp/fuzz", "a/../../b", "config.json", "vocabulary", "vocabulary/x.txt"]
    names += ["a" * 300, "d/" * 300 + "f", "a\0b", "", ".", "weights.th/x", "c:x"]
    names += ["language_models/x", "ä"]
    name = generator.choice(names)
    member = tarfile.TarInfo(name)
    member.type = generator.choice(
        [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"Z"]
    )
    member.linkname = generator.choice(["/etc/passwd", "../..", "config.json"])
    if generator.random() < 0.2:
        member.pax_headers = {generator.choice(["size", "path", "mtime", "GNU.sparse.map"]): "-1"}
    return member


def folder(generator: random.Random, made: Made, space: Path) -> None:
    """A model folder, or that of a run, with something damaged: never other vectors."""
    source = generator.choice([made.folder, made.run])
    path = space / "model"
    shutil.copytree(source, path)
    names = ["weights.th", "config.json", "model.safetensors", "vocabulary.txt"]
    file = path / generator.choice([name for name in names if (path / name).exists()])
    if file.name == "config.json":
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(changed(config, generator)))
        use(path, made, allennlp=generator.random() < 0.4, same=False)
        return
    file.write_bytes(damaged(file.read_bytes(), generator))
    use(path, made, allennlp=generator.random() < 0.2)


def config(generator: random.Random, made: Made, space: Path) -> None:
    """A training config with something wrong in it."""
    value: Any = json.loads(json.dumps(made.config))
    for _ in range(generator.choice([1, 1, 2])):
        value = changed(value, generator)
    path = space / "config.json"
    path.write_text(json.dumps(value))
    build(path, "", space)


def overrides(generator: random.Random, made: Made, space: Path) -> None:
    """Overrides that somebody mistyped."""
    path = space / "config.json"
    path.write_text(json.dumps(made.config))
    kind = generator.randrange(4)
    keys = ["model", "model.dropout", "model.num_sample", "trainer.cuda_device", "trainer", "a.b"]
    keys += ["trainer.optimizer.lr", "data_loader.max_tokens", "model.contextualizer.num_layers"]
    keys += ["dataset_reader.start_tokens", "vocabulary.type", "", "model.", ".model"]
    value: Any = {generator.choice(keys): generator.choice(VALUES) for _ in range(2)}
    text = json.dumps(value)
    if kind == 0:
        text = damaged(text.encode(), generator).decode("utf-8", "replace")
    elif kind == 1:
        text = generator.choice(["{", "[]", "3", "null", "a=b", "{a: 1}", "'", "\0", '"a"', " "])
    elif kind == 2:
        text = json.dumps(
            changed(json.loads(json.dumps({"model": made.config["model"]})), generator)
        )
    evaluated_overrides(text)
    build(path, text, space)


def embedding(generator: random.Random, made: Made, space: Path) -> None:
    """What is left of work on vectors, damaged, ends in the vectors that it would have ended in."""
    from transformer_elmo.commands import vectors_file
    from transformer_elmo.text import sentences

    output = space / "out.npy"
    text = space / "text.txt"
    text.write_text("".join(f"{generator.choice(SENTENCES)}\n" for _ in range(40)))
    options: Any = {"archive_options": {"device": -1, "max_tokens": 4}}
    append, left = vectors_file.VectorsFile.append, [generator.randrange(1, 40)]

    def stopping(self: Any, vectors: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        append(self, vectors)

    words, section = vectors_file.WORDS_PER_CHECKPOINT, sentences.SECTION
    vectors_file.WORDS_PER_CHECKPOINT, sentences.SECTION = 9, 2
    try:
        embed_file(str(made.folder), str(text), str(space / "whole.npy"), "top", **options)
        vectors_file.VectorsFile.append = stopping  # type: ignore[method-assign]
        with suppress(KeyboardInterrupt):
            embed_file(str(made.folder), str(text), str(output), "top", **options)
        vectors_file.VectorsFile.append = append  # type: ignore[method-assign]
        partial = vectors_file.partial_folder(output)
        names = [p.name for p in partial.iterdir()] if partial.is_dir() else []
        if names and not output.exists():
            file = partial / generator.choice(sorted(names))
            if generator.random() < 0.2:
                file.unlink()
            elif file.name == "state.json" and generator.random() < 0.5:
                file.write_text(json.dumps(changed(json.loads(file.read_text()), generator)))
            else:
                file.write_bytes(damaged(file.read_bytes(), generator))
            embed_file(str(made.folder), str(text), str(output), "top", force=True, **options)
    finally:
        vectors_file.VectorsFile.append = append  # type: ignore[method-assign]
        vectors_file.WORDS_PER_CHECKPOINT, sentences.SECTION = words, section
    expect(output.read_bytes() == (space / "whole.npy").read_bytes(), "other vectors")


CASES: Dict[str, Case] = {
    case.__name__: case
    for case in (corpus, vocabulary, archive, folder, config, overrides, embedding)
}


def expect(condition: bool, otherwise: str) -> None:
    """Raises `WrongError` unless the condition holds."""
    if not condition:
        raise WrongError(otherwise)


def use(path: Path, made: Made, allennlp: bool, same: bool = True) -> None:
    """Opens a model and embeds: the vectors are what they were, or finite at least."""
    if allennlp:
        from allennlp.models.archival import load_archive

        import transformer_elmo  # noqa: F401

        load_archive(path)
        return
    elmo = TransformerElmo.open(path) if path.is_dir() else None
    if elmo is None:
        opened = open_archive(str(path))
        assert opened is not None
        elmo = TransformerElmo(opened.model, opened.reader)
    vectors = elmo.embed(SENTENCES)
    elmo.score(SENTENCES)
    for found, expected in zip(vectors, made.vectors):
        expect(bool(np.isfinite(found).all()), "vectors with a NaN")
        expect(not same or np.array_equal(found, expected), "other vectors")


def build(path: Path, changes: str, space: Path) -> None:
    """All that `allennlp train` builds before it trains."""
    from allennlp.commands.train import TrainModel
    from allennlp.common import Params

    import transformer_elmo  # noqa: F401

    params = Params.from_file(str(path), changes)
    TrainModel.from_params(params=params, serialization_dir=str(space / "run"), local_rank=0)


def shown(error: BaseException) -> Optional[str]:
    """What a command shows of an error, or `None` if that is a traceback."""
    if isinstance(error, ConfigurationError):
        return str(error)
    from transformer_elmo.plugin.compat.shown_errors import message_of

    return message_of(error)


def try_case(kind: str, seed: int, made: Made, space: Path) -> str:
    """
    # Returns

    `str`
        "well", "message", or what is wrong.
    """
    where = space / "case"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    before = os.getcwd()
    try:
        CASES[kind](random.Random(f"{kind} {seed}"), made, where)
    except Exception as error:
        message = None if isinstance(error, WrongError) else shown(error)
        if message is not None and len(message) < 3000 and "Traceback" not in message:
            return "message"
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = re.sub(r"\s+", " ", str(error))[:300]
        return f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"
    finally:
        os.chdir(before)
    return "well"


def worker(kind: str, seed: int, cases: int) -> None:
    """Tries cases and prints a line for each, before and after it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        os.environ["TMPDIR"] = tempfile.tempdir = name
        made = Made(Path(name))
        for number in range(seed, seed + cases):
            print(f"begin {number}", flush=True)
            began = time.monotonic()
            result = try_case(kind, number, made, Path(name))
            seconds = time.monotonic() - began
            if seconds > SECONDS:
                result = f"took {seconds:.0f} s"
            print(f"end {number} {result}", flush=True)


def run_worker(kind: str, seed: int, cases: int, counts: Counter, verbose: bool) -> List[str]:
    """The lines of what went wrong in a process of its own, which may crash or hang."""
    command = [sys.executable, __file__, "--worker", "--kind", kind]
    command += ["--seed", str(seed), "--cases", str(cases)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=None if verbose else subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    wrong, last = [], f"start {seed}"
    try:
        # Python itself may hang in a loop of C, so that only another process can tell.
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
        signal.alarm(20 * SECONDS)
        assert process.stdout is not None
        for line in process.stdout:
            signal.alarm(5 * SECONDS)
            last, number, *rest = line.rstrip("\n").split(" ", 2)
            if last == "end":
                counts[kind] += 1
                if rest[0] not in ("well", "message"):
                    wrong.append(f"{kind} {number}: {rest[0]}")
                counts[f"{kind}, {'message' if rest[0] == 'message' else 'well'}"] += 1
    finally:
        signal.alarm(0)
    if process.wait() != 0:
        wrong.append(f"{kind} {last} {seed}: the process ended with {process.returncode}")
    return wrong


def main() -> int:
    """# Returns: the number of kinds of things that went wrong, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--kind", choices=sorted(CASES), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="of one worker, and no more than that")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    kinds = args.kind or sorted(CASES)
    if args.worker:
        worker(kinds[0], args.seed, args.cases or CASES_OF_A_WORKER)
        return 0
    counts: Counter = Counter()
    seen: Dict[str, int] = {}
    end, seed, cases = time.monotonic() + 60 * args.minutes, args.seed, args.cases
    while time.monotonic() < end:
        for kind in kinds:
            for line in run_worker(kind, seed, cases or CASES_OF_A_WORKER, counts, bool(cases)):
                what = re.sub(r"\d+|'[^']*'", "_", line)
                seen[what] = seen.get(what, 0) + 1
                if seen[what] == 1:
                    print(line, flush=True)
        seed += CASES_OF_A_WORKER
        if cases:
            break
    for name in sorted(counts):
        print(f"{name}: {counts[name]:,}")
    print(f"wrong: {sum(seen.values()):,} cases of {len(seen)} kinds")
    return int(bool(seen))


if __name__ == "__main__":
    sys.exit(main())
