"""
Everything that a GPU can tell, row by row: `accelerator.sh` runs it. The most important rows come
first, and a row that would not end in time is left out, so that it fits in any budget. Each row is
written to the output folder as soon as it is there: a second run goes on with what is missing.
`report.md` has them all in tables.

    python scripts/benchmark/accelerator.py OUT [--seconds 1200] [--steps training,profile]

On a machine without a GPU, `--device cpu --small` rehearses it. What needs no GPU can be done
before, on another machine, and the folder taken along: `--steps text,curves --device cpu`.

Text is synthetic, with the billion-word benchmark's vocabulary of 793,471 words and Zipf's
frequencies (see data.py). Ours and allennlp-models' run on the same sentences, each as its own
loader sends them, and begin with the same weights.
"""

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Dict, List

# This repository's package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from accelerator_report import write_report
from accelerator_steps import PRECISIONS, SIZES, STEPS, Row, Session, plan

# Rows expected to take longer than what is left of the budget aren't begun. Small ones take a
# fraction of that.
SMALL = 0.05


def read(path: Path) -> Dict[str, Any]:
    """The rows of a step that are there."""
    if not path.exists():
        return {}
    rows: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def write(path: Path, rows: Dict[str, Any]) -> None:
    """Whole or not at all: the machine may go at any time."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    part.replace(path)


def run(session: Session, rows: List[Row], deadline: float) -> None:
    """
    Those that are missing, as long as there is time.

    # Parameters

    session : `Session`
    rows : `List[Row]`
    deadline : `float`
        In seconds since 1970.
    """
    left_out = []
    for row in rows:
        path = session.out / f"{row.step}.json"
        known = read(path)
        if row.name in known:
            print(f"{row.step}, {row.name}: done before", flush=True)
            continue
        expected = row.seconds * (SMALL if session.small else 1.0)
        if time.time() + expected > deadline:
            left_out.append(f"{row.step}, {row.name}")
            continue
        begin = time.perf_counter()
        try:
            known[row.name] = row.measure()
        except torch.OutOfMemoryError as error:
            known[row.name] = {"error": str(error).partition(".")[0]}
            session.forget_models()
        except Exception:
            traceback.print_exc()
            print(f"{row.step}, {row.name}: FAILED", flush=True)
            session.forget_models()
            continue
        took = time.perf_counter() - begin
        print(f"{row.step}, {row.name}: {took:.1f} s (expected {expected:.1f})", flush=True)
        write(path, known)
        write_report(session.out, STEPS)
    if left_out:
        print(f"No time left for these; run it again to go on: {'; '.join(left_out)}", flush=True)


def _numbers(text: str) -> List[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> List[str]:
    return text.split(",")


def main() -> None:
    begin = time.time()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder for results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--seconds", type=float, default=1200.0, help="for everything; no row begins too late"
    )
    parser.add_argument(
        "--begun", type=float, help="when they began, in seconds since 1970 (default: now)"
    )
    parser.add_argument(
        "--steps", type=_names, default=list(STEPS), help="those to run, with commas between them"
    )
    parser.add_argument("--sizes", type=_numbers, default=SIZES, help="tokens a batch: 2000,32000")
    parser.add_argument("--precisions", type=_names, default=PRECISIONS)
    parser.add_argument("--small", action="store_true", help="a rehearsal: everything shrunk")
    parser.add_argument("--without-peer", action="store_true")
    options = parser.parse_args()
    for given, choices in ((options.steps, STEPS), (options.precisions, PRECISIONS)):
        for name in given:
            if name not in choices:
                parser.error(f"there is no {name!r}: expected some of {', '.join(choices)}")
    options.out.mkdir(parents=True, exist_ok=True)
    session = Session(options)
    rows = [row for row in plan(session) if row.step in options.steps]
    run(session, rows, (options.begun or begin) + options.seconds)
    print(write_report(options.out, STEPS))


if __name__ == "__main__":
    main()
