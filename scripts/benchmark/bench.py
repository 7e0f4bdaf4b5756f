"""
How fast this is: training, embedding, exact evaluation, one sentence, opening a model, reading
text. This tree, allennlp-models and other checkouts of this project take turns, each in a process
of its own, on the same sentences and weights, at the size of the billion-word run.

    python scripts/benchmark/bench.py train --rounds 5 --profile
    python scripts/benchmark/bench.py evaluate --vocabulary-size 793471 --rounds 2
    python scripts/benchmark/bench.py embed --against ../checkout-of-main --without-peer
    python scripts/benchmark/bench.py suite OUT        # all of it, for a GPU; goes on where it was

"Of bound" is the time that the necessary operations take at the rate of large matrix products,
measured in the same run, over the time it took. Necessary is: each distinct word through the word
encoder once at its own length, no padding, nothing twice.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import workload

ROOT = Path(__file__).resolve().parents[2]
SIDE = Path(__file__).with_name("side.py")
OURS, PEER = "ours", "allennlp-models"
STEP_RATE = 1_000_000
# TFLOP/s of an H100 or H200 without sparsity, from the vendor's data sheet.
PEAKS = {"float32": 67.0, "tf32": 494.5, "bfloat16": 989.0}
Rounds = dict[str, list[dict[str, Any]]]


class SideError(Exception):
    """A side whose process ended."""


class OutOfMemoryError(SideError):
    """A side whose batch was too large for the GPU."""

    def __init__(self, side: str, message: str) -> None:
        super().__init__(f"{side}: {message}")
        self.side = side


class Process:
    """A side: what is asked of it runs in a process of its own."""

    def __init__(self, name: str, tree: Path, threads: int | None) -> None:
        self.name = name
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SIDE), "peer" if name == PEER else "ours"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SideError(f"{self.name}: its process ended, see above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise OutOfMemoryError(self.name, answer["error"])
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def started(names: Sequence[str], options: argparse.Namespace) -> Iterator[dict[str, Process]]:
    with ExitStack() as stack:
        sides = {}
        for name in names:
            # The peer's process never imports this package.
            tree = ROOT if name in (OURS, PEER) else Path(name)
            sides[name] = Process(name, tree, options.threads)
            stack.callback(sides[name].stop)
        yield sides


def in_turns(sides: dict[str, Process], rounds: int, warm_up: int = 1, **request: Any) -> Rounds:
    """Who goes first changes from round to round; ours begins, for it makes the batches."""
    found: Rounds = {name: [] for name in sides}
    for number in range(rounds + warm_up):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            row = sides[name].ask(**request, round=number)
            if number >= warm_up:
                found[name].append(row)
    return found


def rate(row: dict[str, Any]) -> float:
    return float(row.get("tokens", 1) / row["seconds"])


def ratios(rounds: Rounds, name: str) -> str:
    """How many times as fast ours is: the median over the rounds, the lowest and the highest."""
    found = sorted(rate(o) / rate(other) for o, other in zip(rounds[OURS], rounds[name]))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def table(rounds: Rounds, machine: float = math.nan, peak: float = math.nan) -> Iterator[str]:
    """Medians, a row for each side; `machine` and `peak` in FLOP/s."""
    rows: dict[str, dict[str, str]] = {}
    for tree, its in rounds.items():
        # Of another checkout, its folder's name.
        name = Path(tree).name
        middle = {k: statistics.median(one[k] for one in its) for k in its[0]}
        row = rows[name] = {}
        if "tokens" in middle:
            row["tokens/s"] = f"{statistics.median(map(rate, its)):,.0f}"
        row["ms"] = f"{1000 * middle['seconds']:,.1f}"
        speed = statistics.median(one.get("FLOP", 0) / one["seconds"] for one in its)
        if speed and not math.isnan(machine):
            row["of bound"] = f"{speed / machine:.0%}"
        if speed and not math.isnan(peak):
            row["MFU"] = f"{speed / peak:.1%}"
        others = [key for key in middle if key not in ("tokens", "seconds", "FLOP")]
        row.update((key, f"{middle[key]:.4g}") for key in others)
        row["ours is faster"] = ratios(rounds, tree) if OURS in rounds and tree != OURS else ""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    columns = [c for c in columns if c != "ours is faster"] + ["ours is faster"]
    yield "| | " + " | ".join(columns) + " |"
    yield "| --- |" + " ---: |" * len(columns)
    for name, cells in rows.items():
        yield f"| {name} | " + " | ".join(cells.get(column, "") for column in columns) + " |"


# The commands.


def sides_of(options: argparse.Namespace) -> list[str]:
    return [OURS, *([] if options.without_peer else [PEER]), *options.against]


def request_of(options: argparse.Namespace, folder: Path, **more: Any) -> dict[str, Any]:
    request = {"folder": str(folder), "tokens": options.tokens_per_batch, "batches": 8}
    request.update(precision=options.precision, device=options.device, small=options.small)
    # On a GPU without waiting between them: a step may be over before the clock has settled.
    return {**request, "steps": 8 if options.device.startswith("cuda") else 1, **more}


def models(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Training, embedding or exact evaluation."""
    workload.write_real(folder, options.corpus, options.vocabulary_size)
    request = request_of(options, folder, job=options.command)
    yield (
        f"{options.command}, {options.precision}, {options.vocabulary_size:,} words, batches "
        f"of {options.tokens_per_batch:,} tokens, {options.rounds} rounds"
    )
    with started(sides_of(options), options) as sides:
        machine = sides[OURS].ask(**{**request, "job": "machine"})
        yield f"{machine['machine']}; {machine['FLOP/s'] / 1e9:,.0f} GFLOP/s in matrix products"
        if options.command == "embed":
            # The same batches again and again, because a corpus is mostly words met before.
            request.update(batches=4, steps=4)
            rounds = in_turns(sides, options.rounds + 1, 0, **request)
            yield "\nThe first pass:\n"
            first = {name: its[:1] for name, its in rounds.items()}
            yield from table(first, machine["FLOP/s"])
            yield "\nLater passes:\n"
            rounds = {name: its[1:] for name, its in rounds.items()}
        else:
            rounds = in_turns(sides, options.rounds, **request)
        yield from table(rounds, machine["FLOP/s"])
        if options.profile:
            yield "\nA step by kinds of operators, in milliseconds:\n"
            request["of"] = request["job"]
            yield from table(in_turns(sides, 1, 0, **{**request, "job": "profile"}))


def with_a_run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Writes what a training run leaves, `run`, and `run-folder`, a model folder."""
    workload.write_real(folder, options.corpus, options.vocabulary_size)
    request = request_of(options, folder, run=str(folder / "run"))
    with started([OURS], options) as sides:
        sides[OURS].ask(**{**request, "job": "run", "device": "cpu", "precision": "float32"})
    return request


def latency(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """One sentence of 20 words at a time, as a server sees them."""
    request = with_a_run(options, folder)
    with started(sides_of(options), options) as sides:
        yield sides[OURS].ask(**{**request, "job": "machine"})["machine"]
        for new in (False, True):
            yield f"\nOne sentence of 20 words, {'new words' if new else 'words met before'}:\n"
            request.update({"job": "latency", "new words": new})
            yield from table(in_turns(sides, options.rounds, 2, **request))


def opening(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The package's import in a process that has torch, and a model that is opened, each time in a
    process of its own."""
    request = with_a_run(options, folder)
    for shown, path in (("the folder of a run", "run"), ("a model folder", "run-folder")):
        names = [n for n in sides_of(options) if n != PEER or path == "run"]
        rounds = fresh(names, options, {**request, "job": "opening", "run": str(folder / path)})
        yield f"\nOpening {shown}, {options.vocabulary_size:,} words:\n"
        yield from table(rounds)


def fresh(names: list[str], options: argparse.Namespace, request: dict[str, Any]) -> Rounds:
    """Each round in processes of its own, so that none has what another left behind."""
    rounds: Rounds = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names if number % 2 else names[::-1]:
            with started([name], options) as sides:
                rounds[name].append(sides[name].ask(**request, round=number))
    return rounds


def data(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Text on disk to padded tensors with character ids, on one core, in processor time."""
    options.threads = 1
    small = options.small
    size = 30_000 if small else workload.BILLION_WORDS
    # Four shards of the billion words have 31 million; these are a tenth, enough for the rate to
    # settle, and allennlp-models gets one hundredth of that.
    workload.write_synthetic(folder, 4, 300 if small else 30_000, size)
    shards = sorted((folder / "shards").iterdir())
    (folder / "many").mkdir()
    for number in range(options.many_shards):
        # Links to the same few files are as good as so many files.
        os.link(shards[number % 4], folder / "many" / f"shard-{number:03d}")
    lines = shards[0].read_text("utf-8").splitlines()[: 50 if small else 5000]
    (folder / "sample").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    request = request_of(options, folder, job="data", corpus=str(folder / "shards"))
    names = [OURS, *options.against]
    kinds: dict[str, dict[str, Any]] = {
        "tensors": {},
        "distinct words": {"distinct words": True},
        f"beside steps of {STEP_RATE:,} tokens/s": {"step rate": STEP_RATE},
        f"{options.many_shards} shards": {"corpus": str(folder / "many")},
        "shared by 8 processes": {"job": "shared", "processes": 8},
        "shared by 64 processes": {"job": "shared", "processes": 64},
        "counting a vocabulary": {"job": "vocabulary"},
    }
    for shown, more in kinds.items():
        yield f"\n{shown}, {size:,} words:\n"
        yield from table(fresh(names, options, {**request, **more}))
    if not options.without_peer:
        yield "\na sample, beside allennlp-models:\n"
        request["corpus"] = str(folder / "sample")
        yield from table(fresh([OURS, PEER], options, request))


# For a GPU: rows in the order of their importance, each kept as soon as it is there.


def plan(options: argparse.Namespace) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Names, the seconds that they take on an H100, and what is asked of the sides."""
    small, fast = (200, 400) if options.small else (2000, 32000)
    sizes = (small, fast) if options.small else (2000, 8000, 32000, 64000)
    yield "tests", 50, {}
    for tokens in (fast, small):
        yield f"train bfloat16 {tokens}", 20, {"job": "train", "tokens": tokens}
        yield f"profile bfloat16 {tokens}", 20, {"job": "profile", "tokens": tokens}
    for precision in ("bfloat16", "tf32", "float32"):
        for job, tokens in (("embed", fast), ("embed", small), ("evaluate", small)):
            row = {"job": job, "tokens": tokens, "precision": precision}
            yield f"{job} {precision} {tokens}", 20, row
    for job, tokens in (("evaluate", small), ("train", fast)):
        row = {"job": job, "tokens": tokens, "compile": True}
        yield f"{job} bfloat16 {tokens} compiled", 40, row
    for precision in ("bfloat16", "tf32", "float32"):
        for tokens in sizes:
            row = {"job": "train", "tokens": tokens, "precision": precision}
            yield f"train {precision} {tokens}", 20, row


def kept_rows(path: Path) -> dict[str, Any]:
    """Of earlier calls; the last line may have been cut off."""
    text = path.read_text("utf-8") if path.exists() else ""
    return {row["row"]: row for row in map(json.loads, text.split("\n")[:-1])}


def run_tests(out: Path, small: bool) -> str:
    """Those that need a GPU. Their output is in `tests.txt`."""
    command = [sys.executable, "-m", "pytest", "tests/device", "-q", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, *(["--co"] if small else [])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (out / "tests.txt").write_text(found.stdout, "utf-8")
    return found.stdout.strip().splitlines()[-1].strip("= ")


def suite(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """All that a GPU can tell, the most important rows first. None begins that would end too late;
    a second call goes on with what is missing."""
    deadline, out = time.monotonic() + options.seconds, options.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "vocabulary").exists():
        size = 30_000 if options.small else workload.BILLION_WORDS
        workload.write_synthetic(out, 1, 300 if options.small else 30_000, size)
    path, left_out = out / "rows.jsonl", []
    known = kept_rows(path)
    with started(sides_of(options), options) as sides, path.open("a", encoding="utf-8") as file:
        for name, seconds, more in plan(options):
            if name in known:
                continue
            if time.monotonic() + seconds * (0.05 if options.small else 1) > deadline:
                left_out.append(name)
                continue
            begin = time.monotonic()
            request = {**request_of(options, out, precision="bfloat16"), **more}
            known[name] = {"row": name, "precision": request["precision"], "rounds": {}}
            if not more:
                machine = sides[OURS].ask(**{**request, "job": "machine"})
                known[name].update(machine, tests=run_tests(out, options.small))
            turns = dict(sides) if more else {}
            while turns and not known[name]["rounds"]:
                try:
                    known[name]["rounds"] = in_turns(turns, options.rounds, **request)
                except OutOfMemoryError as error:
                    yield f"{name}: {error}"
                    del turns[error.side]
            file.write(json.dumps(known[name]) + "\n")
            file.flush()
            yield f"{name}: {time.monotonic() - begin:.1f} s (expected {seconds})"
            report = "\n".join(report_of(known))
            (out / "report.md").write_text(report + "\n", "utf-8")
    if left_out:
        yield f"No time left for these; run it again to go on: {', '.join(left_out)}"
    yield "\n".join(report_of(known))


def report_of(rows: dict[str, Any]) -> Iterator[str]:
    for name, row in rows.items():
        yield f"\n## {name}\n"
        if row["rounds"]:
            peak = PEAKS.get(row["precision"], math.nan) * 1e12
            yield from table({n: r for n, r in row["rounds"].items() if r}, peak=peak)
        else:
            yield f"{row['machine']}; {row['FLOP/s'] / 1e12:.1f} TFLOP/s in products, "
            yield f"copies {row['copies, bytes/s'] / 1e12:.2f} TB/s; tests/device: {row['tests']}"
    yield "\nMFU is the share of the peak of an H100. Under autocast the peer runs in float16."


COMMANDS = {
    **{"train": models, "embed": models, "evaluate": models, "latency": latency},
    **{"opening": opening, "data": data, "suite": suite},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("out", type=Path, nargs="?", help="suite: the folder for results")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="TREE",
        help="another checkout of this project, too; as often as one likes",
    )
    parser.add_argument("--without-peer", action="store_true", help="without allennlp-models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--device", default="cpu", help="cuda for a GPU (suite: the default)")
    parser.add_argument("--precision", default="float32", help="or bfloat16, tf32")
    parser.add_argument("--tokens-per-batch", type=int, default=2000, help="padding included")
    parser.add_argument("--vocabulary-size", type=int, default=21_000)
    parser.add_argument("--corpus", type=Path, help="a sentence a line (default: Python's help)")
    parser.add_argument("--many-shards", type=int, default=100, help="data: for its memory")
    parser.add_argument("--profile", action="store_true", help="what a step is made of")
    parser.add_argument("--seconds", type=float, default=480.0, help="suite: for everything")
    parser.add_argument("--small", action="store_true", help="a rehearsal: everything shrunk")
    options = parser.parse_args()
    if options.command == "suite" and options.out is None:
        parser.error("suite: name a folder for the results")
    for tree in options.against:
        if not (Path(tree) / "transformer_elmo").is_dir():
            parser.error(f"--against {tree}: expected a checkout, with a folder transformer_elmo")
    options.against = [str(Path(tree).resolve()) for tree in options.against]
    with tempfile.TemporaryDirectory() as folder:
        try:
            for line in COMMANDS[options.command](options, Path(folder)):
                print(line, flush=True)
        except SideError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
