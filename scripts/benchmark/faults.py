"""
Faults that training runs and other commands meet, each many times: they are killed, told to stop,
starved of disk, given damaged checkpoints, bad numbers and another's folder. Counts what came back
whole.

    python scripts/benchmark/faults.py --minutes 30 --out faults.json
    python scripts/benchmark/faults.py --rounds 30 --only embed

A run is *recovered* if `allennlp train --recover` ends with the bits of a run that nothing happened
to. Where it can't go on (another vocabulary, no good checkpoint), *refused* is one clear message,
with the folder as it was. Everything else is *lost*, and printed with its log. Of commands that
write files, `file_faults.py` says what is recovered.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List
from unittest import mock

import torch
from allennlp.models import Model
from fault_bench import Bench, LostError, count_steps, small_disk, weights
from file_faults import FILE_FAULTS

from transformer_elmo.files import write_text

# What happens inside of a run.


def spoil(first: int, last: int, value: float) -> None:
    """Gives the losses of some steps another value."""
    stock, number = Model.__call__, 0

    def call(model: Model, *args: Any, **kwargs: Any) -> Any:
        nonlocal number
        output = stock(model, *args, **kwargs)
        if model.training:
            number += 1
            if first <= number <= last:
                output["loss"] = output["loss"] * value
        return output

    mock.patch.object(Model, "__call__", call).start()


# The faults.


def killed(bench: Bench, folder: Path) -> str:
    """SIGKILL at a random moment, up to three times"""
    for _ in range(bench.random.randint(1, 3)):
        recover = ["--recover"] if folder.exists() and any(folder.iterdir()) else []
        process = bench.start(folder, *recover)
        time.sleep(bench.moment())
        os.kill(process, signal.SIGKILL)
        bench.expect(bench.wait(process), 0, -signal.SIGKILL)
    if not folder.exists() or not any(folder.iterdir()):
        # Before it had begun.
        bench.expect(bench.train(folder), 0)
    else:
        bench.expect(bench.train(folder, "--recover"), 0)
    bench.expect_whole(folder)
    return "recovered"


def told(number: int) -> Callable[[Bench, Path], str]:
    def stopped(bench: Bench, folder: Path) -> str:
        process = bench.start(folder)
        while process and not folder.exists():
            time.sleep(0.01)
        time.sleep(bench.moment())
        os.kill(process, number)
        code = bench.wait(process)
        if code in (-number, 0):
            # Before anything had begun, or after everything was done.
            bench.expect(code, -number, 0)
        else:
            bench.expect(code, 128 + number)
            bench.expect_said("Go on with: allennlp train")
        bench.recover(folder)
        return "recovered"

    stopped.__doc__ = f"{signal.Signals(number).name} at a random moment"
    return stopped


def damaged(what: str, damage: Callable[[Bench, Path], None]) -> Callable[[Bench, Path], str]:
    def run(bench: Bench, folder: Path) -> str:
        bench.stopped_run(folder)
        damage(bench, folder)
        bench.recover(folder)
        bench.expect_said("Going on from the checkpoint before")
        return "recovered"

    run.__doc__ = f"newest checkpoint: {what}"
    return run


def one_of_both(bench: Bench, folder: Path) -> Path:
    return bench.newest(folder, bench.random.choice(["model_state", "training_state"]))


def truncate(bench: Bench, folder: Path) -> None:
    path = one_of_both(bench, folder)
    os.truncate(path, bench.random.randrange(path.stat().st_size))


def zero(bench: Bench, folder: Path) -> None:
    path = one_of_both(bench, folder)
    content = bytearray(path.read_bytes())
    begin = bench.random.randrange(max(1, len(content) - 4096))
    # Where there are zeros already, nothing is damaged.
    content[begin] ^= 0xFF
    content[begin + 1 : begin + 4096] = bytes(len(content[begin + 1 : begin + 4096]))
    path.write_bytes(content)


def flip(bench: Bench, folder: Path) -> None:
    path = one_of_both(bench, folder)
    content = bytearray(path.read_bytes())
    content[bench.random.randrange(len(content))] ^= 1 << bench.random.randrange(8)
    path.write_bytes(content)


def lose(bench: Bench, folder: Path) -> None:
    one_of_both(bench, folder).unlink()


def make_folder(bench: Bench, folder: Path) -> None:
    path = one_of_both(bench, folder)
    path.unlink()
    path.mkdir()


def none_good(bench: Bench, folder: Path) -> str:
    """all checkpoints damaged"""
    bench.stopped_run(folder)
    for path in folder.glob("*_state_e*_b*.th"):
        os.truncate(path, path.stat().st_size - bench.random.randint(1, 1000))
    before = listed(folder)
    bench.expect(bench.train(folder, "--recover"), 1)
    bench.expect_said("is whole")
    if listed(folder) != before:
        raise LostError("the folder has changed")
    return "refused"


def listed(folder: Path) -> Dict[str, int]:
    """The files and their sizes, but for what every run writes."""
    return {
        path.name: path.stat().st_size
        for path in folder.iterdir()
        if path.suffix in (".th", ".sha256") or path.is_dir()
    }


def bad_numbers(bench: Bench, folder: Path) -> str:
    """up to nine steps in a row with a loss of NaN or infinity"""
    first = bench.random.randint(1, 12)
    last = first + bench.random.randint(0, 8)
    value = bench.random.choice([float("nan"), float("inf")])
    bench.expect(bench.train(folder, inside=lambda: spoil(first, last, value)), 0)
    if not all(bool(tensor.isfinite().all()) for tensor in weights(folder).values()):
        raise LostError("weights that aren't finite")
    lines = (folder / "bad_steps.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = (bench.space / "train.txt").read_text(encoding="utf-8").splitlines()
    if not all(s in sentences for line in lines for s in json.loads(line)["sentences"]):
        raise LostError("sentences that aren't the corpus's")
    return "recovered"


def too_many_bad_numbers(bench: Bench, folder: Path) -> str:
    """ten steps in a row with a loss of NaN: the run ends; recovered, it trains on"""
    first = bench.random.randint(1, 8)
    bench.expect(bench.train(folder, inside=lambda: spoil(first, 10**9, float("nan"))), 1)
    bench.expect_said("max_bad_steps")
    bench.expect(bench.train(folder, "--recover"), 0)
    if not all(bool(tensor.isfinite().all()) for tensor in weights(folder).values()):
        raise LostError("weights that aren't finite")
    return "recovered"


def full_disk(bench: Bench, folder: Path) -> str:
    """a disk that is full at a random moment"""
    with small_disk(folder) as set_room:
        set_room(bench.random.randrange(20_000, 400_000))
        code = bench.train(folder)
        bench.expect(code, 0, 1)
        if code:
            bench.expect_said("can't be written")
        set_room(64_000_000)
        entries = [name for name in os.listdir(folder) if name != "out.log"]
        bench.expect(bench.train(folder, *(["--recover"] if entries else ["--force"])), 0)
        bench.expect_whole(folder)
    return "recovered"


def second_run(bench: Bench, folder: Path) -> str:
    """a second run in the folder of one that is at work"""
    process = bench.start(folder, inside=lambda: count_steps(lambda _: time.sleep(0.05)))
    while not (folder / "config.json").exists():
        time.sleep(0.01)
    log, bench.log = bench.log, bench.space / "log of the second"
    try:
        option = bench.random.choice([[], ["--recover"], ["--force"]])
        bench.expect(bench.train(folder, *option), 1)
        bench.expect_said("Another run works in")
    finally:
        bench.log = log
        code = bench.wait(process)
    bench.expect(code, 0)
    bench.expect_whole(folder)
    return "refused"


def half_a_config(bench: Bench, folder: Path) -> str:
    """config.json cut off"""
    bench.stopped_run(folder)
    path = folder / "config.json"
    os.truncate(path, bench.random.randrange(path.stat().st_size))
    bench.recover(folder)
    return "recovered"


def other_config(bench: Bench, folder: Path) -> str:
    """--recover with another config"""
    bench.stopped_run(folder)
    key, value = bench.random.choice(
        [
            ("trainer.optimizer.lr", 0.1),
            ("model.dropout", 0.2),
            ("data_loader.max_tokens", 90),
            ("trainer.patience", 3),
        ]
    )
    before = listed(folder)
    bench.expect(bench.train(folder, "--recover", "-o", json.dumps({key: value})), 1)
    bench.expect_said(key.rpartition(".")[0] if "lr" in key else key)
    if listed(folder) != before:
        raise LostError("the folder has changed")
    bench.recover(folder)
    return "refused"


def other_vocabulary(bench: Bench, folder: Path) -> str:
    """two words of the vocabulary swapped before --recover"""
    bench.stopped_run(folder)
    path = bench.space / "vocabulary" / "tokens.txt"
    content = path.read_text(encoding="utf-8")
    lines = content.splitlines()
    one, other = bench.random.sample(range(1, len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    kept = (folder / "vocabulary" / "tokens.txt").read_bytes()
    try:
        bench.expect(bench.train(folder, "--recover"), 1)
        bench.expect_said("vocabulary")
    finally:
        path.write_text(content, encoding="utf-8")
    if (folder / "vocabulary" / "tokens.txt").read_bytes() != kept:
        raise LostError("the run's own vocabulary has changed")
    bench.recover(folder)
    return "refused"


def other_corpus(bench: Bench, folder: Path) -> str:
    """the corpus exchanged for another of its size before --recover"""
    bench.stopped_run(folder)
    path = bench.space / "train.txt"
    content = path.read_text(encoding="utf-8")
    path.write_text("".join(content.splitlines(keepends=True)[::-1]), encoding="utf-8")
    try:
        bench.expect(bench.train(folder, "--recover"), 1)
        bench.expect_said("the corpus")
    finally:
        path.write_text(content, encoding="utf-8")
    bench.recover(folder)
    return "refused"


FAULTS: List[Callable[[Bench, Path], str]] = [
    killed,
    told(signal.SIGTERM),
    told(signal.SIGINT),
    damaged("truncated", truncate),
    damaged("4 KB of zeros", zero),
    damaged("one bit flipped", flip),
    damaged("one of two files missing", lose),
    damaged("a folder in its place", make_folder),
    none_good,
    bad_numbers,
    too_many_bad_numbers,
    full_disk,
    second_run,
    half_a_config,
    other_config,
    other_vocabulary,
    other_corpus,
    *FILE_FAULTS,
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Faults injected into training runs and other commands."
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, help="of one fault of each kind; instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds whose description has this")
    parser.add_argument("--out", type=Path, help="a file for the counts, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faults = [f for f in FAULTS if options.only is None or options.only in name_of(f)]
    if os.geteuid() != 0:
        # Nobody else may mount a disk.
        faults = [fault for fault in faults if "disk that is full" not in name_of(fault)]
    counts = {name_of(fault): Counter[str]() for fault in faults}
    begin, rounds = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options.seed)
        while (
            rounds < options.rounds
            if options.rounds
            else time.monotonic() - begin < 60 * options.minutes
        ):
            for fault in faults:
                folder = bench.space / "run"
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    counts[name_of(fault)][fault(bench, folder)] += 1
                except LostError as error:
                    counts[name_of(fault)]["lost"] += 1
                    print(f"LOST: {name_of(fault)}: {error}", file=sys.stderr, flush=True)
                if options.out:
                    write_text(options.out, json.dumps(counts, indent=2) + "\n")
            rounds += 1
    print("| fault | tried | recovered | refused | lost |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind, count in [*counts.items(), ("all", sum(counts.values(), Counter[str]()))]:
        numbers = [sum(count.values()), count["recovered"], count["refused"], count["lost"]]
        print(f"| {kind} | " + " | ".join(map(str, numbers)) + " |")


def name_of(fault: Callable[[Bench, Path], str]) -> str:
    return (fault.__doc__ or "").strip()


if __name__ == "__main__":
    main()
