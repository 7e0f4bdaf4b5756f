"""
Faults that training runs meet, each many times: they are killed, told to stop, starved of disk,
given damaged checkpoints and bad numbers. Counts what came back whole. What is refused (another
run's folder, another config or corpus) is the tests' affair: there is no chance in it.

    python scripts/benchmark/faults.py --minutes 30 --out faults.json
    python scripts/benchmark/faults.py --rounds 3 --only SIGKILL

A run is *recovered* if `allennlp train --recover` ends with the bits of a run that nothing happened
to. All else is *lost*, and printed with its log.
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import small_runs as runs  # isort: skip
import torch
from allennlp.commands import main as allennlp_main
from allennlp.models import Model

WORDS = "the a cat dog bird sat ran flew on under over mat house tree and then it was".split()
Process = multiprocessing.get_context("fork").Process


class LostError(AssertionError):
    """A fault that something didn't survive."""


class Bench:
    """Runs of one small config, each in a process forked from this one, which has all imported."""

    def __init__(self, space: Path, seed: int) -> None:
        self.space, self.random, self.log = space, random.Random(seed), space / "log"
        for name, lines in (("train", 60), ("valid", 12)):
            drawn = random.Random(0)
            made = [drawn.choices(WORDS, k=drawn.randint(1, 9)) for _ in range(lines)]
            (space / f"{name}.txt").write_text("".join(f"{' '.join(line)}\n" for line in made))
        (space / "vocabulary").mkdir()
        (space / "vocabulary" / "tokens.txt").write_text("\n".join(["@@UNKNOWN@@", *WORDS]) + "\n")
        (space / "vocabulary" / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")
        (space / "config.json").write_text(json.dumps(config(space)))
        begin, self.whole = time.monotonic(), space / "whole"
        self.expect(self.train(self.whole), 0)
        self.seconds, self.weights = time.monotonic() - begin, torch.load(self.whole / "best.th")

    def start(self, folder: Path, *options: str, inside: Callable[[], Any] = lambda: None) -> Any:
        """`allennlp train` in a process of its own."""

        def train() -> None:
            sys.argv = ["allennlp", "train", str(self.space / "config.json"), "-s", str(folder)]
            sys.argv += options
            inside()
            allennlp_main(prog="allennlp")

        return self.fork(train)

    def fork(self, action: Callable[[], Any]) -> Any:
        """Does it in a process of its own, which writes to the log."""

        def logged() -> None:
            os.setsid()
            with open(self.log, "w", buffering=1) as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
            logging.getLogger().handlers.clear()
            action()

        process = Process(target=logged)
        process.start()
        return process

    def wait(self, process: Any) -> int:
        """The exit code, or the signal's number below zero."""
        process.join()
        return int(process.exitcode)

    def train(self, folder: Path, *options: str, **further: Any) -> int:
        return self.wait(self.start(folder, *options, **further))

    def check(self, condition: bool, otherwise: object) -> None:
        if not condition:
            said = self.log.read_text("utf-8", "replace")[-3000:] if self.log.exists() else ""
            raise LostError(f"{otherwise}\n{said}")

    def expect(self, code: int, *codes: int) -> None:
        self.check(code in codes, f"exit code {code}")

    def expect_said(self, text: str) -> None:
        self.check(text in self.log.read_text("utf-8", "replace"), f"not said: {text!r}")

    def expect_whole(self, folder: Path) -> None:
        """The weights of the run that nothing happened to, and no litter."""
        found = torch.load(folder / "best.th")
        other = [n for n, tensor in self.weights.items() if not torch.equal(tensor, found[n])]
        self.check(not other, f"other weights: {other}")
        left = [path.name for path in folder.iterdir() if path.name.endswith((".part", ".link"))]
        self.check((folder / "model.tar.gz").exists() and not left, f"left in the folder: {left}")

    def recover(self, folder: Path) -> None:
        self.expect(self.train(folder, "--recover"), 0)
        self.expect_whole(folder)

    def stopped_run(self, folder: Path) -> None:
        """A run that was killed in the middle, with two checkpoints."""

        def kill(number: int) -> float:
            if number == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return 1.0

        self.expect(self.train(folder, inside=partial(with_losses, kill)), -signal.SIGKILL)

    def checkpoint(self, folder: Path) -> Path:
        """One of the two files of the newest."""
        kind = self.random.choice(["model_state", "training_state"])
        places = {
            tuple(int(part[1:]) for part in path.stem.split("_")[2:]): path
            for path in folder.glob(f"{kind}_e*_b*.th")
        }
        return places[max(places)]

    def signalled(self, process: Any, number: int, seconds: float) -> int:
        """At a random moment of what takes so many seconds; its exit code."""
        time.sleep(self.random.uniform(0.0, 1.1 * seconds))
        os.kill(process.pid, number)
        return self.wait(process)


def config(space: Path) -> dict[str, Any]:
    """A language model that is trained in seconds, with every part of the billion-word one."""
    text = {"train": space / "train.txt", "heldout": space / "valid.txt"}
    found = runs.quickstart_config(text, 8, 1)
    found["vocabulary"] = {"type": "from_files", "directory": str(space / "vocabulary")}
    found["data_loader"]["max_tokens"] = 80
    found["model"]["num_samples"] = 4
    found["trainer"].update(num_epochs=3, callbacks=[{"type": "resume_data"}])
    found["trainer"]["checkpointer"] = {"type": "crash_safe", "save_every_num_batches": 3}
    return found


def with_losses(factor: Callable[[int], float]) -> None:
    """The losses of training steps, numbered from 1, are multiplied by what the factor says."""
    stock, number = Model.__call__, 0

    def call(model: Model, *args: Any, **kwargs: Any) -> Any:
        nonlocal number
        output = stock(model, *args, **kwargs)
        number += model.training
        if model.training and (times := factor(number)) != 1.0:
            output["loss"] = output["loss"] * times
        return output

    mock.patch.object(Model, "__call__", call).start()


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    folder.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    mount("size=64m")
    try:
        yield lambda room: mount(f"remount,size={room // 1024}k")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# What happens to training runs.


def killed(bench: Bench, folder: Path) -> None:
    for _ in range(bench.random.randint(1, 3)):
        begun = folder.exists() and any(folder.iterdir())
        process = bench.start(folder, *(["--recover"] if begun else []))
        bench.expect(bench.signalled(process, signal.SIGKILL, bench.seconds), 0, -signal.SIGKILL)
    if not folder.exists() or not any(folder.iterdir()):
        bench.expect(bench.train(folder), 0)
    bench.recover(folder)


def told(number: int, bench: Bench, folder: Path) -> None:
    process = bench.start(folder)
    while not folder.exists():
        time.sleep(0.01)
    code = bench.signalled(process, number, bench.seconds)
    # Before anything had begun, or after everything was done, it says nothing.
    bench.expect(code, -number, 0, 128 + number)
    if code > 0:
        bench.expect_said("Go on with: allennlp train")
    bench.recover(folder)


def damaged(damage: Callable[[Bench, Path], Any], bench: Bench, folder: Path) -> None:
    """The newest checkpoint."""
    bench.stopped_run(folder)
    damage(bench, bench.checkpoint(folder))
    bench.recover(folder)
    bench.expect_said("Going on from the checkpoint before")


def truncate(bench: Bench, path: Path) -> None:
    os.truncate(path, bench.random.randrange(path.stat().st_size))


def change(size: int, bench: Bench, path: Path) -> None:
    """One bit is another, and what follows is zero."""
    content = bytearray(path.read_bytes())
    begin = bench.random.randrange(max(1, len(content) - size))
    content[begin] ^= 1 << bench.random.randrange(8)
    content[begin + 1 : begin + size] = bytes(len(content[begin + 1 : begin + size]))
    path.write_bytes(content)


def replace_by_folder(bench: Bench, path: Path) -> None:
    path.unlink()
    path.mkdir()


def bad_numbers(longest: int, bench: Bench, folder: Path) -> None:
    """Losses of NaN or infinity, so many steps in a row."""
    first, bad = bench.random.randint(1, 12), bench.random.choice([float("nan"), float("inf")])
    last = first + bench.random.randint(0, 8) if longest < 10 else 10**9
    spoiling = partial(with_losses, lambda n: bad if first <= n <= last else 1.0)
    bench.expect(bench.train(folder, inside=spoiling), int(longest >= 10))
    if longest >= 10:
        bench.expect_said("max_bad_steps")
        bench.expect(bench.train(folder, "--recover"), 0)
    weights = torch.load(folder / "best.th").values()
    bench.check(all(bool(w.isfinite().all()) for w in weights), "weights that aren't finite")
    steps = map(json.loads, (folder / "bad_steps.jsonl").read_text("utf-8").splitlines())
    text = (bench.space / "train.txt").read_text("utf-8").splitlines()
    others = [s for step in steps for s in step["sentences"] if s not in text]
    bench.check(not others, f"sentences that aren't the corpus's: {others}")


def full_disk(bench: Bench, folder: Path) -> None:
    with small_disk(folder) as set_room:
        set_room(bench.random.randrange(20_000, 400_000))
        code = bench.train(folder)
        bench.expect(code, 0, 1)
        if code:
            bench.expect_said("can't be written")
        set_room(64_000_000)
        entries = [name for name in os.listdir(folder) if name != "out.log"]
        bench.expect(bench.train(folder, "--recover" if entries else "--force"), 0)
        bench.expect_whole(folder)


def half_a_config(bench: Bench, folder: Path) -> None:
    bench.stopped_run(folder)
    truncate(bench, folder / "config.json")
    bench.recover(folder)


FULL, NEWEST = "a disk that is full at a random moment", "newest checkpoint:"
FAULTS: dict[str, Callable[[Bench, Path], None]] = {
    "SIGKILL at a random moment, up to three times": killed,
    "SIGTERM at a random moment": partial(told, signal.SIGTERM),
    "SIGINT at a random moment": partial(told, signal.SIGINT),
    f"{NEWEST} truncated": partial(damaged, truncate),
    f"{NEWEST} 4 KB of zeros": partial(damaged, partial(change, 4096)),
    f"{NEWEST} one bit flipped": partial(damaged, partial(change, 1)),
    f"{NEWEST} one of two files missing": partial(damaged, lambda _, path: path.unlink()),
    f"{NEWEST} a folder in its place": partial(damaged, replace_by_folder),
    "up to nine steps in a row with a loss of NaN or infinity": partial(bad_numbers, 9),
    "ten such steps in a row: the run ends; recovered, it trains on": partial(bad_numbers, 10),
    FULL: full_disk,
    "config.json cut off": half_a_config,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, help="of one fault of each kind; instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose description has this")
    parser.add_argument("--out", type=Path, help="a file for the counts, as JSON")
    options = parser.parse_args()
    # Only root may mount a disk.
    chosen = [f for f in FAULTS if options.only in f and (FULL not in f or os.geteuid() == 0)]
    counts = {kind: Counter[str]() for kind in chosen}
    end, rounds = time.monotonic() + 60 * options.minutes, 0
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options.seed)
        folder = bench.space / "run"
        while rounds < options.rounds if options.rounds else time.monotonic() < end:
            for kind in chosen:
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    FAULTS[kind](bench, folder)
                    counts[kind]["recovered"] += 1
                except LostError as error:
                    counts[kind]["lost"] += 1
                    print(f"LOST: {kind}: {error}", file=sys.stderr, flush=True)
                if options.out:
                    options.out.write_text(json.dumps(counts, indent=2) + "\n")
            rounds += 1
    print("| fault | tried | recovered | lost |\n| --- | ---: | ---: | ---: |")
    for kind, count in [*counts.items(), ("all", sum(counts.values(), Counter[str]()))]:
        numbers = [count.total(), count["recovered"], count["lost"]]
        print(f"| {kind} | {' | '.join(map(str, numbers))} |")


if __name__ == "__main__":
    main()
