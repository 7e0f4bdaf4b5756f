"""
What each part of a training recipe is worth: small language models, trained by the config of the
quickstart in other sizes, that differ in one thing and share their seed, and so their first weights
and their order of batches.

    python scripts/benchmark/recipe.py OUT --text TEXT        a sentence a line, tokenized
    python scripts/benchmark/recipe.py OUT --brown package --variants baseline muon

Seed 0 tries all learning rates, the others the one that was best. Each run is a line of
OUT/recipe.jsonl with its held-out perplexity, exact, after each fifth of its steps; a second call
goes on with what is missing. adaptation.py says how to get Brown.
"""

import argparse
import json
import math
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import small_runs as runs  # isort: skip
from allennlp.commands.train import train_model
from allennlp.common import Params

BASELINE = "baseline"
VARIANTS = (
    *(BASELINE, "relu_squared", "linear_decay", "relu_squared + linear_decay"),
    *("muon", "linear_decay + muon", "relu_squared + linear_decay + muon", "no_dropout"),
)
POINTS, WARMUP, DECAY = 5, 0.1, 0.6


def config_of(row: runs.Row, text: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """The quickstart's, with another recipe and its highest learning rate."""
    layers, dim = map(int, row["size"].split("x"))
    config, is_on = runs.quickstart_config(text, dim, layers), row["variant"].split(" + ")
    trainer, model = config["trainer"], config["model"]
    if "relu_squared" in is_on:
        model["contextualizer"]["activation"] = "relu_squared"
    if "no_dropout" in is_on:
        model["dropout"] = 0.0
        model["contextualizer"].update(dropout=0.0, input_dropout=0.0)
    trainer["optimizer"] = {
        "type": "muon_sparse_adam" if "muon" in is_on else "dense_sparse_adam",
        "lr": row["rate"],
    }
    warmup = max(1, round(WARMUP * row["steps"]))
    schedule = {"type": "warmup_stable_decay", "warmup": WARMUP, "decay": DECAY}
    if "linear_decay" not in is_on:
        schedule = {"type": "noam", "model_size": dim, "warmup_steps": warmup}
        schedule["factor"] = row["rate"] * (dim * warmup) ** 0.5
    trainer.update(learning_rate_scheduler=schedule, num_epochs=POINTS)
    trainer["cuda_device"], model["num_samples"] = options.cuda_device, options.samples or None
    steps = max(1, row["steps"] // POINTS)
    config["data_loader"].update(max_tokens=row["tokens"], batches_per_epoch=steps)
    config.update(random_seed=row["seed"], numpy_seed=row["seed"], pytorch_seed=row["seed"])
    return config


def run(options: argparse.Namespace, text: dict[str, Path], row: runs.Row) -> runs.Row:
    """What came of it."""
    folder = folder_of(options.out, row)
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.process_time()
    train_model(Params(config_of(row, text, options)), str(folder))
    metrics = [folder / f"metrics_epoch_{number}.json" for number in range(POINTS)]
    curve = [json.loads(path.read_text())["validation_perplexity"] for path in metrics]
    return {**row, "curve": curve, "seconds": time.process_time() - begin}


def folder_of(out: Path, row: runs.Row) -> Path:
    return out / " ".join(str(row[name]) for name in ("size", "variant", "rate", "seed"))


def losses(rows: list[runs.Row], **of: Any) -> dict[int, float]:
    """In nats, by seed."""
    found = [row for row in rows if of.items() <= row.items()]
    return {row["seed"]: math.log(row["curve"][-1]) for row in found}


def best_rate(options: argparse.Namespace, rows: list[runs.Row], size: str, variant: str) -> Any:
    """The rate of the lowest loss with seed 0, once all of them have been tried."""
    found = {
        rate: losses(rows, size=size, variant=variant, rate=rate).get(0) for rate in options.rates
    }
    tried = {rate: loss for rate, loss in found.items() if loss is not None}
    return min(tried, key=tried.__getitem__) if len(tried) == len(options.rates) else None


def missing(options: argparse.Namespace, rows: list[runs.Row]) -> list[runs.Row]:
    """All runs that can be made now."""
    wanted = []
    for seed, size, variant in product(range(options.seeds), options.sizes, options.variants):
        best = best_rate(options, rows, size, variant)
        for rate in options.rates if seed == 0 else [] if best is None else [best]:
            row = {"size": size, "variant": variant, "rate": rate, "seed": seed}
            row.update(steps=options.steps, tokens=options.tokens)
            if not any(row.items() <= known.items() for known in rows):
                wanted.append(row)
    return wanted


def compared(found: dict[int, float], baseline: dict[int, float]) -> tuple[int, float, float]:
    """Of pairs with the same seed: their number, mean difference, and its standard error."""
    differences = [value - baseline[seed] for seed, value in found.items() if seed in baseline]
    error = math.nan
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
    return len(differences), statistics.fmean(differences) if differences else math.nan, error


def table(options: argparse.Namespace, rows: list[runs.Row]) -> Iterator[str]:
    for size in options.sizes:
        yield f"\n{size}, {options.steps} steps of {options.tokens:,} tokens\n"
        yield f"| seed 0, held-out loss | {' | '.join(f'{r:g}' for r in options.rates)} |"
        yield "| --- |" + " ---: |" * len(options.rates)
        for variant in options.variants:
            found = [losses(rows, size=size, variant=variant, rate=r) for r in options.rates]
            cells = [f"{loss[0]:.3f}" if 0 in loss else "" for loss in found]
            yield f"| {variant} | {' | '.join(cells)} |"
        yield (
            "\n| at the best rate | pairs | difference | standard error | loss after each fifth "
            "| CPU seconds |"
        )
        yield "| --- | ---: | ---: | ---: | --- | ---: |"
        baseline: dict[int, float] = {}
        for variant in options.variants:
            of = {"size": size, "variant": variant, "rate": best_rate(options, rows, size, variant)}
            its = [row for row in rows if of.items() <= row.items()]
            if not its:
                continue
            baseline = baseline or losses(rows, **of)
            pairs, mean, error = compared(losses(rows, **of), baseline)
            curve = [
                statistics.fmean(map(math.log, point)) for point in zip(*(r["curve"] for r in its))
            ]
            cells = [f"{variant}, {of['rate']:g}", str(pairs), f"{mean:+.3f}", f"{error:.3f}"]
            cells.append(", ".join(f"{loss:.3f}" for loss in curve))
            cells.append(f"{statistics.fmean(row['seconds'] for row in its):.0f}")
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--text", type=Path, help="a sentence a line, tokenized (or --brown)")
    parser.add_argument("--brown", type=Path, help="the unpacked npm package")
    parser.add_argument("--sizes", nargs="+", default=["2x128"], help="layers and width")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.004, 0.008, 0.016])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=1000, help="of a batch, padding included")
    parser.add_argument("--samples", type=int, default=512, help="of the softmax; 0: all words")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a core each")
    parser.add_argument("--cuda-device", type=int, default=-1)
    options = parser.parse_args()
    if options.brown is None and options.text is None:
        parser.error("--text or --brown names the text to train on")
    source = runs.brown(options.brown) if options.brown else runs.sentences(options.text)
    text = runs.write_split(source, options.out, "text", runs.MAX_WORDS if options.brown else 10**9)
    file = options.out / "recipe.jsonl"
    # Seed 0 first, which says the best rates.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        side_by_side = pool.map if options.jobs > 1 else map
        while wanted := missing(options, runs.lines_of(file)):
            for row in side_by_side(partial(run, options, text), wanted):
                runs.append(file, row)
    print("\n".join(table(options, runs.lines_of(file))))


if __name__ == "__main__":
    main()
