"""
Faults while files are written: `transformer-elmo embed`, `merge`, `export` and `score`, and the
archive at the end of training, killed at random moments and on full disks.

Something is *recovered* if the same command, given again, ends with the bytes of one that nothing
happened to, and leaves nothing else behind. Until then there is never half a file under its name.
"""

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from fault_bench import WORDS, Bench, LostError, small_disk

from transformer_elmo import cli
from transformer_elmo.commands import vectors_file
from transformer_elmo.plugin.archiving import archive_model
from transformer_elmo.text import sentences

Files = Dict[str, bytes]
Fault = Callable[[Bench, Path], str]

PARTS = 3


@dataclass
class Work:
    """
    A command that writes files to a folder.

    # Attributes

    name : `str`
    arguments : `Callable[[Bench, Path], Sequence[str]]`
        Of `transformer-elmo`, with the folder to write to.
    force : `bool`, optional (default = `False`)
        Whether a file that is there stops it, without `--force`.
    """

    name: str
    arguments: Callable[[Bench, Path], Sequence[str]]
    force: bool = False
    _whole: Dict[Path, Any] = field(default_factory=dict)

    def start(self, bench: Bench, folder: Path, *options: str) -> int:
        arguments = [*map(str, self.arguments(bench, folder)), *options]
        return bench.fork(partial(_command, arguments))

    def run(self, bench: Bench, folder: Path, *options: str) -> int:
        return bench.wait(self.start(bench, folder, *options))

    def whole(self, bench: Bench) -> Any:
        """What it writes when nothing happens to it, and the seconds that it takes."""
        if bench.space not in self._whole:
            folder = bench.space / "of one piece"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            begin = time.monotonic()
            bench.expect(self.run(bench, folder), 0)
            self._whole[bench.space] = contents(folder), time.monotonic() - begin
        return self._whole[bench.space]


def _command(arguments: List[str]) -> None:
    # Many places to go on from, in a text of few lines.
    vectors_file.WORDS_PER_CHECKPOINT, sentences.SECTION = 150, 2
    sys.exit(cli.main(arguments))


def contents(folder: Path) -> Files:
    """All files below a folder, by their names."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def expect_same(found: Files, expected: Files) -> None:
    """
    # Raises

    `LostError`
        If the names differ, or what is in the files.
    """
    if found.keys() != expected.keys():
        raise LostError(f"files {sorted(found)} in place of {sorted(expected)}")
    for name, content in expected.items():
        if found[name] != content:
            raise LostError(f"another {name}")


def text(bench: Bench) -> Path:
    """Some hundred lines, some of them blank."""
    path = bench.space / "text.txt"
    if not path.exists():
        lines = []
        for number in range(400):
            length = 0 if number % 50 == 7 else bench.random.randint(1, 12)
            lines.append(" ".join(bench.random.choices(WORDS, k=length)))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def embedding(name: str, *options: str) -> Work:
    """Vectors to a file of this name."""

    def arguments(bench: Bench, folder: Path) -> List[str]:
        archive = str(bench.whole / "model.tar.gz")
        given = ["embed", archive, str(text(bench)), str(folder / name), "--all"]
        return [*given, "--max-tokens", "60", *options]

    shown = " ".join([f"embed to {Path(name).suffix}", *options[:1]])
    return Work(shown, arguments)


def parts(bench: Bench) -> List[str]:
    """The files of embed --part, all of them."""
    folder = bench.space / "parts"
    paths = [folder / f"{number}.npy" for number in range(1, PARTS + 1)]
    folder.mkdir(exist_ok=True)
    for number, path in enumerate(paths, start=1):
        if not path.exists():
            bench.expect(embedding(path.name, "--part", f"{number}/{PARTS}").run(bench, folder), 0)
    return list(map(str, paths))


WORKS = [
    embedding("out.hdf5"),
    embedding("out.npz"),
    embedding("out.npy"),
    embedding("out.npy", "--part", f"2/{PARTS}"),
    Work(
        "merge to .hdf5",
        lambda bench, folder: ["merge", str(folder / "out.hdf5"), *parts(bench)],
    ),
    Work(
        "export",
        lambda bench, folder: [
            *("export", str(bench.whole / "model.tar.gz"), str(folder / "model"))
        ],
        force=True,
    ),
    Work(
        "score",
        lambda bench, folder: [
            *("score", str(bench.whole / "model.tar.gz"), str(text(bench))),
            *("--output-file", str(folder / "scores.jsonl")),
        ],
        force=True,
    ),
]


def killed(work: Work) -> Fault:
    """SIGKILL, up to three times, and then the same command once more."""

    def run(bench: Bench, folder: Path) -> str:
        whole, seconds = work.whole(bench)
        folder.mkdir()
        code = -signal.SIGKILL
        for _ in range(bench.random.randint(1, 3)):
            if code == 0:
                break
            process = work.start(bench, folder)
            time.sleep(bench.moment(seconds))
            os.kill(process, signal.SIGKILL)
            code = bench.wait(process)
            _expect_after_kill(bench, code, work, folder)
            _expect_whole_or_nothing(folder, whole)
        if code:
            _again(bench, work, folder)
        expect_same(contents(folder), whole)
        return "recovered"

    run.__doc__ = f"{work.name}: SIGKILL at a random moment, up to three times"
    return run


def _expect_after_kill(bench: Bench, code: int, work: Work, folder: Path) -> None:
    if code == 1 and work.force:
        # The one before got as far as its file's name.
        bench.expect_said("exists")
    else:
        bench.expect(code, 0, -signal.SIGKILL)


def _again(bench: Bench, work: Work, folder: Path) -> None:
    options = ["--force"] if work.force else []
    bench.expect(work.run(bench, folder, *options), 0)


def _expect_whole_or_nothing(folder: Path, whole: Files) -> None:
    """
    What has its final name is all there. Of a `.npy` file and what goes with it, some may be, but
    never the vectors with other offsets.
    """
    found = contents(folder)
    for name, content in whole.items():
        if name in found and found[name] != content:
            raise LostError(f"half a {name}")


def on_full_disk(work: Work) -> Fault:
    """No room, then room."""

    def run(bench: Bench, folder: Path) -> str:
        whole, _ = work.whole(bench)
        size = sum(map(len, whole.values()))
        with small_disk(folder) as set_room:
            set_room(bench.random.randrange(8_000, 2 * size + 100_000))
            code = work.run(bench, folder)
            bench.expect(code, 0, 1)
            if code:
                bench.expect_said("can't be written")
                left = [n for n in contents(folder) if not n.split(os.sep)[0].endswith(".partial")]
                # A part of the files of one work may be there, as long as they are whole.
                _expect_whole_or_nothing(folder, whole)
                if set(left) - whole.keys():
                    raise LostError(f"left behind: {left}")
                set_room(64_000_000)
                bench.expect(work.run(bench, folder), 0)
            expect_same(contents(folder), whole)
        return "recovered"

    run.__doc__ = f"{work.name}: a disk that is full at a random moment"
    return run


def archive_on_full_disk(bench: Bench, folder: Path) -> str:
    """the archive of a run: a disk that is full at a random moment"""
    whole = contents(bench.whole)
    archive = whole.pop("model.tar.gz")
    with small_disk(folder) as set_room:
        for name, content in whole.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        used = shutil.disk_usage(folder).used
        set_room(used + 4096 + bench.random.randrange(len(archive) + 20_000))
        code = bench.wait(bench.fork(partial(_archive, folder)))
        bench.expect(code, 0, 1)
        if code:
            bench.expect_said("can't be written")
            expect_same(contents(folder), whole)
            set_room(64_000_000)
            bench.expect(bench.wait(bench.fork(partial(_archive, folder))), 0)
        found = contents(folder)
        if abs(len(found.pop("model.tar.gz")) - len(archive)) > 1000:
            raise LostError("another archive")
        expect_same(found, whole)
    return "recovered"


def _archive(folder: Path) -> None:
    archive_model(folder)


FILE_FAULTS: List[Fault] = [
    *map(killed, WORKS),
    *map(on_full_disk, WORKS),
    archive_on_full_disk,
]
